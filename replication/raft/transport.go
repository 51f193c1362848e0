package raft

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

// The transport carries dragonboat's messages over TCP (ADR 0012). A link is
// one-way; whoever dials sends. It opens with a greeting (guard.go) and goes on
// with frames, all integers big endian:
//
//	length u32 | CRC-32C of the payload u32 | payload (protobuf)
//
// Kind is 1 for message batches and 2 for snapshot chunks. A reader that
// doesn't like what it sees closes the link.
const (
	headerSize = 8

	// maxFrame is above dragonboat's own limit of 64 MiB a batch.
	maxFrame = 72 << 20
	// keptBuffer is the largest buffer that a link keeps between frames.
	keptBuffer = 4 << 20

	dialTimeout  = 5 * time.Second
	writeTimeout = 10 * time.Second
	closeTimeout = 10 * time.Second

	// maxLinks bounds the links of brokers, and maxGreetings those that have yet
	// to prove themselves: strangers can't take the places of members.
	maxLinks     = 4096
	maxGreetings = 256
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// transport is a raftio.ITransport on a listener that exists already, so that a
// port of the kernel's choice is known before dragonboat starts.
type transport struct {
	listener   net.Listener
	dial       func(ctx context.Context, address string) (net.Conn, error)
	guard      guard
	warn       func(event string, err error)
	complaints *complaints
	refused    atomic.Uint64

	screen   func(*raftpb.MessageBatch) // drops what must not be delivered; nil: nothing
	messages raftio.MessageHandler
	spare    func(*raftpb.MessageBatch) // takes out what is too much for now; nil: nothing
	chunks   raftio.ChunkHandler

	mu     sync.Mutex
	links  map[net.Conn]bool // true once it proved itself; nil once closed
	greets int               // links that have not
	owned  sync.WaitGroup    // accept loop and readers
	closed chan struct{}
}

func newTransport(l net.Listener, c *Config, warn func(string, error)) *transport {
	return &transport{
		listener:   l,
		dial:       c.Dial,
		guard:      guard{deployment: c.Deployment, secret: c.Secret, tls: c.TLS},
		warn:       warn,
		complaints: newComplaints(),
		links:      make(map[net.Conn]bool),
		closed:     make(chan struct{}),
	}
}

// Create and Validate implement config.TransportFactory.
func (t *transport) Create(_ config.NodeHostConfig, m raftio.MessageHandler, c raftio.ChunkHandler) raftio.ITransport {
	t.messages, t.chunks = m, c
	return t
}

func (t *transport) Validate(string) bool { return true }

func (t *transport) Name() string { return "parley-tcp" }

// Start implements raftio.ITransport.
func (t *transport) Start() error {
	t.owned.Add(1)
	go t.accept()
	return nil
}

// Close implements raftio.ITransport. Links that were dialled are closed by
// dragonboat.
func (t *transport) Close() error {
	t.mu.Lock()
	links := t.links
	t.links = nil
	t.mu.Unlock()
	if links == nil {
		return nil
	}
	close(t.closed)
	err := t.listener.Close()
	for c := range links {
		_ = c.Close()
	}
	t.owned.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (t *transport) accept() {
	defer t.owned.Done()
	var backoff time.Duration
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			select {
			case <-t.closed:
				return
			default:
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: it passes.
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			t.warn("raft listener could not accept a link", err)
			select {
			case <-t.closed:
				return
			case <-time.After(backoff):
			}
			continue
		}
		backoff = 0
		t.mu.Lock()
		full := t.links == nil || t.greets >= maxGreetings
		if !full {
			t.links[conn] = false
			t.greets++
			t.owned.Add(1)
		}
		t.mu.Unlock()
		if full {
			t.complain(conn, refusal(answerFull))
			_ = conn.Close()
			continue
		}
		go t.serve(conn)
	}
}

func (t *transport) serve(conn net.Conn) {
	defer t.owned.Done()
	err := t.admit(conn)
	t.mu.Lock()
	if !t.links[conn] {
		t.greets--
	}
	delete(t.links, conn)
	t.mu.Unlock()
	_ = conn.Close()
	select {
	case <-t.closed:
		return
	default:
	}
	// A link that ends is a peer that stops or a cut, of which the dialling side
	// tells. Whoever connects and leaves without a word is a port scan or a health check.
	if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		t.complain(conn, err)
	}
}

