package epoch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/format"
	"github.com/parleymq/parley/replication/paxos"
)

// soloJournal is the journal that the store of a lone broker wrote before there were
// clusters: entries of decided epochs and nothing else, the older ones as headers.
func soloJournal(t *testing.T, dir directory, epochs, headers int) {
	t.Helper()
	c := genesis()
	var entries []entry
	for n := range epochs {
		if n > 0 {
			next := c.Clone()
			next.Epoch, next.Previous = uint64(n), c.Hash()
			if err := form(next); err != nil {
				t.Fatal(err)
			}
			c = next
		}
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		e := entry{kind: kindValue, epoch: c.Epoch, payload: b}
		if n < headers {
			h := headerOf(c, c.Hash())
			e = entry{kind: kindHeader, epoch: c.Epoch, payload: h.encode()}
		}
		entries = append(entries, e)
	}
	j, err := rewriteJournal(dir, entries)
	if err != nil {
		t.Fatal(err)
	}
	j.close()
}

func TestOpensSoloDirectory(t *testing.T) {
	t.Parallel()
	for _, headers := range []int{0, 40} {
		bubble(t, fmt.Sprintf("%d headers", headers), func(t *testing.T, w *world) {
			n := w.add(1, config.Broker{ID: 1, Name: "b1", Incarnation: "i1", Addresses: config.Addresses{Peer: "b1:6222"}}, genesis)
			soloJournal(t, n.dir, 50, headers)
			w.up(n)
			if c := n.c.Current(); c.Epoch != 49 || c.ClusterID != "c1" {
				t.Fatalf("epoch %d of %s", c.Epoch, c.ClusterID)
			}
			var got uint64
			if c, err := n.c.Propose(t.Context(), count("a", &got)); err != nil || c.Epoch != 50 {
				t.Fatal(err)
			}
			if _, err := w.join("b2", "b1:6222"); err != nil {
				t.Fatal(err)
			}
			n.crash()
			w.up(n)
			if newest := w.settle(51, 2*time.Second); newest != 51 {
				t.Errorf("epoch %d", newest)
			}
			if h := w.nodes[2].c.History(51, 100); len(h) != 52 {
				t.Errorf("the newcomer has %d headers", len(h))
			}
		})
	}
}

