package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
)

// How a file is damaged, and how that is taken back.

// outcomes of a corruption.
const (
	outcomeRefused     = "refused at start" // the broker named the file, and didn't start
	outcomeStart       = "found at start"   // it started, said so, and mended or replaced what was hit
	outcomeRead        = "found by read"    // by a read, a copy for another replica, or a write
	outcomeScrub       = "found by scrub"   // without anybody reading
	outcomeHarmless    = "harmless"         // nothing that is needed was hit
	outcomeOverwritten = "overwritten"      // the broker had written over it before anybody looked
	outcomeReplayed    = "replayed"         // it was above the checkpoint: the Raft log brought it again, as after any end
	outcomeMissed      = "not detected"
	outcomeUnclear     = "ended unclearly" // a panic, a signal, or an error that doesn't name the file
	outcomeUncounted   = "uncounted"
)

var outcomes = []string{outcomeRefused, outcomeStart, outcomeScrub, outcomeRead, outcomeHarmless, outcomeReplayed, outcomeOverwritten, outcomeMissed, outcomeUnclear}

// An overwrite is bytes that were changed in place.
type overwrite struct {
	at       int64
	old, new []byte
}

// A corruption is one damage to one file.
type corruption struct {
	file    *storedFile
	how     string
	state   string // of the broker
	edits   []overwrite
	size    int64 // of the file afterwards; -1: it was deleted
	tail    []byte
	hit     bool    // something that is needed
	parts   []int32 // partitions whose chunks were hit
	outcome string
	gone    bool   // the running broker wrote over it
	why     string // what the broker said
	healed  bool
}

func (c *corruption) String() string {
	return fmt.Sprintf("%s of %s (%s)", c.how, c.file.rel, c.place())
}

func (c *corruption) place() string {
	switch {
	case c.size < 0:
		return "all of it"
	case len(c.edits) > 0:
		return fmt.Sprintf("%d bytes at %d of %d", len(c.edits[0].new), c.edits[0].at, c.file.size)
	}
	return fmt.Sprintf("%d of %d bytes are there", c.size, c.file.size)
}

const pageBytes = 4096

// A damage makes one kind of corruption; it returns false where the file doesn't lend itself to it.
type damage struct {
	name   string
	weight int
	make   func(c *corruption, rng *rand.Rand, data []byte, target int64) bool
}

var damages = []damage{
	{"flip a bit", 4, func(c *corruption, rng *rand.Rand, data []byte, at int64) bool {
		return c.change(data, at, []byte{data[at] ^ 1<<rng.IntN(8)})
	}},
	{"flip a run of bytes", 2, func(c *corruption, rng *rand.Rand, data []byte, at int64) bool {
		run := bytes.Clone(data[at:min(at+1+int64(rng.IntN(64)), int64(len(data)))])
		for i := range run {
			run[i] ^= 0xff
		}
		return c.change(data, at, run)
	}},
	{"zero a page", 2, func(c *corruption, _ *rand.Rand, data []byte, at int64) bool {
		from, to := page(data, at)
		return c.change(data, from, make([]byte, to-from))
	}},
	{"a page of random bytes", 2, func(c *corruption, rng *rand.Rand, data []byte, at int64) bool {
		from, to := page(data, at)
		b := make([]byte, to-from)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return c.change(data, from, b)
	}},
	{"swap two pages", 2, func(c *corruption, rng *rand.Rand, data []byte, at int64) bool {
		pages := int64(len(data)) / pageBytes
		// Of two notes of an end the newer one counts, wherever it is.
		if pages < 2 || at/pageBytes >= pages || strings.HasSuffix(c.file.kind.name, "-end") {
			return false
		}
		a, b := at/pageBytes*pageBytes, rng.Int64N(pages)*pageBytes
		first, second := data[a:a+pageBytes], data[b:b+pageBytes]
		return a != b && c.change(data, a, second) && c.change(data, b, first)
	}},
	{"truncate", 2, func(c *corruption, rng *rand.Rand, data []byte, at int64) bool {
		if rng.IntN(4) == 0 {
			at = 0
		}
		c.size, c.tail = at, bytes.Clone(data[at:])
		return true
	}},
	{"delete", 2, func(c *corruption, _ *rand.Rand, data []byte, _ int64) bool {
		c.size, c.tail = -1, bytes.Clone(data)
		return true
	}},
	{"append garbage", 1, func(c *corruption, rng *rand.Rand, _ []byte, _ int64) bool {
		b := make([]byte, 1+rng.IntN(2*pageBytes))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		c.edits = []overwrite{{at: c.file.size, new: b}}
		c.size = c.file.size + int64(len(b))
		return true
	}},
}

