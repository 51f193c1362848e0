package partition_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	_ "github.com/parleymq/parley/partition/storage/badger"
	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/raft"
)

// replicas is one partition on three hosts of this process: real Raft, real disks.
type replicas struct {
	t   testing.TB
	dir string

	mu    sync.Mutex
	at    [4]*site // by replica id
	fatal atomic.Pointer[error]
}

// site is what one broker has.
type site struct {
	host   *raft.Host
	engine storage.Engine
	cp     *storage.Checkpointer
	p      *partition.Partition
	store  *watchedEngine
	peers  *others
	ran    sync.WaitGroup
	stop   context.CancelFunc
}

// watchedEngine tells a test of each append, before it is done.
type watchedEngine struct {
	storage.Engine
	mends   atomic.Int64
	onStore atomic.Pointer[func(s *watchedStore)]
}

type watchedStore struct {
	storage.Store
	e      *watchedEngine
	mended atomic.Bool
}

func (e *watchedEngine) Open(id storage.LogID, m storage.Mark) (storage.Store, error) {
	s, err := e.Engine.Open(id, m)
	if err != nil {
		return nil, err
	}
	return &watchedStore{Store: s, e: e}, nil
}

func (s *watchedStore) Mend(c []storage.Chunk, i []storage.IndexEntry) error {
	err := s.Store.Mend(c, i)
	if len(c) > 0 {
		s.mended.Store(true)
		s.e.mends.Add(1)
	}
	if f := s.e.onStore.Load(); f != nil {
		(*f)(s)
	}
	return err
}

// others are the replicas on the other sites.
type others struct {
	r       *replicas
	id      uint64
	fetched atomic.Int64
}

func (o *others) Turn(context.Context) (func(), error) { return func() {}, nil }

func (o *others) Others() (ids []uint64) {
	for id := uint64(1); id <= 3; id++ {
		if s := o.r.site(id); id != o.id && s != nil && s.p != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

func (o *others) partition(id uint64) (*partition.Partition, error) {
	if s := o.r.site(id); s != nil && s.p != nil {
		return s.p, nil
	}
	return nil, errors.New("it is away")
}

func (o *others) Chunks(_ context.Context, id uint64, q partition.ChunkRequest) ([]byte, error) {
	p, err := o.partition(id)
	if err != nil {
		return nil, err
	}
	b, err := p.Chunks(q)
	o.fetched.Add(int64(len(b)))
	return b, err
}

func (o *others) Snapshot(_ context.Context, id uint64) ([]byte, error) {
	p, err := o.partition(id)
	if err != nil {
		return nil, err
	}
	return p.Snapshot()
}

func newReplicas(t testing.TB) *replicas {
	r := &replicas{t: t, dir: t.TempDir()}
	for id := uint64(1); id <= 3; id++ {
		r.open(id)
	}
	for id := uint64(1); id <= 3; id++ {
		r.start(id)
	}
	t.Cleanup(func() {
		for id := uint64(1); id <= 3; id++ {
			r.close(id)
		}
		if err := r.fatal.Load(); err != nil {
			t.Errorf("fatal: %v", *err)
		}
	})
	return r
}

func (r *replicas) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *replicas) site(id uint64) *site {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at[id]
}

func (r *replicas) open(id uint64) *site {
	r.t.Helper()
	log := zerolog.Nop()
	if os.Getenv("PARLEY_TEST_LOG") != "" {
		log = zerolog.New(zerolog.NewTestWriter(r.t)).With().Uint64("broker", id).Logger()
	}
	dir := filepath.Join(r.dir, fmt.Sprint(id))
	r.must(os.MkdirAll(filepath.Join(dir, "log"), 0o755))
	s := &site{}
	e, err := storage.OpenEngine("badger", storage.Options{Dir: filepath.Join(dir, "log"), MemoryBytes: 32 << 20})
	r.must(err)
	s.store = &watchedEngine{Engine: e}
	s.engine = s.store
	s.cp, err = storage.OpenCheckpointer(dir, s.engine, storage.CheckpointOptions{Every: 50 * time.Millisecond, Logger: log})
	r.must(err)
	s.host, err = raft.NewHost(raft.Config{
		Dir: filepath.Join(dir, "raft"), Listen: "127.0.0.1:0", Tick: 20 * time.Millisecond, Secret: []byte("of this test"),
		SnapshotBytes: 1 << 20, RetainBytes: 1, WriteBuffer: 4 << 20, Logger: log,
		Resolve: func(_, replica uint64) (string, bool) {
			if s := r.site(replica); s != nil {
				return s.host.Address(), true
			}
			return "", false
		},
		OnFatal: func(err error) { r.fatal.CompareAndSwap(nil, &err) },
	})
	r.must(err)
	r.mu.Lock()
	r.at[id] = s
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.ran.Go(func() { _ = s.cp.Run(ctx) })
	return s
}

func (r *replicas) start(id uint64) {
	r.t.Helper()
	s := r.site(id)
	s.peers = &others{r: r, id: id}
	p, err := partition.Open(r.t.Context(), partition.Config{
		Topic: "orders", Log: storage.LogID{Topic: 1, Partition: 1, Replica: id}, Shard: 1, Replica: id,
		Initial: map[uint64]string{1: "x", 2: "x", 3: "x"},
		Host:    s.host, Engine: s.engine, Checkpoints: s.cp, Peers: s.peers, RetentionEvery: 20 * time.Millisecond, Logger: zerolog.Nop(),
	})
	r.must(err)
	s.p = p
}

func (r *replicas) close(id uint64) {
	s := r.site(id)
	if s == nil {
		return
	}
	r.mu.Lock()
	r.at[id] = nil
	r.mu.Unlock()
	var err error
	if s.p != nil {
		err = s.p.Close()
	}
	err = errors.Join(err, s.host.Close())
	s.stop()
	s.ran.Wait()
	if err := errors.Join(err, s.cp.Close(), s.engine.Close()); err != nil {
		r.t.Error(err)
	}
}

func (r *replicas) until(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not %s after 30 s", what)
		}
	}
}

