package raft

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// The guard of the Raft port. A link opens with a greeting, before either side
// believes a frame of the other (ADR 0090). All integers are big endian; d is the
// side that dials, l the one that listens:
//
//	d  hello      magic "PLYR" | version u8 = 2 | kind u8 | flags u8 | zero u8 | deployment u64 | nonce 32 bytes
//	l  challenge  answer u8 | nonce 32 bytes
//	d  proof      HMAC-SHA-256(secret, "parley raft 2 dial" | hello | challenge)
//	l  welcome    answer u8 | HMAC-SHA-256(secret, "parley raft 2 listen" | hello | challenge)
//
// Without a secret the challenge ends it. An answer other than 0 says why the link
// is refused and is the last byte. The dialling side proves itself first: a
// stranger learns nothing with which to guess the secret. What doesn't begin
// like a hello gets no answer at all.
//
// The secret keeps out whoever isn't a member. It does not encrypt, and whoever can
// change packets on the way can take over a link after the greeting: TLS is
// for networks where that is to be feared. Both may be used together.
const (
	helloMagic   = "PLYR"
	helloVersion = 2
	helloSize    = 16 + nonceSize
	nonceSize    = 32

	linkMessages = 1
	linkChunks   = 2

	flagSecret = 1

	// greetTimeout bounds each side's greeting as a whole, TLS included.
	greetTimeout = 5 * time.Second
)

// What a listener answers.
const (
	answerWelcome = iota
	answerVersion
	answerDeployment
	answerKind
	answerNeedsSecret
	answerNoSecret
	answerWrongSecret
	answerFull

	// answerTLS is how TLS begins to say that it doesn't understand.
	answerTLS = 21
	// answerNATS is how a peer or client port begins: it speaks first, INFO.
	answerNATS = 'I'
)

// ErrRefused: one side of a link between hosts would not have the other.
var ErrRefused = errors.New("raft link refused")

// refusal is what is told of an answer on both sides.
func refusal(answer byte) error {
	var why string
	switch answer {
	case answerVersion:
		why = "the two brokers' versions speak different protocols on the Raft port"
	case answerDeployment:
		why = "the brokers belong to different clusters"
	case answerKind:
		why = "unknown kind of link"
	case answerNeedsSecret:
		why = "the listening broker has a cluster secret and the dialling one has none"
	case answerNoSecret:
		why = "the dialling broker has a cluster secret and the listening one has none"
	case answerWrongSecret:
		why = "the cluster secrets differ"
	case answerFull:
		why = "the listening broker has as many links as it allows"
	case answerTLS:
		why = "the listening broker uses TLS and the dialling one does not"
	case answerNATS:
		why = "a peer or client port answers there: give the broker's Raft port"
	default:
		why = fmt.Sprintf("reason %d", answer)
	}
	return fmt.Errorf("%w: %s", ErrRefused, why)
}

// guard greets on both sides.
type guard struct {
	deployment uint64
	secret     []byte
	tls        *tls.Config // nil: none
}

// checkGuard looks at what a Config says about the guard.
func (c *Config) checkGuard() error {
	if c.TLS == nil {
		return nil
	}
	if c.TLS.ClientAuth != tls.RequireAndVerifyClientCert {
		return errors.New("configure raft: TLS doesn't require and verify the other side's certificate: set ClientAuth and ClientCAs")
	}
	if len(c.TLS.Certificates) == 0 && (c.TLS.GetCertificate == nil || c.TLS.GetClientCertificate == nil) {
		return errors.New("configure raft: TLS has no certificate for both listening and dialling")
	}
	if c.TLS.InsecureSkipVerify && c.TLS.VerifyPeerCertificate == nil && c.TLS.VerifyConnection == nil {
		return errors.New("configure raft: TLS doesn't verify the other side's certificate: InsecureSkipVerify is set")
	}
	return nil
}

func (g *guard) hello(kind byte) []byte {
	b := append(make([]byte, 0, helloSize), helloMagic...)
	flags := byte(0)
	if len(g.secret) > 0 {
		flags = flagSecret
	}
	b = append(b, helloVersion, kind, flags, 0)
	b = binary.BigEndian.AppendUint64(b, g.deployment)
	return b[:len(b)+copy(b[len(b):helloSize], newNonce())]
}

func newNonce() []byte {
	nonce := make([]byte, nonceSize)
	rand.Read(nonce) //nolint:errcheck // never fails
	return nonce
}

func (g *guard) prove(side string, hello, challenge []byte) []byte {
	h := hmac.New(sha256.New, g.secret)
	h.Write([]byte("parley raft 2 " + side))
	h.Write(hello)
	h.Write(challenge)
	return h.Sum(nil)
}

