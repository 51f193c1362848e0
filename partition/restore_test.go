package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication"
)

// sources are the other replicas that a machine under test asks.
type sources struct {
	mu     sync.Mutex
	of     map[uint64]*machine
	spoil  func(id uint64, q ChunkRequest, b []byte) ([]byte, error) // nil: nothing goes wrong
	asked  int
	bytes  int64 // of frames that arrived whole
	served map[uint64]int
}

func (s *sources) Turn(context.Context) (func(), error) { return func() {}, nil }

func (s *sources) Others() (ids []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.of {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (s *sources) Chunks(_ context.Context, id uint64, q ChunkRequest) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	m := s.of[id]
	if m == nil {
		return nil, errors.New("unreachable")
	}
	b, err := m.supply(q)
	if err == nil && s.spoil != nil {
		b, err = s.spoil(id, q, b)
	}
	if err == nil {
		s.bytes += int64(len(b))
		if s.served == nil {
			s.served = map[uint64]int{}
		}
		s.served[id]++
	}
	return b, err
}

func (s *sources) Snapshot(_ context.Context, id uint64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.of[id]
	if m == nil {
		return nil, errors.New("unreachable")
	}
	return snapshotOf(m)
}

func snapshotOf(m *machine) ([]byte, error) {
	point, err := m.PrepareSnapshot()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = m.SaveSnapshot(point, &b, nil)
	return b.Bytes(), err
}

func mustSnapshot(t testing.TB, m *machine) []byte {
	t.Helper()
	b, err := snapshotOf(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// machineAt is a machine that has applied the log's first n commands. Its spans are small.
func machineAt(t testing.TB, log [][]byte, n int) *machine {
	t.Helper()
	dir := t.TempDir()
	m, _ := openMachine(t, memoryEngine(t, dir), dir)
	m.spanBytes = 2 << 10
	m.feed(t, log, 0, n)
	return m
}

func (m *machine) feed(t testing.TB, log [][]byte, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		m.do(t, uint64(i+1), log[i])
	}
}

// marksOf lists all index pairs of a log from its start offset on.
func marksOf(t testing.TB, m *machine) (all []byte) {
	t.Helper()
	for at := m.look().start; ; {
		k, v, ok, err := m.store.Seek(markKey(at), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return all
		}
		mk, err := parseMark(k, v)
		if err != nil {
			t.Fatal(err)
		}
		all = fmt.Appendf(all, "%+v\n", mk)
		at = mk.offset + 1
	}
}

func sameMarks(t testing.TB, got, want *machine) {
	t.Helper()
	a, b := strings.Split(string(marksOf(t, got)), "\n"), strings.Split(string(marksOf(t, want)), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Fatalf("marks differ: %s, want %s", a[i], b[i])
		}
	}
	if len(a) != len(b) {
		t.Fatalf("%d marks, want %d", len(a), len(b))
	}
}

// alike checks that two replicas have the same state and log.
func alike(t testing.TB, got, want *machine) {
	t.Helper()
	if a, b := got.state.encode(nil), want.state.encode(nil); !bytes.Equal(a, b) {
		t.Fatalf("states differ: %+v and %+v", got.state, want.state)
	}
	if a, b := contents(t, got), contents(t, want); !bytes.Equal(a, b) {
		t.Fatalf("logs differ: %d and %d bytes", len(a), len(b))
	}
}

// plainLog is n commands whose second half differs with after, in its batches' sizes too.
func plainLog(t testing.TB, n int, before, after string) [][]byte {
	log := [][]byte{command(commandHeader{kind: kindStart, term: 1})}
	for i := 1; i < n; i++ {
		values := []string{fmt.Sprint(before, i)}
		if i >= n/2 {
			values = slices.Repeat([]string{fmt.Sprint(after, i)}, 1+len(after)%3)
		}
		log = append(log, command(commandHeader{kind: kindAppend, term: 1, counter: uint64(i), logTime: int64(i) * 700},
			itemOf(t, -1, record.NoProducer, nil, values...)))
	}
	return log
}

func (m *machine) recover(t testing.TB, snapshot []byte, peers Peers) {
	t.Helper()
	m.peers = peers
	if err := m.RecoverFromSnapshot(bytes.NewReader(snapshot), nil); err != nil {
		t.Fatal(err)
	}
}

func frames(t testing.TB, m *machine, from, to int64) (n int64) {
	t.Helper()
	if err := m.store.Read(from, func(c storage.Chunk) bool {
		if c.Base >= to {
			return false
		}
		n += int64(frameSize(&c))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRestoreFetchesWhatLacks: a replica that has the log up to some entry fetches what
// follows, and no more than that.
func TestRestoreFetchesWhatLacks(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 20; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			log := randomLog(t, seed, 600)
			rng := rand.New(rand.NewPCG(seed, 9))
			have, end := rng.IntN(400), 400+rng.IntN(200)
			source := machineAt(t, log, end)
			snap := mustSnapshot(t, source)
			first := firstBase(t, source)
			source.feed(t, log, end, len(log)) // applied meanwhile, not part of the snapshot
			peers := &sources{of: map[uint64]*machine{7: source}}
			m := machineAt(t, log, have)
			from := m.state.next
			m.recover(t, snap, peers)
			alike(t, m, machineAt(t, log, end))
			if from > 0 {
				sameMarks(t, m, machineAt(t, log, end))
			}
			if want := frames(t, source, max(from, first), m.state.next); peers.bytes != want {
				t.Fatalf("%d bytes were fetched, %d lacked", peers.bytes, want)
			}
			m.feed(t, log, end, len(log))
			alike(t, m, source)
			// It is as good a source as the one that it came from.
			n := machineAt(t, log, 0)
			n.recover(t, mustSnapshot(t, m), &sources{of: map[uint64]*machine{1: m}})
			alike(t, n, source)
		})
	}
}

func firstBase(t testing.TB, m *machine) (base int64) {
	t.Helper()
	if err := m.store.Read(m.look().start, func(c storage.Chunk) bool {
		base = c.Base
		return false
	}); err != nil {
		t.Fatal(err)
	}
	return base
}

// holed is a store in which chunks are missing or damaged until they are mended.
type holed struct {
	storage.Store
	mu      sync.Mutex
	missing map[int64]bool
	flipped map[int64]bool
}

func (h *holed) look(visit func(storage.Chunk) bool) func(storage.Chunk) bool {
	return func(c storage.Chunk) bool {
		h.mu.Lock()
		missing, flipped := h.missing[c.Base], h.flipped[c.Base]
		h.mu.Unlock()
		if missing {
			return true
		}
		if flipped {
			c.Data = bytes.Clone(c.Data)
			c.Data[len(c.Data)-1] ^= 1
		}
		return visit(c)
	}
}

func (h *holed) Read(from int64, visit func(storage.Chunk) bool) error {
	return h.Store.Read(from, h.look(visit))
}

func (h *holed) Survey(from, to int64, visit func(storage.Chunk) bool) error {
	return h.Store.Survey(from, to, h.look(visit))
}

func (h *holed) Mend(chunks []storage.Chunk, index []storage.IndexEntry) error {
	h.mu.Lock()
	for _, c := range chunks {
		delete(h.missing, c.Base)
		delete(h.flipped, c.Base)
	}
	h.mu.Unlock()
	return h.Store.Mend(chunks, index)
}

func (h *holed) Settle(m storage.Mark) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for base := range h.missing {
		if base >= m.Start && base < m.Next {
			return &storage.HoleError{From: base, To: base + 1}
		}
	}
	return h.Store.Settle(m)
}