func (r *replicas) leader() *partition.Partition {
	for id := uint64(1); id <= 3; id++ {
		if s := r.site(id); s != nil && s.p != nil && s.p.Leading() {
			return s.p
		}
	}
	return nil
}

type settled chan partition.Outcome

func (c settled) Settle(_ []byte, o partition.Outcome) { c <- o }

// publish stores one record of n bytes and returns once it is acked.
func (r *replicas) publish(n int) {
	r.t.Helper()
	done := make(settled, 1)
	r.until("published", func() bool {
		p := r.leader()
		if p == nil {
			return false
		}
		value := make([]byte, n)
		if err := p.Append(r.t.Context(), &partition.Publication{
			Record: record.Record{Value: value, Timestamp: 1}, Expect: -1, Receiver: done,
		}); err != nil {
			return false
		}
		p.Flush()
		return (<-done).Err == nil
	})
}

// leadBy moves the leadership to a replica.
func (r *replicas) leadBy(id uint64) *partition.Partition {
	r.t.Helper()
	asked := time.Time{}
	r.until(fmt.Sprintf("led by %d", id), func() bool {
		p := r.leader()
		if p != nil && p == r.site(id).p {
			return true
		}
		if p != nil && time.Since(asked) > time.Second {
			asked = time.Now()
			_ = p.Log().Transfer(r.t.Context(), id)
		}
		return false
	})
	return r.site(id).p
}

// away is a replica that doesn't lead.
func (r *replicas) away() uint64 {
	for id := uint64(1); id <= 3; id++ {
		if !r.site(id).p.Leading() {
			return id
		}
	}
	return 0
}

