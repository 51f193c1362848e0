package broker

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"

	"github.com/parleymq/parley/replication/epoch"
)

// Bounds of a cluster secret, in bytes.
const (
	minSecret = 16
	maxSecret = 4096
)

// initial parses InitialCluster: nil for a broker that begins alone.
func (c *Config) initial() ([]epoch.Listed, error) {
	if c.InitialCluster == "" {
		return nil, nil
	}
	bad := func(allowed string) error {
		return &ConfigError{Key: "initial-cluster", Value: c.InitialCluster, Allowed: allowed}
	}
	list, err := epoch.ParseInitial(c.InitialCluster)
	if err != nil {
		return nil, bad(err.Error())
	}
	for _, l := range list {
		if l.Name != c.Name {
			continue
		}
		if c.AdvertisePeer != "" && c.AdvertisePeer != l.Address {
			return nil, bad(fmt.Sprintf("it has %s at %s, but advertise-peer is %s: they must be the same", l.Name, l.Address, c.AdvertisePeer))
		}
		return list, nil
	}
	if c.Join != "" {
		return nil, nil // it joins what the list forms
	}
	return nil, bad(fmt.Sprintf("it does not name this broker, %s: each broker is listed as name=host:port with its peer address", c.Name))
}

// loadSecret reads the secret's file, if there is one.
func (c *Config) loadSecret() error {
	if c.SecretFile != "" {
		b, err := os.ReadFile(c.SecretFile)
		if err != nil {
			return &ConfigError{Key: "cluster-secret-file", Value: c.SecretFile, Allowed: err.Error()}
		}
		c.Secret = bytes.TrimSpace(b)
	}
	if n := len(c.Secret); n > 0 && n < minSecret || n > maxSecret || c.SecretFile != "" && n == 0 {
		return &ConfigError{Key: "cluster-secret-file", Value: c.SecretFile,
			Allowed: fmt.Sprintf("the secret has %d bytes, %d to %d are allowed: make one with `head -c 32 /dev/urandom | base64`", n, minSecret, maxSecret)}
	}
	return nil
}

// load makes a TLS config of the files, or nil when none are named.
func (t PeerTLS) load() (*tls.Config, error) {
	if t.Cert == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, &ConfigError{Key: "peer-tls-cert", Value: t.Cert, Allowed: err.Error()}
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, &ConfigError{Key: "peer-tls-ca", Value: t.CA, Allowed: err.Error()}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, &ConfigError{Key: "peer-tls-ca", Value: t.CA, Allowed: "the file must hold PEM certificates"}
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	}, nil
}

// guarded refuses a listener that strangers could reach, unless peers have to
// prove themselves.
func (c *Config) guarded(key string, l net.Listener) error {
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok || a.IP.IsLoopback() || len(c.Secret) > 0 || c.PeerTLS.Cert != "" {
		return nil
	}
	return &ConfigError{Key: key, Value: l.Addr().String(),
		Allowed: "an address that is not loopback needs a cluster secret (cluster-secret-file) or mutual TLS (peer-tls-cert, peer-tls-key, peer-tls-ca), " +
			"so that only brokers of the cluster are let in"}
}
