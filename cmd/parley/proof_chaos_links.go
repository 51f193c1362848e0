package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The network between the brokers of a proof. Every broker tells the others the
// addresses of proxies in place of its own, so all that brokers say to one another
// goes through here, and a broker's clients don't. A proxy finds out which
// broker dialled by the kernel's table of sockets: links are cut by pair and
// direction.

// Limits of the proxies.
const (
	proxyChunk = 32 << 10
	proxyQueue = 64 // chunks under way in one direction of a connection
)

// network is the brokers' proxies. Links are named by the indexes of the brokers;
// who can't be told apart dials with the index len(names).
type network struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	links  [][]*link // from, to
	pid    func(broker int) int

	mu    sync.Mutex
	conns map[*proxied]struct{}
}

// link is one direction between two brokers.
type link struct {
	mu    sync.Mutex
	open  chan struct{} // closed while bytes pass
	stall bool
	dead  bool // connections are broken and none is made
	delay time.Duration
}

// proxied is one connection.
type proxied struct {
	from, to int
	dialled  net.Conn // what the dialling broker has
	accepted net.Conn // what the listening one has; nil at first
	once     sync.Once
}

func (c *proxied) close() {
	c.once.Do(func() {
		_ = c.dialled.Close()
		if c.accepted != nil {
			_ = c.accepted.Close()
		}
	})
}

func newNetwork(brokers int, pid func(broker int) int) *network {
	n := &network{pid: pid, conns: map[*proxied]struct{}{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	for range brokers + 1 {
		var row []*link
		for range brokers + 1 {
			l := &link{open: make(chan struct{})}
			close(l.open)
			row = append(row, l)
		}
		n.links = append(n.links, row)
	}
	return n
}

// close ends all proxies and waits for them.
func (n *network) close() {
	n.cancel()
	n.mu.Lock()
	for c := range n.conns {
		c.close()
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// proxy listens for others in front of a broker's address and returns its own.
func (n *network) proxy(broker int, behind string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listen as proxy: %w", err)
	}
	n.wg.Go(func() { <-n.ctx.Done(); _ = l.Close() })
	n.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			n.wg.Go(func() { n.serve(conn, broker, behind) })
		}
	})
	return l.Addr().String(), nil
}

func (n *network) serve(conn net.Conn, to int, behind string) {
	c := &proxied{from: n.dialler(conn), to: to, dialled: conn}
	n.mu.Lock()
	n.conns[c] = struct{}{}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.conns, c)
		n.mu.Unlock()
		c.close()
	}()
	there, back := n.links[c.from][to], n.links[to][c.from]
	// A handshake needs both directions.
	if !there.pass(n.ctx) || !back.pass(n.ctx) {
		return
	}
	var d net.Dialer
	accepted, err := d.DialContext(n.ctx, "tcp", behind)
	if err != nil {
		return // the broker is down: the other sees the connection break
	}
	n.mu.Lock()
	c.accepted = accepted
	n.mu.Unlock()
	if n.ctx.Err() != nil {
		_ = accepted.Close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { n.copy(c, c.accepted, c.dialled, there) })
	both.Go(func() { n.copy(c, c.dialled, c.accepted, back) })
	both.Wait()
}

// chunk is bytes under way.
type chunk struct {
	data []byte
	due  time.Time
}

// copy carries one direction of a connection: what was sent arrives, late or when the link
// is open again, as TCP has it. The end of the connection waits in line as well.
func (n *network) copy(c *proxied, dst, src net.Conn, l *link) {
	under := make(chan chunk, proxyQueue)
	n.wg.Go(func() {
		defer close(under)
		for {
			buf := make([]byte, proxyChunk)
			k, err := src.Read(buf)
			if k > 0 {
				select {
				case under <- chunk{buf[:k], time.Now().Add(l.latency())}:
				case <-n.ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	broken := false
	for ch := range under { // to the end, so that the reader is not held up
		if broken {
			continue
		}
		if wait := time.Until(ch.due); wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-n.ctx.Done():
				t.Stop()
			}
		}
		if !l.pass(n.ctx) {
			broken = true
			c.close()
			continue
		}
		if _, err := dst.Write(ch.data); err != nil {
			broken = true
			c.close()
		}
	}
	l.pass(n.ctx)
	if t, ok := dst.(*net.TCPConn); ok {
		_ = t.CloseWrite() // the other direction may go on
	}
}

// pass waits until bytes pass; it is false when they never will.
func (l *link) pass(ctx context.Context) bool {
	for {
		l.mu.Lock()
		open, stalled, dead := l.open, l.stall, l.dead
		l.mu.Unlock()
		switch {
		case dead || ctx.Err() != nil:
			return false
		case !stalled:
			return true
		}
		select {
		case <-open:
		case <-ctx.Done():
		}
	}
}

func (l *link) latency() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delay
}

// set changes a link. What is stalled arrives later; dead breaks what there is.
func (n *network) set(from, to int, stall, dead bool, delay time.Duration) {
	l := n.links[from][to]
	l.mu.Lock()
	if l.stall {
		close(l.open)
	}
	l.stall, l.dead, l.delay = stall, dead, delay
	if stall {
		l.open = make(chan struct{})
	}
	l.mu.Unlock()
	if !dead {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.from == from && c.to == to || c.from == to && c.to == from {
			c.close()
		}
	}
}

// each changes all links to and from a broker.
func (n *network) each(broker int, stall, dead bool, delay time.Duration) {
	for other := range n.links {
		if other != broker {
			n.set(broker, other, stall, dead, delay)
			n.set(other, broker, stall, dead, delay)
		}
	}
}

// inward changes what reaches a broker, outward what it sends.
func (n *network) inward(broker int, stall bool) {
	for other := range n.links {
		if other != broker {
			n.set(other, broker, stall, false, 0)
		}
	}
}

func (n *network) outward(broker int, stall bool) {
	for other := range n.links {
		if other != broker {
			n.set(broker, other, stall, false, 0)
		}
	}
}

// heal makes all links whole.
func (n *network) heal() {
	for from := range n.links {
		for to := range n.links {
			n.set(from, to, false, false, 0)
		}
	}
}

// dialler finds which broker made a connection, by the socket's inode.
func (n *network) dialler(conn net.Conn) int {
	unknown := len(n.links) - 1
	inode, err := socketInode(conn.RemoteAddr().(*net.TCPAddr).Port, conn.LocalAddr().(*net.TCPAddr).Port)
	if err != nil {
		return unknown
	}
	want := "socket:[" + inode + "]"
	for broker := range unknown {
		pid := n.pid(broker)
		if pid == 0 {
			continue
		}
		dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, e := range entries {
			if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && target == want {
				return broker
			}
		}
	}
	return unknown
}

// socketInode looks a connection of this machine's loopback up.
func socketInode(local, remote int) (string, error) {
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	table, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	from, to := fmt.Sprintf(":%04X", local), fmt.Sprintf(":%04X", remote)
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 9 && strings.HasSuffix(fields[1], from) && strings.HasSuffix(fields[2], to) {
			return fields[9], nil
		}
	}
	return "", errors.New("no such connection")
}
