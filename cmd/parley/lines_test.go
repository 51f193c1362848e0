package main

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestLines(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300<<10) // spans the read buffer
	huge := strings.Repeat("y", 1<<20+1)
	for _, c := range []struct {
		name, in string
		want     []string // "!" is a line that is too long
	}{
		{"empty", "", nil},
		{"one", "a\n", []string{"a"}},
		{"no line feed at the end", "a\nb", []string{"a", "b"}},
		{"empty lines count", "\n\na\n\n", []string{"", "", "a", ""}},
		{"carriage returns stay", "a\r\nb\r\n", []string{"a\r", "b\r"}},
		{"zero bytes stay", "a\x00b\n", []string{"a\x00b"}},
		{"long", "a\n" + long + "\nb\n", []string{"a", long, "b"}},
		{"long at the end", long, []string{long}},
		{"as long as allowed", huge[1:] + "\n", []string{huge[1:]}},
		{"too long", "a\n" + huge + "\nb\n", []string{"a", "!", "b"}},
		{"too long at the end", huge, []string{"!"}},
		{"much too long", huge + huge + "\nb", []string{"!", "b"}},
	} {
		for _, r := range []struct {
			name string
			in   io.Reader
		}{{"whole", strings.NewReader(c.in)}, {"halves", iotest.HalfReader(strings.NewReader(c.in))}, {"data with error", iotest.DataErrReader(strings.NewReader(c.in))}} {
			t.Run(c.name+"/"+r.name, func(t *testing.T) {
				t.Parallel()
				l := newLines(r.in, 1<<20)
				var got []string
				for {
					line, err := l.next()
					if err == io.EOF {
						break
					}
					if tooLong := (*lineTooLong)(nil); errors.As(err, &tooLong) {
						if tooLong.number != int64(len(got)+1) {
							t.Errorf("line number %d, want %d", tooLong.number, len(got)+1)
						}
						got = append(got, "!")
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, string(line))
				}
				if len(got) != len(c.want) {
					t.Fatalf("%d lines, want %d", len(got), len(c.want))
				}
				for i := range got {
					if got[i] != c.want[i] {
						t.Errorf("line %d differs (%d bytes, want %d)", i+1, len(got[i]), len(c.want[i]))
					}
				}
			})
		}
	}
	l := newLines(iotest.TimeoutReader(strings.NewReader(strings.Repeat("z", 1<<20))), 1<<20)
	if _, err := l.next(); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a failing source gives %v", err)
	}
}
