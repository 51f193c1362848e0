package mesh

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/rs/zerolog"

	frontend "github.com/parleymq/parley/broker/protocol/nats"
)

// Identity of a broker as it shows it to others. Cluster and Broker are empty
// before bootstrap. As the sender of a request, Broker is 0 for one that the
// newest epoch does not name.
type Identity struct {
	Cluster     string `json:"cluster,omitempty"`
	Broker      uint64 `json:"broker,omitempty"`
	Name        string `json:"name"`
	Incarnation string `json:"incarnation"`
}

func (i Identity) String() string {
	return fmt.Sprintf("broker %s (id %d, incarnation %s)", i.Name, i.Broker, i.Incarnation)
}

// Peer is another broker as an epoch names it. An empty Incarnation stands for
// any, which is right only while a cluster is being made.
type Peer struct {
	Broker      uint64 `json:"broker"`
	Name        string `json:"name"`
	Incarnation string `json:"incarnation"`
	Address     string `json:"address"`
}

// is reports whether the peer is the broker that calls itself so.
func (p *Peer) is(i *Identity) bool {
	if p.Incarnation != "" {
		return p.Incarnation == i.Incarnation && (i.Broker == 0 || i.Broker == p.Broker)
	}
	return i.Broker != 0 && i.Broker == p.Broker || i.Name != "" && i.Name == p.Name
}

// protocolVersion of the mesh; a peer that speaks another one is refused.
const protocolVersion = 1

// kind of a link.
type kind string

const (
	kindControl kind = "control"
	kindData    kind = "data"
	kindAsk     kind = "ask" // a single request, from whoever may not be a member yet
)

// hello is what the dialling side says of itself and of whom it means to reach.
// It is the token of CONNECT; with a cluster secret its signature is that of
// INFO's nonce and the token.
type hello struct {
	Version int  `json:"parley_mesh"`
	Kind    kind `json:"kind"`
	Identity
	ToBroker      uint64 `json:"to_broker,omitempty"`
	ToIncarnation string `json:"to_incarnation,omitempty"`
	Challenge     string `json:"challenge"`
}

// welcome is the listening side's answer. Proof shows that it knows the secret,
// too.
type welcome struct {
	Version int `json:"parley_mesh"`
	Identity
	Window int64  `json:"window"` // bytes under way on a data link, at most
	Proof  string `json:"proof,omitempty"`
}

// nkeyMark stands in CONNECT where a client has its public key: the signature
// beside it is a proof of the cluster secret.
const nkeyMark = "parley-cluster-secret"

func proof(secret []byte, side string, parts ...string) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte("parley mesh 1 "))
	h.Write([]byte(side))
	for _, p := range parts {
		h.Write([]byte{0})
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}

func (w *welcome) prove(secret []byte, challenge string) []byte {
	return proof(secret, "listen", challenge, w.Cluster, fmt.Sprint(w.Broker), w.Name, w.Incarnation, fmt.Sprint(w.Window))
}

func randomText() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Reason of a refusal.
type Reason string

// Reasons.
const (
	RefusedClient      Reason = "client"      // no peer at all
	RefusedVersion     Reason = "version"     // of the mesh protocol
	RefusedSecret      Reason = "secret"      // wrong, missing on one side
	RefusedCluster     Reason = "cluster"     // another cluster's broker
	RefusedBroker      Reason = "broker"      // the address leads to another broker than the one meant
	RefusedIncarnation Reason = "incarnation" // the newest epoch known there does not name it
	RefusedSelf        Reason = "self"        // the address leads back to the broker itself
)

// RefusedError says why one side would not have the other.
type RefusedError struct {
	Reason Reason
	Text   string
}

func (e *RefusedError) Error() string { return "peer refused (" + string(e.Reason) + "): " + e.Text }

// Is compares by reason.
func (e *RefusedError) Is(target error) bool {
	t, ok := target.(*RefusedError)
	return ok && t.Reason == e.Reason
}

// ErrSelf is what dialling oneself comes to, for errors.Is.
var ErrSelf = &RefusedError{Reason: RefusedSelf}

func refuse(r Reason, format string, args ...any) *RefusedError {
	return &RefusedError{r, fmt.Sprintf(format, args...)}
}

// refusalIn finds the listening side's refusal in what nats.go makes of -ERR.
func refusalIn(err error) error {
	text := err.Error()
	_, text, found := strings.Cut(text, "peer refused (")
	if !found {
		return err
	}
	reason, text, found := strings.Cut(text, "): ")
	if !found {
		return err
	}
	return &RefusedError{Reason(reason), text}
}