// admit greets on the listening side and returns the link to read from. The
// caller closes conn, whatever comes of it.
func (g *guard) admit(conn net.Conn) (_ net.Conn, kind byte, err error) {
	if err := conn.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return nil, 0, err
	}
	if g.tls != nil {
		t := tls.Server(conn, g.tls)
		if err := t.Handshake(); err != nil {
			return nil, 0, fmt.Errorf("%w: TLS: %w", ErrRefused, err)
		}
		conn = t
	}
	// Byte for byte as much as is needed to tell a stranger: one that sends less
	// than a hello and waits is cut off for what he sent, not for his silence.
	hello := make([]byte, helloSize)
	if _, err := io.ReadFull(conn, hello[:5]); err != nil {
		return nil, 0, err
	}
	if string(hello[:4]) != helloMagic {
		return nil, 0, fmt.Errorf("%w: it doesn't begin like a link of a broker: %q", ErrRefused, hello[:5])
	}
	if hello[4] != helloVersion {
		return nil, 0, refuse(conn, answerVersion)
	}
	if _, err := io.ReadFull(conn, hello[5:]); err != nil {
		return nil, 0, err
	}
	secret := hello[6]&flagSecret != 0
	kind = hello[5]
	switch {
	case binary.BigEndian.Uint64(hello[8:]) != g.deployment:
		return nil, 0, refuse(conn, answerDeployment)
	case kind != linkMessages && kind != linkChunks:
		return nil, 0, refuse(conn, answerKind)
	case len(g.secret) > 0 && !secret:
		return nil, 0, refuse(conn, answerNeedsSecret)
	case len(g.secret) == 0 && secret:
		return nil, 0, refuse(conn, answerNoSecret)
	}
	challenge := append([]byte{answerWelcome}, newNonce()...)
	if _, err := conn.Write(challenge); err != nil {
		return nil, 0, err
	}
	if secret {
		proof := make([]byte, sha256.Size)
		if _, err := io.ReadFull(conn, proof); err != nil {
			return nil, 0, err
		}
		if !hmac.Equal(proof, g.prove("dial", hello, challenge)) {
			return nil, 0, refuse(conn, answerWrongSecret)
		}
		welcome := append([]byte{answerWelcome}, g.prove("listen", hello, challenge)...)
		if _, err := conn.Write(welcome); err != nil {
			return nil, 0, err
		}
	}
	return conn, kind, conn.SetDeadline(time.Time{})
}

// refuse tells the dialling side why, and returns the same for the log.
func refuse(conn net.Conn, answer byte) error {
	_, _ = conn.Write([]byte{answer})
	return refusal(answer)
}

// enter greets on the dialling side and returns the link to write to. It closes
// conn when it fails.
func (g *guard) enter(ctx context.Context, conn net.Conn, address string, kind byte) (_ net.Conn, err error) {
	raw := conn
	defer func() {
		if err != nil {
			_ = raw.Close()
		}
	}()
	deadline := time.Now().Add(greetTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if g.tls != nil {
		c := g.tls
		if c.ServerName == "" {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			c = c.Clone()
			c.ServerName = host
		}
		t := tls.Client(conn, c)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("%w: TLS: %w", ErrRefused, err)
		}
		conn = t
	}
	hello := g.hello(kind)
	if _, err := conn.Write(hello); err != nil {
		return nil, err
	}
	challenge := make([]byte, 1+nonceSize)
	if err := readAnswer(conn, challenge); err != nil {
		return nil, err
	}
	if len(g.secret) > 0 {
		if _, err := conn.Write(g.prove("dial", hello, challenge)); err != nil {
			return nil, err
		}
		welcome := make([]byte, 1+sha256.Size)
		if err := readAnswer(conn, welcome); err != nil {
			return nil, err
		}
		if !hmac.Equal(welcome[1:], g.prove("listen", hello, challenge)) {
			return nil, refusal(answerWrongSecret)
		}
	}
	return conn, conn.SetDeadline(time.Time{})
}

// readAnswer reads b, unless its first byte says that nothing more will come.
func readAnswer(conn net.Conn, b []byte) error {
	if _, err := io.ReadFull(conn, b[:1]); err != nil {
		var op *net.OpError
		switch {
		case errors.Is(err, io.EOF):
			return fmt.Errorf("%w: closed without an answer: is it the Raft port of a broker, and do both sides use TLS or neither?", ErrRefused)
		case errors.As(err, &op) && op.Op == "remote error": // TLS 1.3 tells of a certificate after its handshake
			return fmt.Errorf("%w: TLS: %w", ErrRefused, err)
		}
		return err
	}
	if b[0] != answerWelcome {
		return refusal(b[0])
	}
	_, err := io.ReadFull(conn, b[1:])
	return err
}
