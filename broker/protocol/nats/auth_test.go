package nats

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

func TestClientAuth(t *testing.T) {
	t.Parallel()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	strange, err := stranger.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, Config{Authenticator: &Static{
		Users: []User{{Name: "alice", Password: "secret"}},
		Token: "t0ken",
		NKeys: []NKey{{Public: public}},
	}})
	cases := []struct {
		name   string
		option nats.Option
		good   bool
	}{
		{"password", nats.UserInfo("alice", "secret"), true},
		{"token", nats.Token("t0ken"), true},
		{"nkey", nats.Nkey(public, pair.Sign), true},
		{"wrong password", nats.UserInfo("alice", "Secret"), false},
		{"no password", nats.UserInfo("alice", ""), false},
		{"wrong token", nats.Token("t0kenn"), false},
		{"unknown nkey", nats.Nkey(strange, stranger.Sign), false},
		{"nkey of another", nats.Nkey(public, stranger.Sign), false},
		{"nothing", nats.Name("x"), false},
	}
	bad := uint64(0)
	for _, c := range cases {
		nc, err := nats.Connect(s.url(), c.option)
		if c.good {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			flush(t, nc)
			nc.Close()
			continue
		}
		bad++
		if !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	until(t, "failures are counted", func() bool { return s.Stats().AuthErrors == bad })
	s.broker.mu.Lock()
	defer s.broker.mu.Unlock()
	if len(s.broker.attached) != 3 || s.broker.attached[0].User != "alice" || s.broker.attached[0].Protocol != "nats" {
		t.Errorf("attached %+v", s.broker.attached)
	}
}

func TestClientPermissionErrorsKeepConnection(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{Authenticator: &Static{Users: []User{{Name: "a", Password: "b", Permissions: &Permissions{
		Publish:   Access{Allow: []string{"ok.>"}},
		Subscribe: Access{Allow: []string{"ok.>"}, Deny: []string{"ok.secret.>"}},
	}}}}})
	violations := make(chan error, 8)
	nc := dial(t, s, nats.UserInfo("a", "b"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violations <- err }))
	nc.Publish("no", nil)      //nolint:errcheck // the handler tells
	nc.SubscribeSync("no.sub") //nolint:errcheck // the handler tells
	for range 2 {
		select {
		case err := <-violations:
			if !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("got %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("no violation was told")
		}
	}
	// What is denied is left out of a wider subscription.
	sub := subscribe(t, nc, "ok.>")
	nc.Publish("ok.secret.x", nil) //nolint:errcheck // Flush tells
	nc.Publish("ok.y", nil)        //nolint:errcheck // Flush tells
	flush(t, nc)
	if m := next(t, sub); m.Subject != "ok.y" {
		t.Errorf("got %q", m.Subject)
	}
	if !nc.IsConnected() || s.Stats().Violations != 2 {
		t.Errorf("connected %v, %d violations", nc.IsConnected(), s.Stats().Violations)
	}
}

// authority makes certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	c := a.issue(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.key = c.PrivateKey.(*ecdsa.PrivateKey)
	var err error
	if a.cert, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(t testing.TB, template *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server(t testing.TB) tls.Certificate {
	return a.issue(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "broker"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

func (a *authority) client(t testing.TB) tls.Certificate {
	return a.issue(t, &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "client"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func TestClientTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := ca.server(t)
	trusting := nats.Secure(&tls.Config{RootCAs: ca.pool})
	client := nats.Secure(&tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{ca.client(t)}})
	other := newAuthority(t)
	forged := nats.Secure(&tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{other.client(t)}})

	exchange := func(t *testing.T, s *served, options ...nats.Option) {
		t.Helper()
		nc := dial(t, s, options...)
		sub := subscribe(t, nc, "s")
		payload := strings.Repeat("tls ", 100_000)
		nc.Publish("s", []byte(payload)) //nolint:errcheck // the next line tells
		if m := next(t, sub); string(m.Data) != payload {
			t.Errorf("payload of %d bytes came back wrong", len(m.Data))
		}
		if _, err := nc.TLSConnectionState(); err != nil {
			t.Errorf("TLS state: %v", err)
		}
	}
	t.Run("after INFO", func(t *testing.T) {
		t.Parallel()
		s := serve(t, Config{TLS: &tls.Config{Certificates: []tls.Certificate{server}}})
		exchange(t, s, trusting)
		if nc, err := nats.Connect(s.url()); err == nil {
			nc.Close()
			t.Error("a client that does not know the authority connected")
		}
	})
	t.Run("before INFO", func(t *testing.T) {
		t.Parallel()
		s := serve(t, Config{TLS: &tls.Config{Certificates: []tls.Certificate{server}}, TLSFirst: true})
		exchange(t, s, trusting, nats.TLSHandshakeFirst())
	})
	t.Run("client certificates", func(t *testing.T) {
		t.Parallel()
		s := serve(t, Config{TLS: &tls.Config{
			Certificates: []tls.Certificate{server}, ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
		}})
		exchange(t, s, client)
		for name, o := range map[string]nats.Option{"none": trusting, "forged": forged} {
			if nc, err := nats.Connect(s.url(), o); err == nil {
				nc.Close()
				t.Errorf("%s: connected", name)
			}
		}
	})
	t.Run("plain text", func(t *testing.T) {
		t.Parallel()
		s := serve(t, Config{TLS: &tls.Config{Certificates: []tls.Certificate{server}}})
		a := dialRaw(t, s)
		if info := a.line(t); !strings.Contains(info, `"tls_required":true`) {
			t.Errorf("got %s", info)
		}
		a.send(t, "CONNECT {}\r\n")
		a.expect(t, "-ERR 'Secure Connection - TLS Required'")
	})
	t.Run("silence", func(t *testing.T) {
		t.Parallel()
		s := serve(t, Config{TLS: &tls.Config{Certificates: []tls.Certificate{server}}, TLSTimeout: 20 * time.Millisecond})
		a := dialRaw(t, s)
		a.line(t)
		if line, err := a.read(); err == nil {
			t.Errorf("got %q", line)
		}
	})
	t.Run("stop during handshake", func(t *testing.T) {
		t.Parallel()
		s := serve(t, Config{TLS: &tls.Config{Certificates: []tls.Certificate{server}}, TLSTimeout: time.Minute})
		a := dialRaw(t, s)
		a.line(t)
		s.stop()
	})
}