// TestRestoreFillsGaps: whatever is missing or damaged in what a replica shows, and in what it
// holds above its end, is fetched; a span that is whole is not.
func TestRestoreFillsGaps(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 40; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			log := randomLog(t, seed, 600)
			rng := rand.New(rand.NewPCG(seed, 10))
			source := machineAt(t, log, len(log))
			snap := mustSnapshot(t, source)
			f, err := readManifest(bytes.NewReader(snap))
			if err != nil {
				t.Fatal(err)
			}
			m := machineAt(t, log, rng.IntN(len(log)))
			// Part of what it lacks is there, hidden.
			var hidden []storage.Chunk
			if err := source.store.Read(m.state.next, func(c storage.Chunk) bool {
				if rng.IntN(10) > 0 {
					hidden = append(hidden, c)
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
			for _, c := range hidden {
				if err := m.store.Mend([]storage.Chunk{c}, nil); err != nil {
					t.Fatal(err)
				}
			}
			gaps := &holed{Store: m.store, missing: map[int64]bool{}, flipped: map[int64]bool{}}
			if err := m.store.Survey(0, 1<<40, func(c storage.Chunk) bool {
				switch rng.IntN(60) {
				case 0:
					gaps.missing[c.Base] = true
				case 1:
					gaps.flipped[c.Base] = true
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
			want, whole := int64(0), 0
			for _, s := range f.spans {
				held := map[int64]bool{}
				if err := gaps.Survey(s.from, s.to, func(c storage.Chunk) bool {
					held[c.Base] = verify(c.Data, everyBatch) == nil
					return true
				}); err != nil {
					t.Fatal(err)
				}
				lacks := s.to
				if err := source.store.Read(s.from, func(c storage.Chunk) bool {
					if c.Base < s.to && !held[c.Base] {
						lacks = c.Base
					}
					return lacks == s.to && c.Base < s.to
				}); err != nil {
					t.Fatal(err)
				}
				if lacks == s.to {
					whole++
				}
				want += frames(t, source, lacks, s.to)
			}
			m.store = gaps
			m.damaged(describe(ErrDamaged, "holes"))
			peers := &sources{of: map[uint64]*machine{7: source}}
			m.recover(t, snap, peers)
			alike(t, m, source)
			if peers.bytes != want {
				t.Fatalf("%d bytes were fetched, want %d: %d of %d spans were whole", peers.bytes, want, whole, len(f.spans))
			}
			if m.damage.Load() != nil {
				t.Error("it is damaged still")
			}
		})
	}
}

// TestRestoreGoesOnElsewhere: replicas that are away, send rubbish, or are behind cost nothing
// but the asking.
func TestRestoreGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 10; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			log := randomLog(t, seed, 500)
			rng := rand.New(rand.NewPCG(seed, 11))
			source, behind := machineAt(t, log, len(log)), machineAt(t, log, 300)
			other := machineAt(t, randomLog(t, seed+1000, 700), 700) // another history altogether
			peers := &sources{of: map[uint64]*machine{1: source, 2: behind, 3: nil, 4: machineAt(t, log, len(log)), 5: other}}
			peers.spoil = func(id uint64, _ ChunkRequest, b []byte) ([]byte, error) {
				switch rng.IntN(10) {
				case 0:
					return nil, errors.New("link down")
				case 1:
					b = bytes.Clone(b)
					b[rng.IntN(len(b))] ^= 4
					return b, nil
				case 2:
					return b[:rng.IntN(len(b))], nil
				case 3:
					return nil, nil
				}
				return b, nil
			}
			m := machineAt(t, log, 100)
			m.recover(t, mustSnapshot(t, source), peers)
			alike(t, m, source)
		})
	}
}

