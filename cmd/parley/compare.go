package main

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"

	"github.com/parleymq/parley/client/wire"
)

// compareLines holds the lines that were published against those that were read
// back, in order. Any file will do: lines may repeat.
func compareLines(published, read io.Reader) (verdict, error) {
	seed := maphash.MakeSeed()
	where := map[uint64]*twins{}
	count, err := eachLine(published, func(n int64, line []byte) {
		h := maphash.Bytes(seed, line)
		if where[h] == nil {
			where[h] = &twins{}
		}
		where[h].ahead = append(where[h].ahead, n)
	})
	if err != nil {
		return verdict{}, fmt.Errorf("read published lines: %w", err)
	}
	v := verdict{Acked: count}
	last, matched := int64(-1), int64(0)
	v.Read, err = eachLine(read, func(_ int64, line []byte) {
		n := int64(-1)
		if t := where[maphash.Bytes(seed, line)]; t != nil {
			n = t.take(last)
		}
		if n < 0 {
			v.Duplicated++ // or never published at all, which is no better
			return
		}
		matched++
		if n < last {
			v.Reordered++
		}
		last = max(last, n)
	})
	if err != nil {
		return verdict{}, fmt.Errorf("read lines that came back: %w", err)
	}
	v.Lost = count - matched
	return v, nil
}

// twins are the numbers of equal lines that nothing was matched with yet.
type twins struct {
	ahead  []int64 // ascending
	behind []int64 // passed by: they can only be matched out of order
}

// take returns the first number after last if there is one, so that a lost line
// isn't taken for a reordered twin; else one before it; else -1.
func (t *twins) take(last int64) int64 {
	for len(t.ahead) > 0 {
		n := t.ahead[0]
		t.ahead = t.ahead[1:]
		if n > last {
			return n
		}
		t.behind = append(t.behind, n)
	}
	if end := len(t.behind) - 1; end >= 0 {
		n := t.behind[end]
		t.behind = t.behind[:end]
		return n
	}
	return -1
}

func eachLine(r io.Reader, do func(n int64, line []byte)) (int64, error) {
	in := newLines(r, wire.MaxRecord)
	for n := int64(0); ; n++ {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		do(n, line)
	}
}

func compareFiles(published, read string) (verdict, error) {
	a, err := os.Open(published)
	if err != nil {
		return verdict{}, err
	}
	defer a.Close()
	b, err := os.Open(read)
	if err != nil {
		return verdict{}, err
	}
	defer b.Close()
	return compareLines(a, b)
}
