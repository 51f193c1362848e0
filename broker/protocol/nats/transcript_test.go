package nats

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTranscripts plays testdata/transcripts; its README.md explains them.
func TestTranscripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/transcripts/*.txt")
	if err != nil || len(files) < 15 {
		t.Fatalf("transcripts: %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			play(t, strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"))
		})
	}
}

func play(t *testing.T, lines []string) {
	b := newFakeBroker()
	var c Config
	for len(lines) > 0 {
		rest, isSetting := strings.CutPrefix(lines[0], "set ")
		if !isSetting && !strings.HasPrefix(lines[0], "#") {
			break
		}
		if isSetting {
			configure(t, &c, b, strings.Fields(rest))
		}
		lines = lines[1:]
	}
	s := serveBroker(t, c, b)
	actors := make(map[byte]*rawClient)
	for i, line := range lines {
		if line == "" || line[0] == '#' {
			continue
		}
		if len(line) < 2 {
			t.Fatalf("line %q is no step", line)
		}
		op, text := line[1], strings.TrimPrefix(line[2:], " ")
		a := actors[line[0]]
		if a == nil {
			a = dialRaw(t, s)
			actors[line[0]] = a
			if op != '~' {
				a.line(t)
			}
		}
		switch {
		case strings.HasPrefix(line[1:], ">>"):
			raw, err := strconv.Unquote(strings.TrimSpace(line[3:]))
			if err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			a.send(t, raw)
		case op == '>':
			a.send(t, text+"\r\n")
		case op == '<' || op == '~':
			got, err := a.read()
			if err != nil {
				t.Fatalf("step %d: %q: %v", i, line, err)
			}
			if op == '<' && got != text || !strings.HasPrefix(got, text) {
				t.Fatalf("step %d: got %q, want %q", i, got, text)
			}
		case op == '!':
			if got, err := a.read(); !errors.Is(err, io.EOF) {
				t.Fatalf("step %d: got %q, %v; want the end", i, got, err)
			}
			a.conn.Close()
		default:
			t.Fatalf("line %q is no step", line)
		}
	}
}

func configure(t *testing.T, c *Config, b *fakeBroker, setting []string) {
	t.Helper()
	number := func() int {
		n, err := strconv.Atoi(setting[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	duration := func() time.Duration {
		d, err := time.ParseDuration(setting[1])
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	permissions := func() *Permissions { return c.Authenticator.(*Static).Users[0].Permissions }
	switch setting[0] {
	case "max_subscriptions":
		c.MaxSubscriptions = number()
	case "max_connections":
		c.MaxConnections = number()
	case "max_payload":
		b.info.MaxPayload = int64(number())
	case "auth_timeout":
		c.AuthTimeout = duration()
	case "ping_interval":
		c.PingInterval = duration()
	case "user":
		c.Authenticator = &Static{Users: []User{{Name: setting[1], Password: setting[2], Permissions: &Permissions{}}}}
	case "publish_allow":
		permissions().Publish.Allow = setting[1:]
	case "publish_deny":
		permissions().Publish.Deny = setting[1:]
	case "subscribe_allow":
		permissions().Subscribe.Allow = setting[1:]
	case "subscribe_deny":
		permissions().Subscribe.Deny = setting[1:]
	default:
		t.Fatalf("no setting %q", setting[0])
	}
}

// rawClient speaks the protocol by hand.
type rawClient struct {
	conn net.Conn
	in   *bufio.Reader
}

func dialRaw(t testing.TB, s *served) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &rawClient{conn: conn, in: bufio.NewReader(conn)}
}

// connectRaw is dialRaw, past INFO and CONNECT.
func connectRaw(t testing.TB, s *served, options string) *rawClient {
	t.Helper()
	a := dialRaw(t, s)
	a.line(t)
	a.send(t, "CONNECT {\"verbose\":false"+options+"}\r\nPING\r\n")
	a.expect(t, "PONG")
	return a
}

func (a *rawClient) send(t testing.TB, s string) {
	t.Helper()
	if err := a.trySend(s); err != nil {
		t.Fatal(err)
	}
}

func (a *rawClient) trySend(s string) error {
	a.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err := io.WriteString(a.conn, s)
	return err
}

func (a *rawClient) read() (string, error) {
	a.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	line, err := a.in.ReadString('\n')
	if err == nil && !strings.HasSuffix(line, "\r\n") {
		err = fmt.Errorf("line %q does not end in CRLF", line)
	}
	return strings.TrimSuffix(line, "\r\n"), err
}

func (a *rawClient) line(t testing.TB) string {
	t.Helper()
	line, err := a.read()
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func (a *rawClient) expect(t testing.TB, lines ...string) {
	t.Helper()
	for _, want := range lines {
		if got := a.line(t); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}
