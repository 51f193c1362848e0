package raft

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/replication/replicationtest"
)

// logged is a writer for a logger that several goroutines use.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newAuthority makes certificates of one authority, for 127.0.0.1.
func newAuthority(t *testing.T) func() *tls.Config {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	root, err := x509.ParseCertificate(caDER)
	must(err)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "broker"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), caKey)
	must(err)
	return func() *tls.Config {
		return &tls.Config{
			MinVersion:   tls.VersionTLS13,
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
			RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		}
	}
}

// startTransport listens; what arrives is counted.
func startTransport(t *testing.T, c Config, log io.Writer) (*transport, chan raftpb.MessageBatch) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Dir, c.Logger = t.TempDir(), zerolog.New(log)
	if c, err = c.withDefaults(); err != nil {
		t.Fatal(err)
	}
	tr := newTransport(l, &c, func(event string, err error) { c.Logger.Warn().Err(err).Msg(event) })
	got := make(chan raftpb.MessageBatch, 64)
	tr.Create(nilConfig, func(b raftpb.MessageBatch) { got <- b }, func(raftpb.Chunk) bool { return true })
	if err := tr.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr, got
}

// A peer that restarted while a link to it was idle gets the first message.
func TestIdleLinkOutlivesPeer(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t)
	for _, c := range []Config{{}, {Secret: []byte("a secret of the cluster")}, {TLS: ours()}} {
		var log logged
		listener, got := startTransport(t, c, &log)
		dialler, _ := startTransport(t, c, &log)
		conn, err := dialler.GetConnection(t.Context(), listener.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for n := range uint64(3) {
			if err := conn.SendMessageBatch(raftpb.MessageBatch{DeploymentId: n + 1}); err != nil {
				t.Fatalf("batch %d: %v", n, err)
			}
			if b := <-got; b.DeploymentId != n+1 {
				t.Fatalf("batch %d came as %d", n, b.DeploymentId)
			}
			listener.mu.Lock()
			for l := range listener.links {
				_ = l.Close()
			}
			listener.mu.Unlock()
			<-conn.(*messageLink).gone
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		if err := conn.SendMessageBatch(raftpb.MessageBatch{}); err == nil {
			t.Error("a peer that has gone for good gets messages")
		}
	}
}

// Who gets in, who doesn't, and what both sides are told.
func TestGuard(t *testing.T) {
	t.Parallel()
	ours, theirs := newAuthority(t), newAuthority(t)
	one, other := []byte("a secret of the cluster"), []byte("another cluster's secret")
	for _, c := range []struct {
		name         string
		dial, listen Config
		want         string // "" gets in
		quiet        bool   // the listening side may not know why
	}{
		{name: "nothing"},
		{name: "secret", dial: Config{Secret: one}, listen: Config{Secret: one}},
		{name: "tls", dial: Config{TLS: ours()}, listen: Config{TLS: ours()}},
		{name: "both", dial: Config{TLS: ours(), Secret: one}, listen: Config{TLS: ours(), Secret: one}},
		{name: "wrong secret", dial: Config{Secret: other}, listen: Config{Secret: one}, want: "the cluster secrets differ"},
		{name: "no secret here", dial: Config{}, listen: Config{Secret: one}, want: "the dialling one has none"},
		{name: "no secret there", dial: Config{Secret: one}, listen: Config{}, want: "the listening one has none"},
		{name: "another cluster", dial: Config{Deployment: 2, Secret: one}, listen: Config{Deployment: 1, Secret: one}, want: "different clusters"},
		{name: "foreign certificate", dial: Config{TLS: theirs()}, listen: Config{TLS: ours()}, want: "TLS"},
		{name: "plain to tls", dial: Config{}, listen: Config{TLS: ours()}, want: "TLS"},
		{name: "tls to plain", dial: Config{TLS: ours()}, listen: Config{}, want: ""},
		{name: "tls, wrong secret", dial: Config{TLS: ours(), Secret: other}, listen: Config{TLS: ours(), Secret: one}, want: "the cluster secrets differ"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var there, here logged
			listener, got := startTransport(t, c.listen, &there)
			dialler, _ := startTransport(t, c.dial, &here)
			address := listener.listener.Addr().String()
			refused := c.want != "" || (c.dial.TLS == nil) != (c.listen.TLS == nil)
			for range 3 { // which make one log line on each side
				conn, err := dialler.GetConnection(t.Context(), address)
				if refused {
					if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
						t.Fatalf("link: %v, want a refusal that says %q", err, c.want)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if err := conn.SendMessageBatch(raftpb.MessageBatch{DeploymentId: 7, BinVer: 210}); err != nil {
					t.Fatal(err)
				}
				if b := <-got; b.DeploymentId != 7 {
					t.Fatalf("got %+v", b)
				}
			}
			if !refused {
				return
			}
			for side, log := range map[string]*logged{"here": &here, "there": &there} {
				deadline := time.Now().Add(10 * time.Second)
				for strings.Count(log.String(), "\n") == 0 {
					if time.Now().After(deadline) {
						t.Fatalf("%s: nothing was logged", side)
					}
					time.Sleep(time.Millisecond)
				}
				if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "127.0.0.1:") || !strings.Contains(s, c.want) {
					t.Errorf("%s: want one line that says %q with the address, got\n%s", side, c.want, s)
				}
			}
		})
	}
}

