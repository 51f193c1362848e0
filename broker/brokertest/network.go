package brokertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Network is a network between the brokers of a test: names that stay, whatever
// ports the kernel gives, and links that can be cut. Peers and Raft dial through it;
// clients don't.
type Network struct {
	mu      sync.Mutex
	at      map[string]string // "b1.peer:1" to where it listens now
	cut     map[[2]string]bool
	severed map[[2]string]bool
	conns   map[*link]struct{}
}

type link struct {
	net.Conn
	n        *Network
	from, to string
}

// NewNetwork returns a network without faults.
func NewNetwork() *Network {
	return &Network{at: map[string]string{}, cut: map[[2]string]bool{}, severed: map[[2]string]bool{}, conns: map[*link]struct{}{}}
}

func peerName(broker string) string { return broker + ".peer:6222" }
func raftName(broker string) string { return broker + ".raft:7222" }

// place says where a name's listener is now; "" when nothing listens.
func (n *Network) place(name, address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at[name] = address
}

var (
	errCut  = errors.New("network: link is cut")
	errDown = errors.New("network: nothing listens there")
)

// dialer is how a broker dials others.
func (n *Network) dialer(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, name string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(name)
		if err != nil {
			return nil, err
		}
		to := host[:len(host)-len(".peer")] // .raft is as long
		n.mu.Lock()
		address, cut, severed := n.at[name], n.cut[[2]string{from, to}], n.severed[[2]string{from, to}]
		n.mu.Unlock()
		switch {
		case cut:
			// As a lost packet: nothing comes back.
			<-ctx.Done()
			return nil, fmt.Errorf("dial %s: %w", name, errCut)
		case address == "" || severed:
			return nil, fmt.Errorf("dial %s: %w", name, errDown)
		}
		d := net.Dialer{Timeout: 5 * time.Second}
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		l := &link{Conn: c, n: n, from: from, to: to}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.cut[[2]string{from, to}] || n.severed[[2]string{from, to}] {
			c.Close()
			return nil, fmt.Errorf("dial %s: %w", name, errCut)
		}
		n.conns[l] = struct{}{}
		return l, nil
	}
}

func (l *link) Close() error {
	l.n.mu.Lock()
	delete(l.n.conns, l)
	l.n.mu.Unlock()
	return l.Conn.Close()
}

// Write swallows what goes over a cut link.
func (l *link) Write(b []byte) (int, error) {
	l.n.mu.Lock()
	cut := l.n.cut[[2]string{l.from, l.to}]
	l.n.mu.Unlock()
	if cut {
		return len(b), nil
	}
	return l.Conn.Write(b)
}

// Cut loses everything between two brokers, in both directions, without telling
// either.
func (n *Network) Cut(a, b string) { n.set(a, b, true) }

// Heal undoes Cut. What was under way is gone with the connections.
func (n *Network) Heal(a, b string) {
	n.set(a, b, false)
	n.drop(a, b)
}

// drop closes the connections between two brokers.
func (n *Network) drop(a, b string) {
	n.mu.Lock()
	var gone []*link
	for l := range n.conns {
		if l.from == a && l.to == b || l.from == b && l.to == a {
			gone = append(gone, l)
		}
	}
	n.mu.Unlock()
	for _, l := range gone {
		_ = l.Close()
	}
}

// Sever ends all connections between two brokers, and refuses new ones until it is undone: both know at once.
func (n *Network) Sever(a, b string, severed bool) {
	n.mu.Lock()
	n.severed[[2]string{a, b}] = severed
	n.severed[[2]string{b, a}] = severed
	n.mu.Unlock()
	if severed {
		n.drop(a, b)
	}
}

func (n *Network) set(a, b string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{a, b}] = cut
	n.cut[[2]string{b, a}] = cut
}
