// Package raft runs replicated logs on dragonboat: one Host is one NodeHost, one
// Log is one replica of one Raft group. It is the only package that imports
// dragonboat; everything above it sees the seams of package replication.
//
// What is peculiar to dragonboat stays in here:
//
//   - config.go     what can be set, and the limits that follow
//   - directory.go  the lock, and host names that change
//   - host.go       start, remove and stop replicas
//   - behind.go     state machines that have lost what their Raft log no longer holds
//   - campaign.go   a group of one elects itself without waiting for a timeout
//   - replica.go    the Log of one replica
//   - machine.go    the state machine as dragonboat wants it
//   - compaction.go when the Raft log is cut
//   - restoring.go  what a replica takes in while it is restored
//   - transport.go  links between hosts
//   - guard.go      who may open one: secret, TLS
//   - strangers.go  log lines about those who may not, few
//   - registry.go   replica -> address
//   - logstore.go   dragonboat's log store on our journal (package journal)
//   - seamfs.go     the journal on a test's file system
//   - logging.go    dragonboat's log lines and last words
package raft

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/vfs"
	"github.com/rs/zerolog"

	"github.com/parleymq/parley/replication/raft/journal"
)

// Errors of NewHost.
var (
	// ErrLocked: another host has the directory open. The error is a *LockedError.
	ErrLocked = errors.New("directory is in use")
	// ErrAddressInUse: something else listens on the address.
	ErrAddressInUse = errors.New("address is in use")
	// ErrForeignDirectory: the directory was written with other settings or by
	// another version.
	ErrForeignDirectory = errors.New("directory belongs to another configuration")
)

// Defaults.
const (
	DefaultListen         = "127.0.0.1:7222"
	DefaultTick           = 100 * time.Millisecond
	DefaultElectionTicks  = 10
	DefaultHeartbeatTicks = 1
	DefaultMaxEntry       = 8 << 20
	DefaultMaxUnapplied   = 64 << 20
	DefaultSnapshotBytes  = 256 << 20
	DefaultSnapshotCount  = 1 << 20
	DefaultRetainBytes    = 16 << 20
	DefaultLogBytes       = 1 << 30
	DefaultMaxLink        = 64 << 20
	DefaultSegmentBytes   = journal.DefaultSegmentBytes
	DefaultWriteBuffer    = 64 << 20
)

// Limits of Config.SegmentBytes.
const (
	minSegmentBytes = 64 << 10
	maxSegmentBytes = 1 << 30
)