// complain logs why a link was refused or ended, once in a while for each remote host.
func (t *transport) complain(conn net.Conn, err error) {
	if errors.Is(err, ErrRefused) {
		t.refused.Add(1)
	}
	skipped, ok := t.complaints.due(remoteHost(conn.RemoteAddr()))
	switch {
	case !ok:
		return
	case skipped > 0:
		err = fmt.Errorf("%w (%d more such links were not logged)", err, skipped)
	}
	t.warn("raft link from "+conn.RemoteAddr().String()+" ended", err)
}

// admit serves a link, once it has proved itself, until it ends; the error says why
// and is never nil.
func (t *transport) admit(raw net.Conn) error {
	conn, kind, err := t.guard.admit(raw)
	if err != nil {
		return err
	}
	t.mu.Lock()
	full := t.links == nil || len(t.links)-t.greets >= maxLinks
	if !full {
		t.links[raw] = true
		t.greets--
	}
	t.mu.Unlock()
	if full {
		return refusal(answerFull)
	}
	return t.read(conn, kind)
}

func (t *transport) read(conn net.Conn, kind byte) (err error) {
	r := bufio.NewReaderSize(conn, 64<<10)
	var buf []byte
	for {
		if buf, err = readFrame(r, buf); err != nil {
			return err
		}
		switch kind {
		case linkMessages:
			var batch raftpb.MessageBatch
			if err := decode(&batch, buf); err != nil {
				return fmt.Errorf("decode message batch: %w", err)
			}
			if t.spare != nil {
				t.spare(&batch)
			}
			if t.screen != nil {
				t.screen(&batch)
			}
			t.messages(batch)
		case linkChunks:
			var chunk raftpb.Chunk
			if err := decode(&chunk, buf); err != nil {
				return fmt.Errorf("decode snapshot chunk: %w", err)
			}
			if !t.chunks(chunk) {
				return fmt.Errorf("snapshot chunk %d of log %d was refused", chunk.ChunkId, chunk.ShardID)
			}
		}
		if cap(buf) > keptBuffer {
			buf = nil
		}
	}
}

// decode is m.Unmarshal, which panics on some damaged messages.
func decode(m interface{ Unmarshal([]byte) error }, b []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed message: %v", r)
		}
	}()
	return m.Unmarshal(b)
}

// readFrame reads one payload into buf, or into a larger one that grows as
// the bytes arrive: a length alone doesn't take memory.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(header[:]))
	if size == 0 || size > maxFrame {
		return nil, fmt.Errorf("frame of %d bytes: 1 to %d are allowed", size, maxFrame)
	}
	buf = buf[:0]
	for len(buf) < size {
		n := min(size-len(buf), max(len(buf), 256<<10))
		if cap(buf)-len(buf) < n {
			bigger := make([]byte, len(buf), len(buf)+n)
			copy(bigger, buf)
			buf = bigger
		}
		part := buf[len(buf) : len(buf)+n]
		if _, err := io.ReadFull(r, part); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		buf = buf[:len(buf)+n]
	}
	if sum := crc32.Checksum(buf, castagnoli); sum != binary.BigEndian.Uint32(header[4:]) {
		return nil, fmt.Errorf("frame of %d bytes has a wrong checksum", size)
	}
	return buf, nil
}

// GetConnection implements raftio.ITransport.
func (t *transport) GetConnection(ctx context.Context, address string) (raftio.IConnection, error) {
	l, err := t.open(ctx, address, linkMessages)
	if err != nil {
		return nil, err
	}
	m := &messageLink{link: l, t: t, ctx: ctx, address: address}
	m.watch()
	return m, nil
}

// GetSnapshotConnection implements raftio.ITransport.
func (t *transport) GetSnapshotConnection(ctx context.Context, address string) (raftio.ISnapshotConnection, error) {
	l, err := t.open(ctx, address, linkChunks)
	if err != nil {
		return nil, err
	}
	return chunkLink{l}, nil
}

