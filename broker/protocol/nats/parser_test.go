package nats

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

var testLimits = frameLimits{controlLine: 4096, payload: 1 << 20, headers: true}

// parsed renders all frames that come from r through a window, as a connection
// reads them, and the error that ends them.
func parsed(l *frameLimits, r io.Reader) (frames []string, err error) {
	var (
		w    window
		f    frame
		need int
	)
	for {
		n, readErr := w.fill(r, need)
		if n > 0 {
			for buf := w.unread(); len(buf) >= max(need, 1); buf = w.unread() {
				var n int
				n, need, err = l.parse(buf, &f)
				if err != nil {
					return frames, err
				}
				if n == 0 {
					if need <= len(buf) {
						panic(fmt.Sprintf("needs %d bytes and has %d", need, len(buf)))
					}
					break
				}
				frames = append(frames, fmt.Sprintf("%d %q %q %q %q %q %d %q %q", f.verb, f.arg, f.subject, f.reply, f.queue, f.sid, f.max, f.header, f.payload))
				w.consume(n)
				need = 0
			}
		}
		if readErr != nil {
			return frames, nil
		}
	}
}

const mixed = "CONNECT {\"verbose\":false}\r\nPING\r\nSUB foo.* q 1\r\nsub bar 22\r\nPUB foo.a 5\r\nhello\r\n" +
	"PUB foo.b re.ply 0\r\n\r\nHPUB h 12 14\r\nNATS/1.0\r\n\r\nhi\r\nHPUB h r 12 12\r\nNATS/1.0\r\n\r\n\r\nUNSUB 1 5\r\nUNSUB 22\r\nPONG\r\n+OK\r\n-ERR 'x'\r\nPUB a 4\r\n\r\n\r\n\r\n"

// TestSplitReads: wherever reads split the bytes, the frames are the same.
func TestSplitReads(t *testing.T) {
	t.Parallel()
	for _, ending := range []string{"", "BAD\r\n", "PUB a 9999999\r\n", "SUB " + strings.Repeat("x", 4097) + " 1\r\n", "PUB a 1\r\nxx\r\n"} {
		all := mixed + ending
		want, wantErr := parsed(&testLimits, strings.NewReader(all))
		if len(want) != 14 || (wantErr == nil) != (ending == "") {
			t.Fatalf("%d frames, %v", len(want), wantErr)
		}
		compare := func(how string, r io.Reader) {
			got, err := parsed(&testLimits, r)
			if strings.Join(got, "\n") != strings.Join(want, "\n") || !errors.Is(err, wantErr) {
				t.Fatalf("%s, ending %.10q: %d frames, %v\n%q\nwant %d, %v", how, ending, len(got), err, got, len(want), wantErr)
			}
		}
		for i := range all {
			compare(fmt.Sprintf("split at %d", i), io.MultiReader(strings.NewReader(all[:i]), strings.NewReader(all[i:])))
		}
		compare("byte by byte", iotest.OneByteReader(strings.NewReader(all)))
		compare("half reads", iotest.HalfReader(strings.NewReader(all)))
	}
}

// TestSplitReadsOfConnection splits what a socket brings, too.
func TestSplitReadsOfConnection(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{})
	a := connectRaw(t, s, `,"headers":true`)
	const all = "SUB s 1\r\nHPUB s re.ply 12 17\r\nNATS/1.0\r\n\r\nhello\r\nPUB s 3\r\nxyz\r\nUNSUB 1\r\nPING\r\n"
	for i := 1; i < len(all); i++ {
		a.send(t, all[:i])
		// The server answers nothing until it has the rest; a second client's round
		// trip gives it the chance to read the first part alone.
		if i%8 == 0 {
			connectRaw(t, s, "").conn.Close()
		}
		a.send(t, all[i:])
		a.expect(t, "HMSG s 1 re.ply 12 17", "NATS/1.0", "", "hello", "MSG s 1 3", "xyz", "PONG")
	}
}