// TestRestoreOfAnotherHistory: a replica whose records are not the others' (its Raft log lost what
// it had acked, say) keeps what is the same and replaces the rest.
func TestRestoreOfAnotherHistory(t *testing.T) {
	t.Parallel()
	log := plainLog(t, 400, "same", "one")
	source := machineAt(t, log, 400)
	m := machineAt(t, plainLog(t, 400, "same", "other"), 300)
	if m.state.chain == machineAt(t, log, 300).state.chain {
		t.Fatal("histories are the same")
	}
	peers := &sources{of: map[uint64]*machine{7: source}}
	m.recover(t, mustSnapshot(t, source), peers)
	alike(t, m, source)
	whole := frames(t, source, firstBase(t, source), source.state.next)
	if peers.bytes == 0 || peers.bytes >= whole*3/4 {
		t.Errorf("%d of %d bytes were fetched, about half of them differ", peers.bytes, whole)
	}
	sameMarks(t, m, source)
}

// TestRestoreResumes: an end in the middle, of the process or the machine, doesn't make it fetch
// again what it has.
func TestRestoreResumes(t *testing.T) {
	t.Parallel()
	log := randomLog(t, 8, 800)
	source := machineAt(t, log, 800)
	snap := mustSnapshot(t, source)
	dir := t.TempDir()
	e := memoryEngine(t, dir)
	m, cp := openMachine(t, e, dir)
	m.feed(t, log, 0, 100)
	if err := cp.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	lacking := frames(t, source, max(m.state.next, firstBase(t, source)), source.state.next)
	total, rounds := int64(0), 0
	for {
		stop := make(chan struct{})
		n := 0
		peers := &sources{of: map[uint64]*machine{7: source}}
		peers.spoil = func(_ uint64, _ ChunkRequest, b []byte) ([]byte, error) {
			if n++; n == 5 {
				close(stop)
			}
			if n >= 5 {
				return nil, errors.New("too late")
			}
			_, rest, err := nextChunk(b)
			return b[:len(b)-len(rest)], err // one chunk at a time
		}
		m.peers = peers
		err := m.RecoverFromSnapshot(bytes.NewReader(snap), stop)
		total += peers.bytes
		if err == nil {
			break
		}
		if !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		if rounds++; rounds%3 == 0 {
			if err := e.Sync(); err != nil {
				t.Fatal(err)
			}
			cp.Unregister(m.id)
			e = crash(t, e, dir)
		} else {
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
		}
		m, cp = openMachine(t, e, dir)
		if got := m.state.index; got != 100 {
			t.Fatalf("it opens at entry %d, want 100", got)
		}
		if m.damage.Load() != nil {
			t.Fatal(m.damage.Load())
		}
	}
	alike(t, m, source)
	if rounds < 10 {
		t.Fatalf("%d rounds: nothing was cut short", rounds)
	}
	if total != lacking {
		t.Fatalf("%d bytes were fetched in %d rounds, %d lacked", total, rounds, lacking)
	}
}

