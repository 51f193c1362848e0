package nats

import (
	"io"
	"time"
)

// Sizes of a read buffer: it starts small, doubles when reads fill it or a
// frame needs more, and shrinks when they stay small.
const (
	minWindow   = 512
	largeWindow = 64 << 10 // beyond it only a frame that is larger itself makes it grow

	shrinkAfter = 8                // small reads in a row
	quietAfter  = 10 * time.Second // a read that took so long shrinks it at once
)

// window is the read buffer: the bytes read and not yet consumed.
type window struct {
	buf        []byte
	start, end int
	small      int // small reads in a row
}

func (w *window) unread() []byte { return w.buf[w.start:w.end] }

func (w *window) consume(n int) {
	if w.start += n; w.start == w.end {
		w.start, w.end = 0, 0
	}
}

// fill reads once. need is the length of unread that the parser waits for.
func (w *window) fill(r io.Reader, need int) (n int, err error) {
	held := w.end - w.start
	if w.start > 0 {
		copy(w.buf, w.buf[w.start:w.end])
		w.start, w.end = 0, held
	}
	if held == len(w.buf) {
		// By doubling, not by what the frame claims to be: memory is given for
		// bytes that came.
		w.resize(max(minWindow, 2*len(w.buf)))
	}
	n, err = r.Read(w.buf[held:])
	w.end += n
	switch {
	case w.end == len(w.buf) && len(w.buf) < largeWindow:
		w.resize(2 * len(w.buf))
		w.small = 0
	case w.end < len(w.buf)/4 && len(w.buf) > minWindow && need <= len(w.buf)/4:
		if w.small++; w.small >= shrinkAfter {
			w.resize(len(w.buf) / 2)
			w.small = 0
		}
	default:
		w.small = 0
	}
	return n, err
}

// quiet shrinks the buffer to what is needed now.
func (w *window) quiet() {
	size := minWindow
	for size < w.end {
		size *= 2
	}
	if size < len(w.buf) {
		w.resize(size)
	}
	w.small = 0
}

func (w *window) resize(size int) {
	buf := make([]byte, size)
	w.end = copy(buf, w.buf[w.start:w.end])
	w.start = 0
	w.buf = buf
}