func TestControlLineLimit(t *testing.T) {
	t.Parallel()
	exact := "SUB " + strings.Repeat("s", 4096-2) + " 1"
	cases := []struct {
		name, in string
		err      error
	}{
		{"exact", exact + "\r\n", nil},
		{"exact without carriage return", exact + "\n", nil},
		{"one more", exact + "1\r\n", errControlLine},
		{"one more without carriage return", exact + "1\n", errControlLine},
		{"exact and no end yet", exact + "\r", nil},
		{"one more and no end yet", exact + "1\r", errControlLine},
		{"no end ever", "CONNECT " + strings.Repeat("x", 1<<20), errControlLine},
		{"blanks without end", "PUB " + strings.Repeat(" ", 1<<20), errControlLine},
	}
	for _, c := range cases {
		for how, r := range map[string]io.Reader{
			"whole":        strings.NewReader(c.in),
			"byte by byte": iotest.OneByteReader(strings.NewReader(c.in)),
		} {
			if _, err := parsed(&testLimits, r); !errors.Is(err, c.err) {
				t.Errorf("%s, %s: %v, want %v", c.name, how, err, c.err)
			}
		}
	}
}

// TestWindowGivesMemoryForBytesThatCame: a claim of a large payload costs nothing.
func TestWindowGivesMemoryForBytesThatCame(t *testing.T) {
	t.Parallel()
	var w window
	l := testLimits
	var f frame
	w.fill(strings.NewReader("PUB a 1000000\r\nabc"), 0)
	n, need, err := l.parse(w.unread(), &f)
	if n != 0 || need != 15+1000000+2 || err != nil {
		t.Fatalf("%d %d %v", n, need, err)
	}
	if len(w.buf) > 2*minWindow {
		t.Errorf("%d bytes held for a claim", len(w.buf))
	}
	rest := io.MultiReader(bytes.NewReader(make([]byte, 1000000-3)), strings.NewReader("\r\n"))
	for len(w.unread()) < need {
		if _, err := w.fill(rest, need); err != nil {
			t.Fatal(err)
		}
	}
	if n, _, err = l.parse(w.unread(), &f); n != need || err != nil || len(f.payload) != 1000000 {
		t.Fatalf("%d %v", n, err)
	}
	w.consume(n)
	if len(w.buf) > 4<<20 {
		t.Errorf("window of %d bytes for a frame of 1 MB", len(w.buf))
	}
	for range 200 {
		w.fill(strings.NewReader("PING\r\n"), 0)
		w.consume(6)
	}
	if len(w.buf) != minWindow {
		t.Errorf("window has %d bytes after small reads", len(w.buf))
	}
	w.resize(largeWindow)
	w.fill(strings.NewReader("PI"), 0)
	w.quiet()
	if len(w.buf) != minWindow || string(w.unread()) != "PI" {
		t.Errorf("quiet window has %d bytes and %q", len(w.buf), w.unread())
	}
}

// FuzzParser: whatever comes, in whatever pieces, the parser does not panic,
// keeps its limits and sees the same frames.
func FuzzParser(f *testing.F) {
	f.Add([]byte(mixed), uint64(1))
	f.Add([]byte("PUB a 99999999999999999999\r\n"), uint64(2))
	f.Add([]byte("HPUB a 3 2\r\nabc\r\n"), uint64(3))
	f.Add([]byte("pUb\ta\t \t2\r\nab\r\nPING"), uint64(4))
	f.Add([]byte("SUB "+strings.Repeat("a.", 3000)+" 1\r\n"), uint64(5))
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		l := frameLimits{controlLine: 64, payload: 1000, headers: true}
		want, wantErr := parsed(&l, bytes.NewReader(in))
		r := rand.New(rand.NewPCG(seed, 0))
		got, err := parsed(&l, &pieces{in: in, random: r})
		if strings.Join(got, "\n") != strings.Join(want, "\n") || !errors.Is(err, wantErr) {
			t.Fatalf("in pieces: %q, %v\nwhole: %q, %v", got, err, want, wantErr)
		}
	})
}

type pieces struct {
	in     []byte
	random *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.in[:1+p.random.IntN(min(len(p.in), 20))])
	p.in = p.in[n:]
	return n, nil
}

func BenchmarkParsePub128(b *testing.B) {
	one := "PUB orders.eu.new _INBOX.abcdefghijklmnop.1 128\r\n" + strings.Repeat("x", 128) + "\r\n"
	buf := []byte(strings.Repeat(one, 100))
	var f frame
	b.SetBytes(int64(len(one)))
	b.ReportAllocs()
	rest := buf
	for b.Loop() {
		n, _, err := testLimits.parse(rest, &f)
		if err != nil || n != len(one) {
			b.Fatal(n, err)
		}
		if rest = rest[n:]; len(rest) == 0 {
			rest = buf
		}
	}
}