func damageNames() (names []string) {
	for _, d := range damages {
		names = append(names, d.name)
	}
	return names
}

func page(data []byte, at int64) (from, to int64) {
	from = at / pageBytes * pageBytes
	return from, min(from+pageBytes, int64(len(data)))
}

// change notes an edit; false when it changes nothing.
func (c *corruption) change(data []byte, at int64, b []byte) bool {
	old := data[at : at+int64(len(b))]
	if bytes.Equal(old, b) {
		return false
	}
	c.edits = append(c.edits, overwrite{at, bytes.Clone(old), bytes.Clone(b)})
	return true
}

// corrupt damages a file; nil where it didn't lend itself to what was drawn. wholeFile allows what changes its size, onlyWhole
// nothing else.
func corrupt(f *storedFile, rng *rand.Rand, wholeFile, onlyWhole bool) (*corruption, error) {
	data, err := usedPart(f.path)
	if err != nil || len(data) == 0 {
		return nil, err
	}
	target := rng.Int64N(int64(len(data)))
	if len(f.spans) > 0 && rng.IntN(8) > 0 {
		s := f.spans[rng.IntN(len(f.spans))]
		if s.from >= int64(len(data)) || s.to <= s.from {
			return nil, nil
		}
		target = s.from + rng.Int64N(min(s.to, int64(len(data)))-s.from)
	}
	d := drawDamage(rng)
	c := &corruption{file: f, how: d.name, size: f.size}
	if !d.make(c, rng, data, target) || !wholeFile && c.size != f.size || onlyWhole && c.size == f.size {
		return nil, nil
	}
	c.judge(data)
	return c, c.apply()
}

func drawDamage(rng *rand.Rand) *damage {
	sum := 0
	for i := range damages {
		sum += damages[i].weight
	}
	n := rng.IntN(sum)
	for i := range damages {
		if n -= damages[i].weight; n < 0 {
			return &damages[i]
		}
	}
	panic("unreachable")
}

// judge finds out what is hit.
func (c *corruption) judge(data []byte) {
	hits := func(s span) bool {
		if c.size < s.to {
			return true // cut, or gone
		}
		for _, e := range c.edits {
			for i := range e.old {
				if at := e.at + int64(i); e.old[i] != e.new[i] && at >= s.from && at < s.to {
					return true
				}
			}
		}
		return false
	}
	seen := map[int32]bool{}
	for _, s := range c.file.spans {
		if hits(s) {
			c.hit = true
			if s.partition >= 0 && !seen[s.partition] {
				seen[s.partition] = true
				c.parts = append(c.parts, s.partition)
			}
		}
	}
}

func (c *corruption) apply() error {
	if c.size < 0 {
		return os.Remove(c.file.path)
	}
	f, err := os.OpenFile(c.file.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for _, e := range c.edits {
		if _, err := f.WriteAt(e.new, e.at); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if c.size < c.file.size {
		err = f.Truncate(c.size)
	}
	return errors.Join(err, f.Close())
}

// undo takes the damage back. The broker has changed nothing in the file since, or only elsewhere in it.
func (c *corruption) undo() error {
	flags := os.O_RDWR
	if c.size < 0 {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(c.file.path, flags, 0o640)
	if err != nil {
		return err
	}
	for _, e := range c.edits {
		if _, err := f.WriteAt(e.old, e.at); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if c.size < c.file.size {
		if _, err := f.WriteAt(c.tail, max(c.size, 0)); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if c.size != c.file.size {
		err = f.Truncate(c.file.size)
	}
	return errors.Join(err, f.Close())
}

// there says whether the damage can still be met: the broker may have written over it, or taken the file away.
func (c *corruption) there() (bool, error) {
	f, err := os.Open(c.file.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c.size < 0, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if c.size < 0 {
		return true, nil // a file of that name was made since, without what was in this one
	}
	if c.size < c.file.size {
		// Notes of ends are written over again and again; what else was cut stays cut, whatever is written behind it.
		info, err := f.Stat()
		return err != nil || !strings.HasSuffix(c.file.kind.name, "-end") || info.Size() < c.file.size, err
	}
	for _, e := range c.edits {
		now := make([]byte, len(e.new))
		if n, err := f.ReadAt(now, e.at); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		} else if !bytes.Equal(now[:n], e.new) {
			return false, nil
		}
	}
	return true, nil
}

// exact says whether undo would bring back what was there: what a running broker has written since counts.
func (c *corruption) exact() bool { return c.state != brokerRunning || c.size == c.file.size }
