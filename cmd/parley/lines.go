package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// lines cuts a stream into lines without holding more than one. A carriage
// return stays part of its line: what is read back is what was written. The
// last line needs no line feed.
type lines struct {
	in     *bufio.Reader
	number int64
	limit  int
	long   []byte // a line that spans reads
}

// lineTooLong says which line was skipped, and why.
type lineTooLong struct {
	number int64
	limit  int
}

func (e *lineTooLong) Error() string {
	return fmt.Sprintf("line %d is longer than %d bytes, the largest record", e.number, e.limit)
}

func newLines(r io.Reader, limit int) *lines {
	return &lines{in: bufio.NewReaderSize(r, 256<<10), limit: limit}
}

// next returns the next line, valid until the next call; io.EOF after the last.
// After a *lineTooLong the stream goes on with the line after it.
func (l *lines) next() ([]byte, error) {
	l.long = l.long[:0]
	tooLong := false
	for {
		part, err := l.in.ReadSlice('\n')
		if len(l.long) == 0 && !tooLong && err == nil {
			l.number++
			if line := part[:len(part)-1]; len(line) <= l.limit {
				return line, nil
			}
			return nil, &lineTooLong{l.number, l.limit}
		}
		if err == nil {
			part = part[:len(part)-1]
		}
		if tooLong = tooLong || len(l.long)+len(part) > l.limit; !tooLong {
			l.long = append(l.long, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return nil, fmt.Errorf("read line %d: %w", l.number+1, err)
		case errors.Is(err, io.EOF) && len(part) == 0 && len(l.long) == 0 && !tooLong:
			return nil, io.EOF
		}
		l.number++
		if tooLong {
			return nil, &lineTooLong{l.number, l.limit}
		}
		return l.long, nil
	}
}
