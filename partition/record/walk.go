package record

import "fmt"

// walker goes through the uncompressed records of one batch and checks each as it
// comes to it.
type walker struct {
	b     []byte // records
	at    int    // where the next one starts
	index int32  // of the next one
	count int32
	base  int64 // offset of the first
	time  int64 // its timestamp
	lim   Limits
	rec   Record // reused; its headers too
}

func (w *walker) start(b Batch, records []byte, lim Limits) {
	w.b, w.at, w.index = records, 0, 0
	w.count, w.base, w.time = b.int32(atCount), b.BaseOffset(), b.BaseTimestamp()
	w.lim = lim
}

// release drops every reference into the batch and keeps the headers' memory.
func (w *walker) release() {
	clear(w.rec.Headers[:cap(w.rec.Headers)])
	w.rec = Record{Headers: w.rec.Headers[:0]}
	w.b = nil
}

// next reads one record into w.rec. Headers are checked always and kept only when
// headers is true.
func (w *walker) next(headers bool) error {
	n, at := varint32(w.b, w.at)
	if at == 0 || n < 0 || int(n) > len(w.b)-at {
		return w.bad("length %d, %d bytes are left", n, len(w.b)-w.at)
	}
	b := w.b[at : at+int(n) : at+int(n)]
	if len(b) == 0 {
		return w.bad("empty")
	}
	if b[0] != 0 {
		return w.bad("attributes %#02x, none are defined", b[0])
	}
	delta, i := varint64(b, 1)
	if i == 0 {
		return w.bad("timestamp delta is no 64-bit integer")
	}
	t := w.time + delta
	if (delta < 0) != (t < w.time) {
		return w.bad("timestamp %d%+d is beyond 64 bits", w.time, delta)
	}
	place, i := varint32(b, i)
	if i == 0 || place != w.index {
		return w.bad("offset delta %d, want %d", place, w.index)
	}
	key, i, ok := takeBytes(b, i)
	if !ok {
		return w.bad("key beyond the record's %d bytes", n)
	}
	value, i, ok := takeBytes(b, i)
	if !ok {
		return w.bad("value beyond the record's %d bytes", n)
	}
	count, i := varint32(b, i)
	if i == 0 || count < 0 || int(count) > (len(b)-i)/2 {
		return w.bad("%d headers in %d bytes", count, len(b)-i)
	}
	if int(count) > w.lim.MaxHeaders {
		return fmt.Errorf("record %d: %w: %d, at most %d are allowed", w.index, ErrTooManyHeaders, count, w.lim.MaxHeaders)
	}
	size := len(key) + len(value)
	kept := w.rec.Headers[:0]
	for range count {
		k, j, ok := takeBytes(b, i)
		if !ok || k == nil {
			return w.bad("header key is null or beyond the record's %d bytes", n)
		}
		v, j, ok := takeBytes(b, j)
		if !ok {
			return w.bad("header value beyond the record's %d bytes", n)
		}
		i = j
		size += len(k) + len(v)
		if headers {
			kept = append(kept, Header{Key: k, Value: v})
		}
	}
	if i != len(b) {
		return w.bad("%d bytes after its last header", len(b)-i)
	}
	if size > w.lim.MaxRecordBytes {
		return fmt.Errorf("record %d: %w: %d bytes of key, value and headers, at most %d are allowed", w.index, ErrRecordTooLarge, size, w.lim.MaxRecordBytes)
	}
	w.rec = Record{Key: key, Value: value, Headers: kept, Timestamp: t, Offset: w.base + int64(w.index)}
	w.at = at + int(n)
	w.index++
	return nil
}

// end says what is wrong when the last record is not the end.
func (w *walker) end() error {
	if w.at != len(w.b) {
		return fmt.Errorf("%w: %d bytes after the last of %d records", ErrMalformed, len(w.b)-w.at, w.count)
	}
	return nil
}

func (w *walker) bad(format string, args ...any) error {
	return fmt.Errorf("%w: record %d of %d: %s", ErrMalformed, w.index, w.count, fmt.Sprintf(format, args...))
}

// takeBytes reads a length and as many bytes; -1 is null.
func takeBytes(b []byte, i int) (p []byte, end int, ok bool) {
	n, i := varint32(b, i)
	switch {
	case i == 0 || n < -1:
		return nil, 0, false
	case n == -1:
		return nil, i, true
	case int(n) > len(b)-i:
		return nil, 0, false
	}
	end = i + int(n)
	return b[i:end:end], end, true
}