// offsets reads all from the start and returns how many records came, in order without gaps.
func (r *replicas) offsets(p *partition.Partition) (n int64) {
	r.t.Helper()
	st := p.Status()
	at := st.Start
	for at < st.Next {
		res, err := p.Fetch(r.t.Context(), partition.FetchRequest{Offset: at, MaxBytes: 1 << 20}, nil)
		r.must(err)
		data := res.Batches
		for len(data) > 0 {
			b, rest, err := record.Split(data)
			r.must(err)
			r.must(b.VerifyCRC())
			if b.BaseOffset() > at {
				r.t.Fatalf("batch at %d, want %d", b.BaseOffset(), at)
			}
			at, data = b.LastOffset()+1, rest
		}
	}
	return at - st.Start
}

// behind stops a follower and goes on until the others have cut what it would need.
func (r *replicas) behind() (id uint64) {
	r.t.Helper()
	r.until("led", func() bool { return r.leader() != nil })
	for range 20 {
		r.publish(1 << 10)
	}
	id = r.away()
	r.close(id)
	before := make(map[uint64]float64)
	for other := uint64(1); other <= 3; other++ {
		if s := r.site(other); s != nil {
			before[other] = s.host.Figures()["cuts"]
		}
	}
	r.until("cut", func() bool {
		r.publish(64 << 10)
		for other, n := range before {
			if r.site(other).host.Figures()["cuts"] < n+2 {
				return false
			}
		}
		return true
	})
	return id
}

// A follower that was away while the log was cut fetches what it lacks.
func TestLaggardRecovers(t *testing.T) {
	t.Parallel()
	r := newReplicas(t)
	id := r.behind()
	s := r.open(id)
	r.start(id)
	r.until("caught up", func() bool { return s.p.Status().Applied >= r.leader().Status().Applied })
	if s.store.mends.Load() == 0 {
		t.Fatal("it caught up without a snapshot")
	}
	r.until("done with catching up", func() bool { return s.p.Status().Restoring == nil })
	r.publish(10)
	want := r.leader().Status()
	p := r.leadBy(id)
	if got := p.Status(); got.Next < want.Next || got.Start != want.Start || got.Damage != "" {
		t.Fatalf("it has %+v, want %+v", got, want)
	}
	if n := r.offsets(p); n != want.Next-want.Start {
		t.Fatalf("%d records, want %d", n, want.Next-want.Start)
	}
	// What came by snapshot is durable.
	r.close(id)
	r.publish(10)
	s = r.open(id)
	r.start(id)
	r.until("caught up again", func() bool { return s.p.Status().Next >= want.Next+1 })
	if s.store.mends.Load() != 0 {
		t.Fatal("it needed a snapshot again")
	}
}

// One that ends in the middle of a restore does it again at the next start.
func TestRestoreIsCutShort(t *testing.T) {
	t.Parallel()
	r := newReplicas(t)
	id := r.behind()
	s := r.open(id)
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	hook := func(w *watchedStore) {
		if w.mended.Load() {
			once.Do(func() {
				close(held)
				<-release
			})
		}
	}
	s.store.onStore.Store(&hook)
	r.start(id)
	select {
	case <-held:
	case <-time.After(30 * time.Second):
		t.Fatal("no restore began")
	}
	// A round of checkpoints passes meanwhile: it neither waits nor writes what isn't so.
	r.must(s.cp.Sync(t.Context()))
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		r.close(id)
	}()
	r.until("being closed", func() bool { return r.site(id) == nil })
	time.AfterFunc(200*time.Millisecond, func() { close(release) })
	<-closed

	s = r.open(id)
	r.start(id)
	r.until("caught up", func() bool { return s.p.Status().Applied >= r.leader().Status().Applied })
	if s.store.mends.Load() == 0 {
		t.Fatal("it caught up without restoring again")
	}
	want := r.leader().Status()
	p := r.leadBy(id)
	if got := p.Status(); got.Damage != "" {
		t.Fatalf("damage: %s", got.Damage)
	}
	if n := r.offsets(p); n < want.Next-want.Start {
		t.Fatalf("%d records, want %d", n, want.Next-want.Start)
	}
}

var _ replication.Host = (*raft.Host)(nil)