// TestJournalTable writes journals whose every entry is whole, and says what is to
// become of them.
func TestJournalTable(t *testing.T) {
	t.Parallel()
	zero := genesis()
	value := func(c *config.Config) entry {
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return entry{kind: kindValue, epoch: c.Epoch, payload: b}
	}
	follow := func(c *config.Config) *config.Config {
		n := c.Clone()
		n.Epoch, n.Previous = c.Epoch+1, c.Hash()
		if err := form(n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	one := follow(zero)
	two := follow(one)
	head := func(c *config.Config) entry {
		h := headerOf(c, c.Hash())
		return entry{kind: kindHeader, epoch: c.Epoch, payload: h.encode()}
	}
	step := func(r ...paxos.Record) entry { return entry{kind: kindStep, payload: encodeRecords(r)} }
	promised := func(epoch, round uint64) paxos.Record {
		return paxos.Record{Kind: paxos.RecordPromised, Epoch: epoch, Ballot: paxos.Ballot{Round: round, Incarnation: "i1", Boot: 1}}
	}
	decided := func(c *config.Config) paxos.Record {
		e := value(c)
		return paxos.Record{Kind: paxos.RecordDecided, Entries: []paxos.Entry{{Epoch: c.Epoch, Hash: paxos.Hash(c.Hash()), Previous: paxos.Hash(c.Previous), Value: e.payload}}}
	}
	invalid := follow(one)
	invalid.Brokers[0].Weight = 0
	for _, c := range []struct {
		name    string
		entries []entry
		epoch   uint64
		wrong   string
	}{
		{"nothing", nil, 0, ""},
		{"a start alone", []entry{bootEntry(1)}, 0, ""},
		{"epoch 0", []entry{value(zero)}, 0, ""},
		{"decided in a group", []entry{value(zero), bootEntry(1), step(decided(one), promised(2, 3))}, 1, ""},
		{"promises rise", []entry{value(zero), step(promised(1, 3)), step(promised(1, 4))}, 0, ""},
		{"headers, then a value", []entry{head(zero), head(one), value(two)}, 2, ""},
		{"a promise of an epoch that is decided", []entry{value(zero), value(one), step(promised(1, 3))}, 1, ""},
		{"promises fall", []entry{value(zero), step(promised(1, 3)), step(promised(1, 2))}, 0, "after"},
		{"a promise for an epoch too far", []entry{value(zero), step(promised(2, 3))}, 0, "the newest epoch is 0"},
		{"starts fall", []entry{bootEntry(2), bootEntry(2)}, 0, "falls from 2 to 2"},
		{"a skipped epoch", []entry{value(zero), value(two)}, 0, "epoch 1 was expected"},
		{"an epoch twice", []entry{value(zero), value(zero)}, 0, "epoch 1 was expected"},
		{"a skipped epoch in a group", []entry{value(zero), step(decided(two))}, 0, "epoch 1 was expected"},
		{"the newest has no value", []entry{value(zero), head(one)}, 0, "the newest epoch has no value"},
		{"not a value", []entry{{kind: kindValue, payload: []byte("x")}}, 0, "not an encoded configuration"},
		{"a value that breaks a rule", []entry{value(zero), value(one), value(invalid)}, 0, "weight 0"},
		{"not a record", []entry{value(zero), {kind: kindStep, payload: []byte{1, 9}}}, 0, "9 bytes"},
		{"an unknown record", []entry{value(zero), step(paxos.Record{Kind: 9, Epoch: 1})}, 0, "unknown kind 9"},
		{"a decision of nothing", []entry{value(zero), step(paxos.Record{Kind: paxos.RecordDecided, Epoch: 1})}, 0, "no epoch is decided"},
	} {
		dir := newMemoryDirectory()
		j, err := rewriteJournal(dir, c.entries)
		if err != nil {
			t.Fatal(err)
		}
		j.close()
		before, _ := dir.read(journalName)
		s, err := Open(Options{Self: self1, Genesis: genesis, dir: dir})
		if c.wrong != "" {
			after, _ := dir.read(journalName)
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.wrong) || !slices.Equal(before, after) {
				t.Errorf("%s: %v, want %q", c.name, err, c.wrong)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if s.Current().Epoch != c.epoch {
			t.Errorf("%s: epoch %d", c.name, s.Current().Epoch)
		}
		s.Close()
	}
}

// TestCutClusterJournal cuts the journals of a cluster at every block: none opens, since what was promised is missing, but
// after a power cut that left an older note of where it ends, each does, with what was committed before the cut.
func TestCutClusterJournal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.stop()
		nodes := w.formed(3)
		var got uint64
		for i := range 4 {
			if _, err := nodes[i%3].c.Propose(t.Context(), count(fmt.Sprint(i), &got)); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range nodes {
			n.stop()
			whole, err := n.dir.read(journalName)
			if err != nil {
				t.Fatal(err)
			}
			last := uint64(0)
			for at := 0; at <= len(whole); at += block {
				dir := newMemoryDirectory()
				f, _ := dir.open(journalName, true)
				f.WriteAt(whole[:at], 0)
				o := n.options()
				o.dir, o.Transport = dir, nil
				exact, err := n.dir.read(endName)
				if err != nil {
					t.Fatal(err)
				}
				e, _ := dir.open(endName, true)
				e.WriteAt(exact, 0)
				if at < len(whole) {
					if _, err := Open(o); !errors.Is(err, ErrCorrupt) {
						t.Fatalf("cut at %d of %d, which was promised: %v", at, len(whole), err)
					}
				}
				for page := int64(0); page < endBytes; page += endPage {
					e.WriteAt(ending{}.encode(), page)
				}
				c, err := Open(o)
				if err != nil {
					t.Fatalf("cut at %d of %d: %v", at, len(whole), err)
				}
				if c.Current().Epoch < last {
					t.Errorf("cut at %d: epoch %d, with less %d", at, c.Current().Epoch, last)
				}
				last = c.Current().Epoch
				c.Close()
			}
			if last != 5 {
				t.Errorf("epoch %d", last)
			}
		}
	})
}

// TestJournalStaysSmall: votes that come to nothing don't make the journal grow for ever.
func TestJournalStaysSmall(t *testing.T) {
	t.Parallel()
	dir := newMemoryDirectory()
	c, err := Open(Options{Self: self1, Genesis: genesis, dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Propose(t.Context(), form); err != nil {
		t.Fatal(err)
	}
	next := c.Current().Clone()
	next.Epoch, next.Previous = 2, c.Current().Hash()
	r := rand.New(rand.NewPCG(1, 1)) // text that doesn't compress
	for i := range 400 {
		text := make([]byte, 800)
		for i := range text {
			text[i] = byte('a' + r.IntN(26))
		}
		next.Brokers[0].Rack = string(text)
		next.Topics = append(next.Topics, config.Topic{ID: uint64(i + 1), Name: fmt.Sprint("t", i), Subjects: []string{fmt.Sprint("t", i, ".", string(text[:500]))},
			Partitions: []config.Partition{{Shard: uint64(i + 1), Replicas: []config.Replica{{ID: uint64(i + 1), Broker: 1}}}}})
	}
	next.NextTopic, next.NextShard, next.NextReplica = 401, 401, 401
	value, err := next.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for round := uint64(1); round < 60; round++ {
		m := paxos.Message{Kind: paxos.Accept, From: paxos.Member{ID: 1, Incarnation: "i1"}, To: paxos.Member{ID: 1, Incarnation: "i1"}, Cluster: "c1",
			Epoch: 2, Previous: paxos.Hash(c.Current().Hash()), Ballot: paxos.Ballot{Round: round, Incarnation: "i1", Boot: 9}, Value: value}
		if !c.order(context.Background(), func(w *owner) { w.take(w.machine.Step(m)) }) {
			t.Fatal("it stopped")
		}
	}
	c.Close()
	b, err := dir.read(journalName)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a value of %d bytes, a journal of %d", len(value), len(b))
	if len(value) < 100<<10 || len(b) > maxDead+2<<20 {
		t.Errorf("a value of %d bytes, a journal of %d", len(value), len(b))
	}
	c, err = Open(Options{Self: self1, Genesis: genesis, dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.order(context.Background(), func(w *owner) {
		if s := w.machine.State(); s.Accepted.Ballot.Round != 59 || string(s.Accepted.Value) != string(value) {
			t.Errorf("the vote at round %d is left", s.Accepted.Ballot.Round)
		}
	})
}

// direct hands messages over in one process, without faults.
type direct struct {
	from  *Cluster
	peers *sync.Map
}

func (d *direct) Send(to uint64, msg []byte) {
	if p, ok := d.peers.Load(to); ok {
		id, incarnation := d.from.Self()
		_ = p.(*Cluster).Deliver(id, incarnation, msg)
	}
}

// onDisk is a formed cluster of n brokers on this machine's disk.
func onDisk(t testing.TB, n int) []*Cluster {
	t.Helper()
	var peers sync.Map
	var stores []*Cluster
	ask := func(ctx context.Context, address, subject string, req []byte) ([]byte, error) {
		for i, l := range list(n) {
			if p, ok := peers.Load(uint64(i + 1)); ok && l.Address == address {
				var from string
				if q := subject; q != SubjectMessage {
					from = incarnationIn(req)
				} else if m, err := decodeMessage(req); err == nil {
					from = m.From.Incarnation
				}
				return p.(*Cluster).Answer(ctx, from, subject, req)
			}
		}
		return nil, errNobody
	}
	for i := range n {
		d := &direct{peers: &peers}
		c, err := Open(Options{Dir: t.TempDir(), Self: broker(fmt.Sprintf("b%d", i+1)), Genesis: func() *config.Config { return Initial(list(n)) }, Transport: d, Ask: ask,
			Times: Times{Hello: 10 * time.Millisecond}})
		if err != nil {
			t.Fatal(err)
		}
		d.from = c
		t.Cleanup(func() { c.Close() })
		peers.Store(uint64(i+1), c)
		stores = append(stores, c)
	}
	var wg sync.WaitGroup
	for _, c := range stores {
		wg.Go(func() {
			ctx, cancel := within(20 * time.Second)
			defer cancel()
			if err := c.Bootstrap(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return stores
}

func incarnationIn(req []byte) string {
	_, rest, _ := strings.Cut(string(req), `"Incarnation":"`)
	incarnation, _, _ := strings.Cut(rest, `"`)
	return incarnation
}

// TestLatency has epochs decided on this machine's disk, in real time.
func TestLatency(t *testing.T) {
	stores := onDisk(t, 3)
	for _, who := range []int{0, 2} {
		var took []time.Duration
		var got uint64
		for i := range 60 {
			begun := time.Now()
			if _, err := stores[who].Propose(t.Context(), count(fmt.Sprint(i), &got)); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		p50, p99 := took[len(took)/2], took[len(took)-1]
		t.Logf("broker %d: p50 %v, slowest of %d %v", who+1, p50, len(took), p99)
		if p50 > 500*time.Millisecond {
			t.Errorf("broker %d: an epoch takes %v", who+1, p50)
		}
	}
}

func BenchmarkLonePropose(b *testing.B) {
	c, err := Open(Options{Dir: b.TempDir(), Self: self1, Genesis: genesis})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Propose(b.Context(), form); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	stores := onDisk(b, 3)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := stores[1].Read(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoneStart opens a store that has decided a few epochs.
func BenchmarkLoneStart(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		c, err := Open(Options{Dir: dir, Self: self1, Genesis: genesis})
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkLoneBegin begins a cluster of one broker.
func BenchmarkLoneBegin(b *testing.B) {
	root := b.TempDir()
	n := 0
	for b.Loop() {
		n++
		dir := filepath.Join(root, fmt.Sprint(n))
		c, err := Open(Options{Dir: dir, Self: self1, Genesis: genesis})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Propose(b.Context(), form); err != nil {
			b.Fatal(err)
		}
		c.Close()
		os.RemoveAll(dir)
	}
}

// state is what a power cut at this moment would surely leave.
func (d *memoryDirectory) state(t *testing.T) paxos.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b []byte
	if f := d.durable[journalName]; f != nil {
		b = f.synced
	}
	entries, _, err := scan(b)
	if err != nil {
		t.Error(err)
	}
	s, err := (&owner{Cluster: &Cluster{}, journal: &journal{}}).load(entries)
	if err != nil {
		t.Error(err)
	}
	return s
}

// TestDurableFirst looks at the disk whenever a message leaves: what it promises is there.
func TestDurableFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.stop()
		var mu sync.Mutex
		seen := map[paxos.Kind]int{}
		w.inspect = func(from *node, msg []byte) {
			m, err := decodeMessage(msg)
			if err != nil {
				t.Error(err)
				return
			}
			s := from.dir.state(t)
			ok := true
			switch m.Kind {
			case paxos.Promise:
				ok = s.Newest.Epoch >= m.Epoch || s.Promised.Compare(m.Ballot) >= 0 && s.Accepted.Ballot.Compare(m.Accepted.Ballot) >= 0
			case paxos.Accepts:
				ok = s.Newest.Epoch >= m.Epoch || s.Accepted.Ballot.Compare(m.Ballot) >= 0
			case paxos.ReadState:
				ok = s.Newest.Epoch >= m.Epoch || s.Accepted.Ballot.Compare(m.Accepted.Ballot) >= 0
			case paxos.LearnAck:
				ok = s.Newest.Epoch >= m.Epoch
			case paxos.Decided:
				ok = len(m.Entries) == 0 || s.Newest.Epoch >= m.Entries[len(m.Entries)-1].Epoch
			case paxos.Prepare, paxos.Accept, paxos.Read, paxos.Fetch:
				ok = s.Newest.Epoch+1 >= m.Epoch
			}
			if !ok {
				t.Errorf("%v leaves, and on disk is %v, promised %v, voted at %v", m, s.Newest, s.Promised, s.Accepted.Ballot)
			}
			mu.Lock()
			seen[m.Kind]++
			mu.Unlock()
		}
		w.times.Rank = 1
		nodes := w.formed(3)
		w.mu.Lock()
		w.drop, w.repeat, w.delay = 0.05, 0.1, 5*time.Millisecond
		w.mu.Unlock()
		var wg sync.WaitGroup
		for _, n := range nodes {
			n.dir.slowTo(2 * time.Millisecond)
			wg.Go(func() {
				for i := range 5 {
					var got uint64
					c, err := n.c.Propose(t.Context(), count(fmt.Sprint(i), &got))
					if err != nil {
						t.Error(err)
					}
					if s := n.dir.state(t); s.Newest.Epoch < c.Epoch || s.Newest.Epoch < n.c.Current().Epoch {
						t.Errorf("epoch %d is told, %d is on disk", c.Epoch, s.Newest.Epoch)
					}
					if _, err := n.c.Read(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		mu.Lock()
		defer mu.Unlock()
		for k := paxos.Prepare; k < paxos.Fetch; k++ {
			if seen[k] == 0 {
				t.Errorf("no %v was seen", k)
			}
		}
	})
}

// TestStartsAreCounted: no two lives have the same count, whatever a power cut takes, and
// whether the journal was rewritten in between.
func TestStartsAreCounted(t *testing.T) {
	t.Parallel()
	dir := newMemoryDirectory()
	r := rand.New(rand.NewPCG(1, 1))
	for life := uint64(1); life <= 6; life++ {
		c, err := Open(Options{Self: self1, Genesis: genesis, dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if c.boot != life {
			t.Errorf("life %d is counted as %d", life, c.boot)
		}
		if life%2 == 0 {
			c.order(t.Context(), func(w *owner) { err = w.shorten() })
			if err != nil {
				t.Error(err)
			}
		}
		dir = dir.crash(r)
		c.Close()
	}
}

// What a newer program wrote into the journal, whole by its checksums, is not called damaged, and stays as it is.
func TestJournalOfANewerProgram(t *testing.T) {
	t.Parallel()
	zero := genesis()
	encoded := func(c *config.Config) []byte {
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := entry{kind: kindValue, payload: encoded(zero)}
	above := genesis()
	above.FeatureLevel = config.Level + 1
	form := encoded(genesis())
	form[len("PEV")] = 200 // behind the magic
	record := encodeRecords([]paxos.Record{{Kind: paxos.RecordPromised, Epoch: 1, Ballot: paxos.Ballot{Round: 1, Incarnation: "i1", Boot: 1}}})
	record[2]++ // behind the number of records and the length of the first: its version
	for name, entries := range map[string][]entry{
		"a kind of entry":         {first, {kind: 9}},
		"a feature level":         {{kind: kindValue, payload: encoded(above)}},
		"a configuration's form":  {{kind: kindValue, payload: form}},
		"a record of what passed": {first, {kind: kindStep, epoch: 1, payload: record}},
	} {
		dir := newMemoryDirectory()
		j, err := rewriteJournal(dir, entries)
		if err != nil {
			t.Fatal(err)
		}
		j.close()
		refuses(t, name, dir)
	}
	dir := newMemoryDirectory()
	j, err := rewriteJournal(dir, []entry{first})
	if err != nil {
		t.Fatal(err)
	}
	header := make([]byte, block)
	copy(header, headerText+"2\n")
	binary.LittleEndian.PutUint32(header[block-4:], checksum(header[:block-4]))
	if _, err := j.f.WriteAt(header, 0); err != nil {
		t.Fatal(err)
	}
	j.close()
	refuses(t, "the journal's format", dir)
}

func refuses(t *testing.T, name string, dir directory) {
	t.Helper()
	before, _ := dir.read(journalName)
	_, err := Open(Options{Self: self1, Genesis: genesis, dir: dir})
	after, _ := dir.read(journalName)
	if !errors.Is(err, format.ErrNewer) || errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "journal is damaged") || !slices.Equal(before, after) {
		t.Errorf("%s: %v, want ErrNewer and the same bytes", name, err)
	}
}
