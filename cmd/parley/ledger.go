package main

// ledger holds what was acked against what is read back: numbered records of
// one partition, numbered from 0 in the order in which they were sent. One bit a
// record and side.
type ledger struct {
	acked bitmap // written by the producer's callbacks, one after the other
	seen  bitmap
	last  int64 // highest number read so far, -1: none

	read, duplicated, reordered int64
}

// newLedger is empty.
func newLedger() *ledger { return &ledger{last: -1} }

// observe notes that number n was read.
func (l *ledger) observe(n int64) {
	l.read++
	switch {
	case l.seen.has(n):
		l.duplicated++
	case n < l.last:
		l.reordered++
	}
	l.seen.set(n)
	l.last = max(l.last, n)
}

// lost counts what was acked and never read.
func (l *ledger) lost() int64 {
	lost := int64(0)
	for n := range int64(len(l.acked)) * 64 {
		if l.acked.has(n) && !l.seen.has(n) {
			lost++
		}
	}
	return lost
}

type bitmap []uint64

func (b *bitmap) set(n int64) {
	for int64(len(*b)) <= n/64 {
		*b = append(*b, 0)
	}
	(*b)[n/64] |= 1 << (n % 64)
}

func (b bitmap) has(n int64) bool {
	return n/64 < int64(len(b)) && b[n/64]&(1<<(n%64)) != 0
}

// verdict is what a comparison found.
type verdict struct {
	Acked      int64 `json:"acked"`
	Read       int64 `json:"read"`
	Lost       int64 `json:"lost"`
	Duplicated int64 `json:"duplicated"`
	Reordered  int64 `json:"reordered"`
}

// clean says that nothing is wrong.
func (v verdict) clean() bool { return v.Lost == 0 && v.Duplicated == 0 && v.Reordered == 0 }

func (v verdict) table(t *table) {
	bad := func(n int64) cell {
		c := num(n)
		c.style = green
		if n != 0 {
			c.style = red
		}
		return c
	}
	t.row(str("acked"), num(v.Acked))
	t.row(str("read back"), num(v.Read))
	t.row(str("lost"), bad(v.Lost))
	t.row(str("duplicated"), bad(v.Duplicated))
	t.row(str("reordered"), bad(v.Reordered))
}