// gate is the Authenticator of the peer port.
type gate struct{ m *Mesh }

// Authenticate implements nats.Authenticator. The identity's user is the hello,
// for Attach.
func (g gate) Authenticate(c *frontend.Credentials) (frontend.Identity, error) {
	h, err := g.m.admit(c)
	if err != nil {
		g.m.stats.refused.Add(1)
		var refused *RefusedError
		if errors.As(err, &refused) {
			level := zerolog.WarnLevel
			if refused.Reason == RefusedIncarnation && g.m.Self().Broker == 0 {
				level = zerolog.DebugLevel // no epoch names anybody here yet: the cluster is forming
			}
			g.m.log.WithLevel(level).Str("reason", string(refused.Reason)).Str("remote", c.Remote.String()).
				Str("peer", h.Name).Msg("peer refused: " + refused.Text)
			return frontend.Identity{}, &frontend.Denial{Text: refused.Error()}
		}
		return frontend.Identity{}, err
	}
	user, err := json.Marshal(h)
	if err != nil {
		return frontend.Identity{}, fmt.Errorf("encode hello: %w", err)
	}
	return frontend.Identity{User: string(user), Permissions: peerPermissions}, nil
}

var peerPermissions = &frontend.Permissions{
	Publish:   frontend.Access{Allow: []string{subjectPrefix + ">"}},
	Subscribe: frontend.Access{Allow: []string{answerPrefix + "*"}},
}

// admit decides who may open a link. Whoever doesn't know the secret learns
// nothing beyond that.
func (m *Mesh) admit(c *frontend.Credentials) (hello, error) {
	var h hello
	self := m.Self()
	if json.Unmarshal([]byte(c.Token), &h) != nil || h.Version == 0 {
		h = hello{Identity: Identity{Name: c.User}}
		return h, refuse(RefusedClient, "this is the port for peers of broker %s, clients connect to its client port (4222 by default)", self.Name)
	}
	if err := m.checkSecret(c); err != nil {
		return h, err
	}
	if h.Version != protocolVersion {
		return h, refuse(RefusedVersion, "%v speaks version %d of the mesh protocol, %v speaks %d", h.Identity, h.Version, self, protocolVersion)
	}
	if err := meets(&self, &h.Identity, h.ToBroker, h.ToIncarnation); err != nil {
		return h, err
	}
	return h, m.identify(&h)
}

func (m *Mesh) checkSecret(c *frontend.Credentials) error {
	signed := c.NKey == nkeyMark
	switch {
	case len(m.c.Secret) == 0 && signed:
		return refuse(RefusedSecret, "the dialling broker has a cluster secret, this one has none")
	case len(m.c.Secret) == 0:
		return nil
	case !signed:
		return refuse(RefusedSecret, "a cluster secret is required here, the dialling broker has none")
	}
	signature, err := base64.RawURLEncoding.DecodeString(c.Signature)
	if err != nil || !hmac.Equal(signature, proof(m.c.Secret, "dial", c.Nonce, c.Token)) {
		return refuse(RefusedSecret, "the cluster secrets differ")
	}
	return nil
}

// meets checks that self, which was reached, is whom other meant, and that they
// are of one cluster. Either may be of none yet.
func meets(self, other *Identity, broker uint64, incarnation string) error {
	switch {
	case other.Incarnation == self.Incarnation:
		return refuse(RefusedSelf, "the address leads to broker %s itself", self.Name)
	case other.Cluster != "" && self.Cluster != "" && other.Cluster != self.Cluster:
		return refuse(RefusedCluster, "broker %s belongs to cluster %s, broker %s to cluster %s", other.Name, other.Cluster, self.Name, self.Cluster)
	case incarnation != "" && incarnation != self.Incarnation:
		return refuse(RefusedBroker, "incarnation %s was meant, %v was reached", incarnation, *self)
	case broker != 0 && self.Broker != 0 && broker != self.Broker:
		return refuse(RefusedBroker, "broker id %d was meant, %v was reached", broker, *self)
	}
	return nil
}

// identify sets the broker id by what the newest epoch says, and refuses links
// of brokers that it does not name.
func (m *Mesh) identify(h *hello) error {
	if p := m.peerOf(&h.Identity); p != nil {
		h.Broker = p.id
		return nil
	}
	if h.Kind == kindAsk {
		h.Broker = 0
		return nil
	}
	self := m.Self()
	return refuse(RefusedIncarnation, "the newest epoch that broker %s knows does not name %v", self.Name, h.Identity)
}
