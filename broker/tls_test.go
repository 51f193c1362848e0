package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// certificate makes a key and a certificate for 127.0.0.1, and names, that signs itself.
func certificate(t *testing.T, names ...string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "parley test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "EC PRIVATE KEY", keyDER)
}

func TestTLS(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t)
	b := brokertest.Start(t, func(c *broker.Config) { c.TLS = broker.TLS{Cert: cert, Key: key, ClientCA: cert} })
	use := []nats.Option{nats.RootCAs(cert), nats.ClientCert(cert, key)}
	nc := b.Connect(use...)
	if err := brokertest.Call(nc, wire.APITopicCreate, wire.TopicSpec{Name: "t"}, nil); err != nil {
		t.Fatal(err)
	}
	if ack, err := brokertest.Publish(nc, nats.NewMsg("t")); err != nil || ack.Offset != 0 {
		t.Errorf("%+v, %v", ack, err)
	}
	if nc, err := nats.Connect(b.URL(), nats.RootCAs(cert), nats.NoReconnect()); err == nil {
		// With TLS 1.3 a client hears of its missing certificate when it reads.
		if err := nc.FlushTimeout(brokertest.Wait); err == nil {
			t.Error("a client without a certificate was let in")
		}
		nc.Close()
	}
	if _, err := nats.Connect(b.URL(), nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12})); err == nil {
		t.Error("a certificate that nobody trusts was taken")
	}
}