func (t *transport) open(ctx context.Context, address string, kind byte) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := t.dial(ctx, address)
	if err == nil {
		conn, err = t.guard.enter(ctx, conn, address, kind)
	}
	if err != nil {
		err = fmt.Errorf("open raft link to %s: %w", address, err)
		t.unreached(address, err)
		return nil, err
	}
	return &link{conn: conn}, nil
}

// unreached logs why a peer can't be reached, once in a while. Dragonboat tries on,
// several times a second, with lines of its own for each (logging.go).
func (t *transport) unreached(address string, err error) {
	select {
	case <-t.closed:
		return
	default:
	}
	skipped, ok := t.complaints.due("to " + address)
	switch {
	case !ok:
		return
	case skipped > 0:
		err = fmt.Errorf("%w (%d more tries were not logged)", err, skipped)
	}
	t.warn("raft peer cannot be reached", err)
}

// link is the sending end. Dragonboat uses it from one goroutine.
type link struct {
	conn net.Conn
	buf  []byte
}

// messageLink notices when the other side has gone, and dials again when there is something to
// send. A follower has nothing to tell another one until their leader dies: were the link found
// broken only then, by the peer's restart of long ago, the first votes would be lost with it, and
// dragonboat would hold back everything for that peer for a while, so that an election takes
// rounds.
type messageLink struct {
	*link
	t       *transport
	ctx     context.Context // of all that dragonboat sends
	address string
	gone    chan struct{} // closed when the link has ended
}

// watch reads what never comes. Close ends it and waits for it.
func (l *messageLink) watch() {
	conn, gone := l.conn, make(chan struct{})
	l.gone = gone
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn) // how it ended makes no difference
		_ = conn.Close()
	}()
}

// Close implements raftio.IConnection.
func (l *messageLink) Close() {
	_ = l.conn.Close()
	<-l.gone
}

// SendMessageBatch implements raftio.IConnection.
func (l *messageLink) SendMessageBatch(b raftpb.MessageBatch) error {
	select {
	case <-l.gone:
		anew, err := l.t.open(l.ctx, l.address, linkMessages)
		if err != nil {
			return err
		}
		l.conn = anew.conn
		l.watch()
	default:
	}
	return l.send(b.SizeUpperLimit(), b.MarshalTo)
}

func (l *link) send(limit int, marshal func([]byte) (int, error)) error {
	if cap(l.buf) < headerSize+limit {
		l.buf = make([]byte, headerSize+limit)
	}
	buf := l.buf[:headerSize+limit]
	n, err := marshal(buf[headerSize:])
	if err != nil {
		return fmt.Errorf("encode raft frame: %w", err)
	}
	if n > maxFrame {
		return fmt.Errorf("send raft frame of %d bytes: up to %d are allowed", n, maxFrame)
	}
	binary.BigEndian.PutUint32(buf, uint32(n))
	binary.BigEndian.PutUint32(buf[4:], crc32.Checksum(buf[headerSize:headerSize+n], castagnoli))
	err = l.write(buf[:headerSize+n])
	if cap(l.buf) > keptBuffer {
		l.buf = nil
	}
	return err
}

func (l *link) write(b []byte) error {
	// A deadline a megabyte: a slow link is not a dead one.
	for len(b) > 0 {
		n := min(len(b), 1<<20)
		if err := l.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		if _, err := l.conn.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

type chunkLink struct{ *link }

// SendChunk implements raftio.ISnapshotConnection.
func (l chunkLink) SendChunk(c raftpb.Chunk) error { return l.send(c.Size(), c.MarshalTo) }

// Close waits until the other side has taken every chunk, or refused one: it
// closes then. Otherwise dragonboat would count a snapshot as sent that sits in a buffer.
func (l chunkLink) Close() {
	if h, ok := l.conn.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		_ = l.conn.SetReadDeadline(time.Now().Add(closeTimeout))
		_, _ = io.Copy(io.Discard, l.conn)
	}
	_ = l.conn.Close()
}
