package mesh

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/protocol"
)

// port is the protocol.Broker behind the peer listener. Its router has nothing
// but the answers of links: peers cannot reach clients through it, nor clients
// peers.
type port struct{ m *Mesh }

// never is closed never: INFO says nothing that changes for a connection.
var never = make(chan struct{})

// Info implements protocol.Broker.
func (p port) Info() protocol.Info {
	self := p.m.Self()
	return protocol.Info{
		ServerID: self.Incarnation, ServerName: self.Name, Cluster: self.Cluster, Version: "mesh 1",
		MaxPayload: MaxPayload + 64<<10,
	}
}

// Changed implements protocol.Broker.
func (p port) Changed() <-chan struct{} { return never }

// Router implements protocol.Broker.
func (p port) Router() *interest.Router { return p.m.router }

// Attach implements protocol.Broker.
func (p port) Attach(c protocol.Client) protocol.Session {
	s := &session{m: p.m, client: c}
	if err := json.Unmarshal([]byte(c.User), &s.hello); err != nil {
		panic("hello that was encoded here: " + err.Error())
	}
	p.m.attach(s)
	return s
}

// session is the receiving side of one connection. Publish, Flush and Close are
// called from the goroutine that reads it.
type session struct {
	m      *Mesh
	client protocol.Client
	hello  hello // Broker is by the newest epoch
	answer []byte
	side   side
	ended  bool // evicted or broken: nothing more is taken in
}

// side is what a control and a data link differ in.
type side interface {
	frame(kind byte, body []byte) error
	flush()
	close()
}

var errMeanwhile = errors.New("replaced by a newer link")

// attach registers a session and evicts those that it replaces.
func (m *Mesh) attach(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.recheck(s); err != nil { // the epoch may have changed since the handshake
		s.ended = true
		s.client.Close(err.Error())
		return
	}
	if s.hello.Kind != kindAsk {
		for old := range m.sessions {
			if old.hello.Kind == s.hello.Kind && old.hello.Broker == s.hello.Broker {
				m.evict(old, errMeanwhile)
			}
		}
	}
	m.sessions[s] = struct{}{}
}

// recheck says why a session must end after a new epoch.
func (m *Mesh) recheck(s *session) error {
	h := s.hello
	err := m.identify(&h)
	if err == nil && h.Broker != s.hello.Broker && s.hello.Kind != kindAsk {
		err = refuse(RefusedIncarnation, "broker id %d is another broker's now", s.hello.Broker)
	}
	return err
}

// evict ends a session from outside. What it has told the router is taken back
// by Close, soon.
func (m *Mesh) evict(s *session, err error) {
	delete(m.sessions, s)
	m.log.Info().Uint64("broker", s.hello.Broker).Str("link", string(s.hello.Kind)).AnErr("reason", err).Msg("link of a peer ended")
	s.client.Close(err.Error())
}

// Publish implements protocol.Session.
func (s *session) Publish(m *interest.Message) protocol.Disposition {
	if s.ended {
		return protocol.Consumed
	}
	var err error
	switch string(m.Subject) {
	case subjectHello:
		err = s.welcome(m.Reply)
	case subjectFrames:
		err = s.frames(m.Payload)
	default:
		err = fmt.Errorf("nothing is known of the subject %q", m.Subject)
	}
	if err != nil {
		s.broken(err)
	}
	return protocol.Consumed
}

func (s *session) broken(err error) {
	s.ended = true
	s.m.log.Error().Uint64("broker", s.hello.Broker).Str("remote", s.client.Remote).Err(err).Msg("peer broke the mesh protocol")
	s.client.Close("broke the mesh protocol: " + err.Error())
}

func (s *session) welcome(answer []byte) error {
	if s.side != nil || len(answer) == 0 {
		return errors.New("hello without a reply subject, or a second one")
	}
	s.answer = append([]byte(nil), answer...)
	w := welcome{Version: protocolVersion, Identity: s.m.Self(), Window: s.m.c.Window}
	if secret := s.m.c.Secret; len(secret) > 0 {
		w.Proof = base64.RawURLEncoding.EncodeToString(w.prove(secret, s.hello.Challenge))
	}
	body, err := json.Marshal(&w)
	if err != nil {
		return fmt.Errorf("encode welcome: %w", err)
	}
	if s.hello.Kind == kindData {
		p := s.m.peer(s.hello.Broker)
		if p == nil {
			return errMeanwhile
		}
		s.side = newDataSession(s, p)
	} else {
		s.side = newControlSession(s)
	}
	s.send(body)
	return nil
}

func (s *session) frames(b []byte) error {
	if s.side == nil {
		return errors.New("frames before hello")
	}
	for len(b) > 0 {
		kind, body, rest, err := nextFrame(b)
		if err != nil {
			return err
		}
		if err := s.side.frame(kind, body); err != nil {
			return fmt.Errorf("frame of kind %d: %w", kind, err)
		}
		b = rest
	}
	return nil
}

// send sends frames back to the dialling side, from any goroutine.
func (s *session) send(frames []byte) {
	s.m.router.Route(&interest.Message{Subject: s.answer, Payload: frames}, nil)
}

// Flush implements protocol.Session.
func (s *session) Flush() {
	if s.side != nil && !s.ended {
		s.side.flush()
	}
}

// Close implements protocol.Session.
func (s *session) Close() {
	s.m.mu.Lock()
	delete(s.m.sessions, s)
	s.m.mu.Unlock()
	if s.side != nil {
		s.side.close()
	}
	if s.hello.Kind == kindData {
		s.m.lost(s.hello.Broker) // answers that were on their way are gone with it
	}
}