// Config of a Host. Zero values mean the defaults.
type Config struct {
	// Dir holds the Raft log. It is made when it is missing. Required.
	Dir string

	// Listen is the address to listen on; port 0 lets the kernel choose. Host.Address
	// tells what came of it. Listener, when set, is used instead and closed
	// with the host.
	Listen   string
	Listener net.Listener

	// Dial opens a connection to another host: where tests cut links. Defaults
	// to plain TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// Resolve tells where a replica is now. Where it doesn't know, the
	// addresses of Replica.Initial and Change.Address count. It is called for each
	// message: it must be quick, and safe for concurrent use.
	Resolve func(shard, replica uint64) (address string, ok bool)

	// Secret of the cluster: both sides of a link prove that they know it before
	// a frame is believed. Without it, and without TLS, the port is for loopback.
	Secret []byte

	// TLS is for listening and dialling alike, and mutual: it must have a
	// certificate, RootCAs, ClientCAs, and ClientAuth RequireAndVerifyClientCert. Where
	// ServerName is empty the certificate must be for the host that was dialled.
	// For certificates that are renewed, set GetCertificate and GetClientCertificate.
	TLS *tls.Config

	// Deployment tells clusters apart: hosts of different deployments don't talk.
	// It is part of the data path: fixed for the life of Dir. 0 means 1.
	Deployment uint64

	// Tick is the unit of Raft's timeouts, and the shortest timeout of a
	// proposal. Each tick touches every replica of the host.
	Tick           time.Duration
	ElectionTicks  uint64 // a follower campaigns after one to two times this
	HeartbeatTicks uint64

	MaxEntry     int // bytes of one proposal
	MaxUnapplied int // bytes of one replica's log that are not applied yet; above it Propose says busy

	// A replica's log is cut after SnapshotBytes or SnapshotCount applied since the last
	// cut; about RetainBytes stay for followers that lag a little.
	// The longest is cut earlier when all together have LogBytes.
	SnapshotBytes int64
	SnapshotCount int64
	RetainBytes   int64
	LogBytes      int64

	// Pace lets n bytes of a snapshot that is sent through in their turn; false when stop closes
	// first. nil: at once.
	Pace func(stop <-chan struct{}, n int) bool

	// NoRoom says that nothing more may be written for the sake of other hosts' entries: they are dropped, as a network
	// might, and sent again. nil: there always is room.
	NoRoom func() bool

	MaxLink uint64 // bytes that wait for one link, in each direction
	// SegmentBytes is how long a file of the Raft log's journal is.
	SegmentBytes int64
	// WriteBuffer is for directories of earlier versions, whose log is in Pebble: bytes of
	// its memory tables; up to four exist under load.
	WriteBuffer int

	Logger zerolog.Logger

	// OnFatal is told once why the process can't go on (an I/O error of the log, a state
	// machine that failed). After it returns, the goroutine that met the error panics.
	// Dragonboat reports some of these without saying which host: then every open host of
	// the process is told. Defaults to a log line.
	OnFatal func(error)

	// KeepAll takes everything that a replica's own log holds for committed, whoever else has it. It is for
	// the last copy of a log that has lost its majority for good (ADR 0124): whatever others went on with
	// meanwhile, this replica contradicts, so its log must never be opened with others again.
	// A directory with a Pebble log doesn't know it.
	KeepAll bool

	// FS replaces the file system in tests, by one in memory: dragonboat takes no other.
	// There is no lock on Dir then.
	FS vfs.FS

	tune   func(*config.NodeHostConfig) // for benchmarks
	pebble bool                         // the log is in Pebble, as that of a directory of an earlier version
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("configure raft: Dir is empty: give a directory")
	}
	setDefault(&c.Listen, DefaultListen)
	setDefault(&c.Deployment, 1)
	setDefault(&c.Tick, DefaultTick)
	setDefault(&c.ElectionTicks, DefaultElectionTicks)
	setDefault(&c.HeartbeatTicks, DefaultHeartbeatTicks)
	setDefault(&c.MaxEntry, DefaultMaxEntry)
	setDefault(&c.MaxUnapplied, DefaultMaxUnapplied)
	setDefault(&c.SnapshotBytes, DefaultSnapshotBytes)
	setDefault(&c.SnapshotCount, DefaultSnapshotCount)
	setDefault(&c.RetainBytes, DefaultRetainBytes)
	setDefault(&c.LogBytes, DefaultLogBytes)
	setDefault(&c.MaxLink, DefaultMaxLink)
	setDefault(&c.SegmentBytes, DefaultSegmentBytes)
	setDefault(&c.WriteBuffer, DefaultWriteBuffer)
	if c.Dial == nil {
		dialer := &net.Dialer{Timeout: dialTimeout}
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}
	}
	if err := c.checkGuard(); err != nil {
		return c, err
	}
	if c.Tick < time.Millisecond || c.Tick%time.Millisecond != 0 {
		return c, fmt.Errorf("configure raft: Tick is %v: whole milliseconds, 1ms or more, are allowed", c.Tick)
	}
	if c.ElectionTicks <= 2*c.HeartbeatTicks {
		return c, fmt.Errorf("configure raft: ElectionTicks is %d: more than twice HeartbeatTicks (%d) is needed",
			c.ElectionTicks, c.HeartbeatTicks)
	}
	if c.MaxUnapplied < 2*c.MaxEntry {
		return c, fmt.Errorf("configure raft: MaxUnapplied is %d: at least twice MaxEntry (%d) is needed",
			c.MaxUnapplied, c.MaxEntry)
	}
	if c.SegmentBytes < minSegmentBytes || c.SegmentBytes > maxSegmentBytes {
		return c, fmt.Errorf("configure raft: SegmentBytes is %d: %d to %d are allowed", c.SegmentBytes, minSegmentBytes, maxSegmentBytes)
	}
	if limit := int(maxFrame / 2); c.MaxEntry > limit {
		return c, fmt.Errorf("configure raft: MaxEntry is %d: up to %d is allowed", c.MaxEntry, limit)
	}
	return c, nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Fixed for the life of a data directory (ADR 0011): dragonboat refuses to open
// it with other values.
const (
	execShards  = 16
	logDBShards = 1
)

func engineConfig() config.EngineConfig {
	return config.EngineConfig{
		ExecShards:     execShards,
		CommitShards:   1, // unused without NotifyCommit
		ApplyShards:    16,
		SnapshotShards: 16,
		CloseShards:    8,
	}
}

// logDBConfig: see ADR 0010 for what was measured.
func (c *Config) logDBConfig() config.LogDBConfig {
	l := config.GetTinyMemLogDBConfig()
	l.Shards = logDBShards
	l.KVWriteBufferSize = uint64(c.WriteBuffer)
	l.KVMaxWriteBufferNumber = 4
	l.KVLRUCacheSize = 8 << 20
	l.MaxSaveBufferSize = 4 << 20
	return l
}

func (c *Config) replicaConfig(shard, replica uint64) config.Config {
	return config.Config{
		ReplicaID:           replica,
		ShardID:             shard,
		CheckQuorum:         true,
		PreVote:             true,
		ElectionRTT:         c.ElectionTicks,
		HeartbeatRTT:        c.HeartbeatTicks,
		SnapshotEntries:     0, // the compactor asks for them
		CompactionOverhead:  retainAfterRecovery,
		OrderedConfigChange: true,
		MaxInMemLogSize:     uint64(c.MaxUnapplied),
	}
}

// retainAfterRecovery is how many entries stay before a snapshot that was received.
const retainAfterRecovery = 64