// A listener that doesn't know the secret isn't believed, though it welcomes everybody.
func TestGuardFalseListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, helloSize))
			_, _ = conn.Write(make([]byte, 1+nonceSize))
			_, _ = io.ReadFull(conn, make([]byte, 32))
			_, _ = conn.Write(make([]byte, 1+32))
			_ = conn.Close()
		}
	}()
	tr, _ := startTransport(t, Config{Secret: []byte("a secret of the cluster")}, io.Discard)
	if _, err := tr.GetConnection(t.Context(), l.Addr().String()); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "secrets differ") {
		t.Fatalf("link: %v", err)
	}
}

// A recorded greeting opens nothing a second time.
func TestGuardReplay(t *testing.T) {
	t.Parallel()
	secret := []byte("a secret of the cluster")
	tr, _ := startTransport(t, Config{Secret: secret}, io.Discard)
	var sent []byte
	first, err := net.Dial("tcp", tr.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	spy := recorder{first, &sent}
	if _, err := tr.guard.enter(t.Context(), spy, tr.listener.Addr().String(), linkMessages); err != nil {
		t.Fatal(err)
	}
	again, err := net.Dial("tcp", tr.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Write(sent); err != nil {
		t.Fatal(err)
	}
	_ = again.SetReadDeadline(time.Now().Add(10 * time.Second))
	answers, err := io.ReadAll(again)
	if len(answers) != 1+nonceSize+1 || answers[len(answers)-1] != answerWrongSecret {
		t.Fatalf("answered %x, %v", answers, err)
	}
}

type recorder struct {
	net.Conn
	sent *[]byte
}

func (r recorder) Write(b []byte) (int, error) {
	*r.sent = append(*r.sent, b...)
	return r.Conn.Write(b)
}

// Those who say nothing hold no places that members need, and not for ever.
func TestGuardSilence(t *testing.T) {
	t.Parallel()
	tr, got := startTransport(t, Config{}, io.Discard)
	address := tr.listener.Addr().String()
	var silent []net.Conn
	defer func() {
		for _, c := range silent {
			_ = c.Close()
		}
	}()
	for range maxGreetings + 10 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	start := time.Now()
	for {
		conn, err := tr.GetConnection(t.Context(), address)
		if err == nil {
			defer conn.Close()
			if err := conn.SendMessageBatch(raftpb.MessageBatch{DeploymentId: 1}); err != nil {
				t.Fatal(err)
			}
			<-got
			break
		}
		if time.Since(start) > 2*greetTimeout {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Strangers on the Raft port are turned away, and harm nobody.
func TestStrangers(t *testing.T) {
	t.Parallel()
	h := mustHost(t, testConfig(t.TempDir()))
	l := mustLead(t, h, replicationtest.NewLedger(nil))
	hello := func(deployment uint64, kind byte) []byte {
		return (&guard{deployment: deployment}).hello(kind)
	}
	wrongVersion := hello(1, linkMessages)
	wrongVersion[4] = 9
	welcome := 1 + nonceSize
	for name, c := range map[string]struct {
		sent    []byte
		answers int // bytes
	}{
		"http":       {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 0},
		"deployment": {hello(2, linkMessages), 1},
		"version":    {wrongVersion, 1},
		"kind":       {hello(1, 3), 1},
		"messages":   {append(hello(1, linkMessages), frame([]byte("\xff\xff\xff"))...), welcome},
		"chunks":     {append(hello(1, linkChunks), frame([]byte("\xff\xff\xff"))...), welcome},
		"giant":      {append(hello(1, linkMessages), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0), welcome},
	} {
		conn, err := net.Dial("tcp", h.Address())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(c.sent); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		answer, err := io.ReadAll(conn)
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			t.Errorf("%s: was not cut off", name)
		}
		if len(answer) != c.answers && err == nil {
			t.Errorf("%s: %d bytes of answer, want %d", name, len(answer), c.answers)
		}
		_ = conn.Close()
	}
	mustPropose(t, l, "still here")
}

// The configuration is refused when it would let anybody in.
func TestGuardConfig(t *testing.T) {
	t.Parallel()
	ours := newAuthority(t)
	open, noCert := ours(), ours()
	open.ClientAuth = tls.NoClientCert
	noCert.Certificates = nil
	for want, c := range map[string]*tls.Config{"certificate": open, "no certificate": noCert} {
		if _, err := (Config{Dir: "x", TLS: c}).withDefaults(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestComplaints(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	c := newComplaints()
	c.clock = func() time.Time { return now }
	if _, ok := c.due("a"); !ok {
		t.Error("the first is not due")
	}
	for range 3 {
		if _, ok := c.due("a"); ok {
			t.Error("the second is due at once")
		}
	}
	now = now.Add(complainEvery)
	if n, ok := c.due("a"); !ok || n != 3 {
		t.Errorf("after the interval: %d, %v", n, ok)
	}
	lines := 0
	for i := range 10 * maxComplaints {
		if _, ok := c.due(fmt.Sprint(i)); ok {
			lines++
		}
	}
	if lines > maxComplaints+1 || len(c.of) > maxComplaints+1 {
		t.Errorf("%d lines, %d hosts kept", lines, len(c.of))
	}
}

// Whatever a frame holds, decoding it is an error at worst.
func FuzzDecode(f *testing.F) {
	b, _ := (&raftpb.MessageBatch{DeploymentId: 1, Requests: []raftpb.Message{{Entries: []raftpb.Entry{{Cmd: []byte("x")}}}}}).Marshal()
	f.Add(b)
	b, _ = (&raftpb.Chunk{ShardID: 1, Data: []byte("x")}).Marshal()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var batch raftpb.MessageBatch
		var chunk raftpb.Chunk
		_ = decode(&batch, b)
		_ = decode(&chunk, b)
	})
}
