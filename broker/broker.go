// Package broker is one Parley broker: it holds a data directory, runs the
// partitions that the newest epoch gives it, and connects them to the front
// ends that clients speak to.
//
//	broker.go     what a broker is made of, and what others ask it
//	start.go      Start, in numbered steps; shutdown.go Close and what is fatal
//	announce.go   what this broker is, decided as an epoch; join.go being a member at all
//	config.go     Config, its defaults and checks; parts.go the default parts
//	datadir.go    lock of the data directory; identity.go whose it is
//	peers.go      the other brokers: mesh, bootstrap; secrecy.go who is let in
//	upkeep.go     what the cluster needs next, asked and proposed by one broker
//	carry.go      bringing partitions in line with an epoch; stamp.go barriers
//	leaders.go    who leads what; progress.go which followers are in sync
//	forward.go    the hop to a partition's leader; forwards.go what is under way
//	kept.go       what a leader may refuse; resend.go sending that to the next one
//	catchup.go    fetching what a replica lacks from the others
//	handover.go   moving leadership; purge.go deleting data everywhere
//	mover.go      moving replicas; mover_step.go in which order; trash.go what they leave
//	quarantine.go damaged replicas are replaced
//	compare.go    replicas are read back and compared; compare_judge.go who is wrong
//	  compare_ask.go questions to replicas; compare_state.go states at a barrier
//	  compare_note.go what is kept of it; compare_status.go what is told
//	runtime.go    what the API asks of this broker, and of the others
//	topics.go     where subjects and names lead, as one epoch has it
//	session.go    publishing; header.go what headers mean; ack.go the answers
//	fetch.go      reading; request.go the API's requests
//	loopback.go   what the broker asks of its cluster by itself
//	group.go      members of consumer groups: requests to partitions' leaders
//	  groupserve.go one function a request; groupwire.go options and states
//	  groupnext.go groupnexthop.go groupnextmessage.go groupack.go: plain clients
//	  groupdead.go groupredrive.go dead letters; groupruntime.go the API's questions
//	  groupmetrics.go figures
//	readiness.go  when the broker serves; collect.go giving disk space back
//	metrics.go    what /metrics tells
//
// A broker is embedded by calling Start with a Config; the daemon does nothing
// else.
package broker

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/broker/protocol"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// ErrStopped: the broker has stopped.
var ErrStopped = errors.New("broker has stopped")

// tailShare is the part of the memory limit that recent records may take.
const (
	tailShare   = 8
	tailDefault = 256 << 20
)

// Broker is a running broker.
type Broker struct {
	c       Config
	started time.Time
	// bootstrapped is when the cluster was formed, or found formed.
	bootstrapped time.Time
	dir          *dataDir
	id           identity

	epochs      *epoch.Cluster
	host        replication.Host
	engine      storage.Engine
	checkpoints *storage.Checkpointer
	space       *storage.Space
	tails       *partition.TailBudget
	router      *interest.Router
	routes      atomic.Pointer[routes]
	replicas    atomic.Pointer[map[uint64]string] // replica id -> Raft address
	local       atomic.Pointer[map[uint64]*slot]  // those with a replica here, by shard
	carrier     *carrier
	keeper      *keeper
	peers       *peers
	leaders     *leaders
	stamps      *stamps
	movers      *movers
	trash       *trash
	copies      *outflow
	keepAll     bool // a recovery: HostConfig.KeepAll
	forwarders  peerSessions
	forwards    *forwards
	resends     *resends
	catchUps    *catchUps
	comparer    *comparer
	groups      groups
	loop        *loopback
	selfID      atomic.Uint64          // 0 until the cluster is formed
	waiting     atomic.Pointer[string] // whom the forming of the cluster waits for
	joined      bool                   // a cluster admitted this broker during this start
	acks        *acker
	api         *api.Handlers
	metrics     *metrics
	ready       *readiness

	fronts       []front
	peerListener net.Listener // nil for a lone broker that could open none
	raftListener net.Listener
	httpServer   *http.Server
	addresses    Addresses

	ctx         context.Context // ends when sessions are to end
	cancel      context.CancelFunc
	wg          sync.WaitGroup // API requests
	background  sync.WaitGroup // checkpoints, space, readiness
	bgCtx       context.Context
	bgCancel    context.CancelFunc
	serving     sync.WaitGroup
	serveCtx    context.Context
	serveCancel context.CancelFunc
	carrying    sync.WaitGroup
	carryCtx    context.Context
	carryCancel context.CancelFunc

	turns       atomic.Uint32
	fetches     atomic.Int32
	fetchRoom   chan struct{}
	requestRoom chan struct{}
	catchRoom   chan struct{}

	infoMu   sync.Mutex
	others   []string // client addresses of the other brokers
	changed  chan struct{}
	lameDuck bool

	stopping  atomic.Bool
	stepName  atomic.Pointer[string] // what Close is about
	closeOnce sync.Once
	closed    chan struct{} // Close's work is done
	done      chan struct{}
	closeErr  error
	failOnce  sync.Once
	failed    atomic.Pointer[error]
}

// front is a front end and its open listener.
type front struct {
	protocol protocol.Frontend
	listener net.Listener
}

// Addresses that a broker listens on, host:port.
type Addresses struct {
	Clients  string   // of the first front end
	Fronts   []string // of each front end
	HTTP     string   // "" when it is off
	Raft     string
	Peer     string // as configured where nothing listens: a lone broker
	DataPath string
}

// Addresses that the broker listens on.
func (b *Broker) Addresses() Addresses { return b.addresses }

// self is this broker's id.
func (b *Broker) self() uint64 { return b.selfID.Load() }

// Name of the broker.
func (b *Broker) Name() string { return b.c.Name }

// URL for clients on this machine.
func (b *Broker) URL() string {
	return "nats://" + strings.Replace(b.addresses.Clients, "[::]", "localhost", 1)
}

// API answers requests without a connection.
func (b *Broker) API() *api.Handlers { return b.api }

// Done is closed when the broker has stopped, by Close or by itself.
func (b *Broker) Done() <-chan struct{} { return b.done }

// Wait returns when the broker has stopped: nil after Close, and why it stopped
// by itself otherwise.
func (b *Broker) Wait() error {
	<-b.done
	if err := b.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Info implements protocol.Broker.
func (b *Broker) Info() protocol.Info {
	b.infoMu.Lock()
	lame, others := b.lameDuck, b.others
	b.infoMu.Unlock()
	return protocol.Info{
		ServerID: b.id.Incarnation, ServerName: b.c.Name, Cluster: b.id.ClusterID, Version: Version,
		Advertise: b.c.AdvertiseClient, Peers: others, MaxPayload: wire.MaxPayload, LameDuck: lame,
	}
}

// noteInfo tells clients which brokers they may go to.
func (b *Broker) noteInfo() {
	c := b.epochs.Current()
	var others []string
	for i := range c.Brokers {
		if o := &c.Brokers[i]; o.ID != b.self() && o.Incarnation != b.id.Incarnation && o.Addresses.Client != "" && o.State != config.Dead {
			others = append(others, o.Addresses.Client)
		}
	}
	b.infoMu.Lock()
	defer b.infoMu.Unlock()
	if slices.Equal(others, b.others) {
		return
	}
	b.others = others
	close(b.changed)
	b.changed = make(chan struct{})
}

// Changed implements protocol.Broker.
func (b *Broker) Changed() <-chan struct{} {
	b.infoMu.Lock()
	defer b.infoMu.Unlock()
	return b.changed
}

// Router implements protocol.Broker.
func (b *Broker) Router() *interest.Router { return b.router }