// TestRestoreOutlivesTrim: what a manifest lists is gone everywhere before it was fetched. A newer
// one is taken, and the log goes on from the older one.
func TestRestoreOutlivesTrim(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source, _ := openMachine(t, memoryEngine(t, dir), dir)
	chunksOf(t, source, 10)
	snap := mustSnapshot(t, source)
	source.leases = leases{} // as if it had restarted
	old := source.state.index
	source.trimTo(t, 5)
	at := source.state.index
	m := machineAt(t, nil, 0)
	m.recover(t, snap, &sources{of: map[uint64]*machine{7: source}})
	alike(t, m, source)
	if m.state.index != at || m.state.start != 5 {
		t.Fatalf("it is at entry %d and starts at %d, want %d and 5", m.state.index, m.state.start, at)
	}
	// Whoever gets a snapshot from it now has what it has.
	third := machineAt(t, nil, 0)
	third.recover(t, mustSnapshot(t, m), &sources{of: map[uint64]*machine{7: source}})
	alike(t, third, source)
	for _, m := range []*machine{m, third} {
		// The replicated log goes on after the snapshot that it knows of.
		for i := old + 1; i <= at; i++ {
			if err := m.Apply([]replication.Entry{{Index: i, Data: []byte("was applied")}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Apply([]replication.Entry{{Index: at, Data: nil}}); err != nil {
			t.Fatal(err)
		}
		if got := m.do(t, at+1, command(commandHeader{kind: kindStart, term: 99})); got.Value != resultOK {
			t.Fatalf("the next entry: %+v", got)
		}
	}
}

// shared has one turn for the replicas of several partitions.
type shared struct {
	*sources
	turn chan struct{}
}

func (s shared) Turn(ctx context.Context) (func(), error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestRestoreLeavesItsTurn: a replica that nobody gives what it lacks doesn't keep others from fetching.
func TestRestoreLeavesItsTurn(t *testing.T) {
	t.Parallel()
	log := plainLog(t, 20, "a", "a")
	source := machineAt(t, log, len(log))
	snap := mustSnapshot(t, source)
	turn := make(chan struct{}, 1)
	stuck, other := machineAt(t, nil, 0), machineAt(t, nil, 0)
	stuck.peers = shared{&sources{of: map[uint64]*machine{7: nil}}, turn}
	stop, ended := make(chan struct{}), make(chan error)
	go func() { ended <- stuck.RecoverFromSnapshot(bytes.NewReader(snap), stop) }()
	deadline := time.Now().Add(30 * time.Second)
	for c := stuck.catching.Load(); c == nil || c.Problem == ""; c = stuck.catching.Load() {
		if time.Now().After(deadline) {
			t.Fatal("it doesn't say that it gets nothing")
		}
		time.Sleep(time.Millisecond)
	}
	other.recover(t, snap, shared{&sources{of: map[uint64]*machine{7: source}}, turn})
	alike(t, other, source)
	close(stop)
	if err := <-ended; !errors.Is(err, errStopped) {
		t.Fatalf("stopped: %v", err)
	}
	if len(turn) != 0 {
		t.Fatal("it has kept its turn")
	}
}

// forgetChain makes of a machine what it was before there were chains.
func (m *machine) forgetChain(t testing.TB) {
	t.Helper()
	s, err := decodeState(unchained(m.state))
	if err != nil {
		t.Fatal(err)
	}
	var plain []storage.IndexEntry
	for at := int64(0); ; {
		k, v, ok, err := m.store.Seek(markKey(at), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		mk, err := parseMark(k, v)
		if err != nil {
			t.Fatal(err)
		}
		at, mk.chained = mk.offset+1, false
		plain = append(plain, mk.entry())
	}
	err = errors.Join(m.store.Mend(nil, plain), m.store.Settle(storage.Mark{Start: s.start, Next: s.next}))
	if err != nil {
		t.Fatal(err)
	}
	s.ids, s.groups = m.state.ids, m.state.groups
	m.state = s
}

// TestRestoreFromBeforeChains: replicas that were made before there were chains, each at another
// entry when it got one, still fetch only what they lack.
func TestRestoreFromBeforeChains(t *testing.T) {
	t.Parallel()
	log := randomLog(t, 3, 400)
	source, m := machineAt(t, log, 150), machineAt(t, log, 100)
	source.forgetChain(t)
	m.forgetChain(t)
	source.feed(t, log, 150, len(log))
	m.feed(t, log, 100, 200)
	lacks := frames(t, source, m.look().next, source.look().next)
	peers := &sources{of: map[uint64]*machine{7: source}}
	m.recover(t, mustSnapshot(t, source), peers)
	alike(t, m, source)
	if peers.bytes > lacks {
		t.Errorf("%d bytes were fetched, %d lacked", peers.bytes, lacks)
	}
	third := machineAt(t, nil, 0)
	third.recover(t, mustSnapshot(t, m), &sources{of: map[uint64]*machine{7: source}})
	alike(t, third, source)
}

// TestLeaseHoldsChunks: what a snapshot lists stays until the lease runs out, for whoever asks.
func TestLeaseHoldsChunks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, _ := openMachine(t, memoryEngine(t, dir), dir)
	now := time.Now()
	m.clock = func() time.Time { return now }
	chunksOf(t, m, 10)
	mustSnapshot(t, m)
	m.trimTo(t, 5)
	if m.look().start != 5 {
		t.Fatalf("the log starts at %d, want 5", m.look().start)
	}
	ask := func(from int64) error {
		_, err := m.supply(ChunkRequest{From: from, To: 10, MaxBytes: 1, Replica: 9, Hold: from})
		return err
	}
	m.release()
	if err := ask(2); err != nil {
		t.Fatalf("while the lease holds: %v", err)
	}
	now = now.Add(holdTime - time.Second)
	if err := ask(3); err != nil { // renews its own
		t.Fatal(err)
	}
	now = now.Add(2 * time.Second)
	m.release() // that of the snapshot has ended, another one holds from 3 on
	if err := ask(4); err != nil {
		t.Fatalf("while another lease holds: %v", err)
	}
	now = now.Add(holdTime + time.Second)
	m.release()
	if err := ask(4); !errors.Is(err, ErrTrimmed) {
		t.Fatalf("when no lease holds: %v, want ErrTrimmed", err)
	}
	if err := ask(7); err != nil {
		t.Fatal(err)
	}
}

// TestSupplyRefusesDamage: what is damaged does not spread.
func TestSupplyRefusesDamage(t *testing.T) {
	t.Parallel()
	log := randomLog(t, 78, 100)
	m := machineAt(t, log, 100)
	from, next := firstBase(t, m), m.state.next
	gaps := &holed{Store: m.store, missing: map[int64]bool{}, flipped: map[int64]bool{from: true}}
	m.store = gaps
	q := ChunkRequest{From: from, To: next, MaxBytes: MaxSupply}
	if _, err := m.supply(q); err == nil {
		t.Error("a flipped byte was sent")
	}
	gaps.flipped = nil
	gaps.missing[from] = true
	if _, err := m.supply(q); err == nil || errors.Is(err, ErrTrimmed) {
		t.Errorf("a missing chunk: %v", err)
	}
	gaps.missing = nil
	if _, err := m.supply(ChunkRequest{From: from + 1, To: next}); err == nil {
		t.Error("half a chunk was sent")
	}
	if _, err := m.supply(ChunkRequest{From: from, To: next + 1}); !errors.Is(err, ErrBusy) {
		t.Errorf("what it doesn't have: %v", err)
	}
	b, err := m.supply(q)
	if err != nil {
		t.Fatal(err)
	}
	if want := frames(t, m, from, next); int64(len(b)) != want {
		t.Errorf("%d bytes, want %d", len(b), want)
	}
	m.restoring = true
	if _, err := m.supply(q); !errors.Is(err, ErrBusy) {
		t.Errorf("while it catches up itself: %v", err)
	}
}

// TestSnapshotIsChecked: a damaged snapshot is no snapshot.
func TestSnapshotIsChecked(t *testing.T) {
	t.Parallel()
	log := randomLog(t, 77, 400)
	source := machineAt(t, log, 300)
	snap := mustSnapshot(t, source)
	if f, err := readManifest(bytes.NewReader(snap)); err != nil || len(f.spans) < 3 {
		t.Fatalf("%+v, %v: too few spans to test anything", f, err)
	}
	if whole := frames(t, source, firstBase(t, source), source.state.next); int64(len(snap)) > whole/2 {
		t.Errorf("a snapshot of %d bytes for a log of %d", len(snap), whole)
	}
	for at := range snap {
		bad := bytes.Clone(snap)
		bad[at] ^= 0x10
		if _, err := readManifest(bytes.NewReader(bad)); err == nil {
			t.Fatalf("byte %d flipped: no error", at)
		}
		if _, err := readManifest(bytes.NewReader(snap[:at])); err == nil {
			t.Fatalf("cut at %d: no error", at)
		}
	}
	m := machineAt(t, log, 0)
	if err := m.RecoverFromSnapshot(bytes.NewReader(snap), nil); err == nil {
		t.Error("chunks came from nowhere")
	}
}

// An entry's chunk is linked at each apply: it must cost next to nothing.
func BenchmarkLink(b *testing.B) {
	c := storage.Chunk{Base: 10, Last: 20, Data: batch(b, record.NoProducer, string(make([]byte, 64<<10)))}
	b.SetBytes(int64(len(c.Data)))
	b.ReportAllocs()
	h := uint64(0)
	for b.Loop() {
		h, _ = link(h, &c)
	}
}
