package nats

import (
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net"

	"github.com/nats-io/nkeys"

	"github.com/parleymq/parley/broker/interest"
)

// Credentials are what a client showed in its CONNECT.
type Credentials struct {
	User, Password, Token string

	NKey      string // public key
	Signature string // of the nonce, base64
	JWT       string
	Nonce     string // that INFO gave to this connection

	Remote net.Addr
	TLS    *tls.ConnectionState // nil without TLS
}

// Identity is who a client turned out to be.
type Identity struct {
	User        string
	Permissions *Permissions // nil for DefaultPermissions
}

// ErrDenied is what an Authenticator answers to wrong credentials.
var ErrDenied = errors.New("credentials denied")

// Denial is an Authenticator's answer that tells the client why, where that is no
// secret: "Authorization Violation: " and the text. What the log has to know of it, the Authenticator
// has said.
type Denial struct{ Text string }

func (d *Denial) Error() string { return d.Text }

// An Authenticator decides who may connect. It is called from the connection's
// own goroutine and may take as long as Config.AuthTimeout.
type Authenticator interface {
	Authenticate(*Credentials) (Identity, error)
}

// Permissions of a client. An empty Allow allows everything; Deny wins.
type Permissions struct {
	Publish   Access
	Subscribe Access
}

// Access is a list of subject filters each.
type Access struct {
	Allow []string
	Deny  []string
}

// DefaultPermissions keep clients from subscribing to requests that are the
// broker's to answer, and to replies on their way to another broker. They may send
// them, and everything else is free.
var DefaultPermissions = &Permissions{
	Subscribe: Access{Deny: []string{"$PARLEY.API.>", "$PARLEY.PUB.>", "$PARLEY.FETCH.>", "$PARLEY.GROUP.>", "$PARLEY.NEXT.>", "$PARLEY.ACK.>", "_PARLEY.>"}},
}

// permits reports whether all of the subject or filter is allowed and not
// all of it denied.
func permits[S ~string | ~[]byte](a *Access, subject S) bool {
	for _, d := range a.Deny {
		if interest.Match(d, subject) {
			return false
		}
	}
	if len(a.Allow) == 0 {
		return true
	}
	for _, f := range a.Allow {
		if interest.Match(f, subject) {
			return true
		}
	}
	return false
}

// restricts reports whether some of what the filter matches is denied, so that
// deliveries must be looked at one by one.
func (a *Access) restricts(filter string) bool {
	for _, d := range a.Deny {
		if interest.Overlap(d, filter) {
			return true
		}
	}
	return false
}

// Static is an Authenticator with fixed credentials. Any one of them will do.
type Static struct {
	Users []User
	Token string // "" for none
	NKeys []NKey
}

// User with a password.
type User struct {
	Name, Password string
	Permissions    *Permissions
}

// NKey is the public key of a user who signs the nonce.
type NKey struct {
	Public      string
	Permissions *Permissions
}

// Authenticate implements Authenticator.
func (s *Static) Authenticate(c *Credentials) (Identity, error) {
	if c.NKey != "" {
		for i := range s.NKeys {
			if k := &s.NKeys[i]; k.Public == c.NKey && signed(c) {
				return Identity{User: k.Public, Permissions: k.Permissions}, nil
			}
		}
		return Identity{}, ErrDenied
	}
	if s.Token != "" && same(c.Token, s.Token) {
		return Identity{User: "token"}, nil
	}
	for i := range s.Users {
		u := &s.Users[i]
		if c.User == u.Name && same(c.Password, u.Password) {
			return Identity{User: u.Name, Permissions: u.Permissions}, nil
		}
	}
	return Identity{}, ErrDenied
}

func same(given, want string) bool {
	return subtle.ConstantTimeCompare([]byte(given), []byte(want)) == 1
}

func signed(c *Credentials) bool {
	key, err := nkeys.FromPublicKey(c.NKey)
	if err != nil {
		return false
	}
	// Clients use the URL alphabet without padding; some old ones the other.
	signature, err := base64.RawURLEncoding.DecodeString(c.Signature)
	if err != nil {
		if signature, err = base64.StdEncoding.DecodeString(c.Signature); err != nil {
			return false
		}
	}
	return key.Verify([]byte(c.Nonce), signature) == nil
}
