package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/broker/protocol"
)

// server serves one listener.
type server struct {
	config *Config
	front  *Frontend
	stats  *counters
	broker protocol.Broker
	log    zerolog.Logger

	mu       sync.Mutex
	conns    map[*conn]struct{}
	lameDuck bool
	left     chan struct{} // a connection has gone

	infos   atomic.Uint64 // INFO broadcasts so far
	payload atomic.Int64  // max payload as broadcast
	wg      sync.WaitGroup
}

// serve, in the order in which it ends:
//
//  1. no new connections
//  2. INFO with ldm to the clients that understand it
//  3. clients that don't leave are closed, spread over the drain time
//  4. every goroutine is waited for
func (s *server) serve(ctx context.Context, l net.Listener) error {
	s.payload.Store(s.broker.Info().MaxPayload)
	over, end := context.WithCancel(ctx)
	defer end()
	var services sync.WaitGroup
	services.Add(2)
	go func() {
		defer services.Done()
		<-over.Done()
		l.Close() //nolint:errcheck // the only way to end Accept; nothing to do about an error
	}()
	go func() {
		defer services.Done()
		s.announce(over)
	}()

	err := s.accept(over, l)
	end()
	services.Wait()

	s.mu.Lock()
	s.lameDuck = true
	s.mu.Unlock()
	s.broadcastInfo()
	s.drain()
	s.wg.Wait()
	return err
}

// accept until ctx ends. Running out of file descriptors and the like is waited
// out: connections that exist are still served.
func (s *server) accept(ctx context.Context, l net.Listener) error {
	const maxWait = time.Second
	wait := 5 * time.Millisecond
	for {
		raw, err := l.Accept()
		if err == nil {
			wait = 5 * time.Millisecond
			s.open(raw)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept client on %s: %w", l.Addr(), err)
		}
		s.log.Warn().Err(err).Dur("retry_in", wait).Msg("client connection could not be accepted")
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		wait = min(2*wait, maxWait)
	}
}

func (s *server) open(raw net.Conn) {
	s.stats.accepted.Add(1)
	c := newConn(s, raw, s.front.clients.Add(1))
	s.mu.Lock()
	full := int64(s.config.MaxConnections) <= s.stats.connections.Load()
	if !full {
		s.conns[c] = struct{}{}
		s.stats.connections.Add(1)
	}
	s.mu.Unlock()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		if full {
			s.stats.refused.Add(1)
			c.refuse(errMaxConnections)
			return
		}
		defer s.remove(c)
		c.run()
	}()
}

func (s *server) remove(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.stats.connections.Add(-1)
	select {
	case s.left <- struct{}{}:
	default:
	}
}

func (s *server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// announce passes on what changes about the cluster, until ctx ends.
func (s *server) announce(ctx context.Context) {
	changed := s.broker.Changed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		changed = s.broker.Changed()
		s.broadcastInfo()
	}
}

func (s *server) broadcastInfo() {
	info := s.broker.Info()
	s.payload.Store(info.MaxPayload)
	s.infos.Add(1)
	for _, c := range s.connections() {
		c.announce(info, s.isLameDuck())
	}
}

func (s *server) isLameDuck() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lameDuck
}

// drain closes the connections that are left: half of the time is grace for
// clients to go by themselves, then one after another. Connections come in map
// order, which is random enough to spread the clients' return elsewhere.
func (s *server) drain() {
	if s.config.DrainTime > 0 {
		deadline := time.NewTimer(s.config.DrainTime / 2)
		defer deadline.Stop()
		for s.count() > 0 {
			select {
			case <-s.left:
				continue
			case <-deadline.C:
			}
			break
		}
	}
	conns := s.connections()
	if len(conns) == 0 {
		return
	}
	s.log.Info().Int("connections", len(conns)).Msg("closing clients that have not left")
	step := max(s.config.DrainTime/2/time.Duration(len(conns)), 0)
	const tick = 20 * time.Millisecond
	pause := time.NewTimer(0)
	defer pause.Stop()
	var owed time.Duration
	for _, c := range conns {
		c.close(nil)
		if owed += step; owed >= tick {
			pause.Reset(owed)
			<-pause.C
			owed = 0
		}
	}
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *server) verifiesClients() bool {
	return s.config.TLS != nil && s.config.TLS.ClientAuth >= tls.RequireAnyClientCert
}
