package partition

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
)

// altered is a store in which what is read is not what was stored.
type altered struct {
	storage.Store
	chunk func(c *storage.Chunk)
	mark  func(mk *mark) bool // false: it isn't there
}

func (a *altered) Read(from int64, visit func(storage.Chunk) bool) error {
	return a.Store.Read(from, func(c storage.Chunk) bool {
		if a.chunk != nil {
			c.Data, c.Meta = bytes.Clone(c.Data), bytes.Clone(c.Meta)
			a.chunk(&c)
		}
		return visit(c)
	})
}

func (a *altered) Seek(key, upTo []byte) (k, v []byte, ok bool, err error) {
	for {
		k, v, ok, err = a.Store.Seek(key, upTo)
		if err != nil || !ok || a.mark == nil {
			return k, v, ok, err
		}
		mk, err := parseMark(k, v)
		if err != nil {
			return k, v, ok, err
		}
		if a.mark(&mk) {
			e := mk.entry()
			return e.Key, e.Value, true, nil
		}
		key = markKey(mk.offset + 1)
	}
}

// reseal alters a batch so that its CRC doesn't tell: the last byte of its last record's value.
func reseal(b record.Batch) {
	b[len(b)-2] ^= 0x20
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
}

func atOnce(context.Context, int) error { return nil }

// chunksIn is the dumb oracle: all that the chunks with a base in [from, to) are, one after the other.
func chunksIn(t testing.TB, m *machine, from, to int64) (d Digest, chunks int) {
	t.Helper()
	var all []byte
	if err := m.store.Read(0, func(c storage.Chunk) bool {
		if c.Base >= from && c.Base < to {
			for _, v := range []int64{c.Base, c.Last, int64(c.Index), c.LogTime, int64(len(c.Meta)), int64(len(c.Data))} {
				all = binary.BigEndian.AppendUint64(all, uint64(v))
			}
			all = append(append(all, c.Meta...), c.Data...)
			chunks++
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(all)
	copy(d[:], sum[:])
	return d, chunks
}

// cut makes what lies below a log's start offset go from the disk, as after a checkpoint.
func (m *machine) cut() {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.leases = leases{}
	m.trim(m.state.start)
}

// TestScrubOfReplicas: replicas that were cut elsewhere, that fetched some of their log from others, or have
// less of it, have the same digest of every run that they all have, and nothing to complain of.
func TestScrubOfReplicas(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 30; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 31))
			log := randomLog(t, seed, 600)
			whole := machineAt(t, log, len(log))
			cut := machineAt(t, log, len(log))
			cut.cut()
			behind := machineAt(t, log, len(log)*2/3)
			restored := machineAt(t, log, rng.IntN(len(log)))
			restored.recover(t, mustSnapshot(t, cut), &sources{of: map[uint64]*machine{7: cut}})
			all := []*machine{whole, cut, behind, restored}
			next := whole.look().next
			compared := 0
			for range 200 {
				from := rng.Int64N(next)
				to := from + 1 + rng.Int64N(min(next-from, 60))
				var want *Digest
				for i, m := range all {
					res, err := m.scrub(t.Context(), ScrubRequest{From: from, To: to}, atOnce)
					switch {
					case errors.Is(err, ErrBusy) && to > m.look().next:
						continue
					case errors.Is(err, ErrTrimmed) && from < m.look().start:
						continue
					case err != nil:
						t.Fatalf("replica %d, offsets %d to %d: %v", i, from, to, err)
					}
					if d, n := chunksIn(t, m, from, to); d != res.Digest || n != res.Chunks {
						t.Fatalf("replica %d, offsets %d to %d: %s of %d chunks, want %s of %d", i, from, to, res.Digest, res.Chunks, d, n)
					}
					if res.Odd != "" {
						t.Fatalf("replica %d, offsets %d to %d: %s", i, from, to, res.Odd)
					}
					if want == nil {
						want = &res.Digest
					} else if compared++; *want != res.Digest {
						t.Fatalf("replica %d, offsets %d to %d: %s, the first one has %s", i, from, to, res.Digest, *want)
					}
				}
			}
			if compared < 200 {
				t.Fatalf("%d comparisons", compared)
			}
			// A leader's way through the log, run by run, misses nothing.
			for i, m := range all {
				chunks, at, begin := 0, int64(FromBegin), int64(0)
				for at < m.look().next {
					res, err := m.scrub(t.Context(), ScrubRequest{From: at, MaxBytes: 1 + rng.Int64N(3000)}, atOnce)
					if err != nil || res.Odd != "" || res.To <= at {
						t.Fatalf("replica %d from %d: %+v, %v", i, at, res, err)
					}
					if at == FromBegin {
						begin = res.From
					}
					chunks, at = chunks+res.Chunks, res.To
				}
				if _, n := chunksIn(t, m, begin, at); chunks != n {
					t.Fatalf("replica %d: %d chunks on the way, %d are there", i, chunks, n)
				}
			}
		})
	}
}

// TestScrubFindsWhatCRCsCannotSee: one altered record, sealed with a new CRC, gives its run another digest, and contradicts
// the replica's own index, wherever in the log it is.
func TestScrubFindsWhatCRCsCannotSee(t *testing.T) {
	t.Parallel()
	log := plainLog(t, 400, "before", "after")
	for seed := uint64(1); seed <= 20; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 32))
			good, bad := machineAt(t, log, len(log)), machineAt(t, log, len(log))
			next := good.look().next
			at := rng.Int64N(next)
			hit := int64(-1)
			bad.store = &altered{Store: bad.store, chunk: func(c *storage.Chunk) {
				if c.Base <= at && at <= c.Last {
					hit = c.Base
					reseal(c.Data)
				}
			}}
			if err := bad.store.Read(at, func(storage.Chunk) bool { return false }); err != nil || hit < 0 {
				t.Fatal(hit, err)
			}
			for range 30 {
				from := rng.Int64N(next)
				to := from + 1 + rng.Int64N(next-from)
				a, err := good.scrub(t.Context(), ScrubRequest{From: from, To: to}, atOnce)
				b, berr := bad.scrub(t.Context(), ScrubRequest{From: from, To: to}, atOnce)
				if err != nil || berr != nil {
					t.Fatal(err, berr)
				}
				if in := hit >= from && hit < to; in != (a.Digest != b.Digest) {
					t.Fatalf("offsets %d to %d, altered is the chunk at %d: digests %s and %s", from, to, hit, a.Digest, b.Digest)
				}
				if a.Odd != "" {
					t.Fatal(a.Odd)
				}
			}
			// A run that begins with it, and one that ends with it, wherever the marks are.
			for _, run := range [][2]int64{{hit, next}, {hit, min(next, hit+10)}} {
				res, err := bad.scrub(t.Context(), ScrubRequest{From: run[0], To: run[1]}, atOnce)
				if err != nil || res.Odd == "" {
					t.Fatalf("altered is the chunk at %d, the run from %d to %d contradicts nothing (%v)", hit, run[0], run[1], err)
				}
			}
			if k, v, ok, err := bad.store.Seek(markKey(hit+1), nil); err == nil && ok {
				mk, err := parseMark(k, v)
				if err != nil {
					t.Fatal(err)
				}
				res, err := bad.scrub(t.Context(), ScrubRequest{From: 0, To: mk.offset}, atOnce)
				if err != nil || res.Odd == "" {
					t.Fatalf("altered is the chunk at %d, the run up to the mark at %d contradicts nothing (%v)", hit, mk.offset, err)
				}
			}
			res, err := bad.scrub(t.Context(), ScrubRequest{From: FromBegin}, atOnce)
			if err != nil {
				t.Fatal(err)
			}
			for res.To < next {
				more, err := bad.scrub(t.Context(), ScrubRequest{From: res.To, MaxBytes: 1000}, atOnce)
				if err != nil {
					t.Fatal(err)
				}
				if res.To = more.To; res.Odd == "" {
					res.Odd = more.Odd
				}
			}
			if res.Odd == "" {
				t.Fatalf("the chunk at %d was altered, and nothing of the replica's own contradicts it", hit)
			}
		})
	}
}

// TestScrubChecksMarks: an index that isn't what the log is comes out.
func TestScrubChecksMarks(t *testing.T) {
	t.Parallel()
	log := randomLog(t, 5, 300)
	for name, alter := range map[string]func(mk *mark) bool{
		"chain":    func(mk *mark) bool { mk.chain ^= 1; return true },
		"log time": func(mk *mark) bool { mk.logTime++; return true },
		"offset":   func(mk *mark) bool { mk.offset++; return true },
		"ids":      func(mk *mark) bool { mk.ids = false; return true },
		"stored":   func(mk *mark) bool { mk.before = 0; return true },
		"missing":  func(mk *mark) bool { return !mk.ids },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := machineAt(t, log, len(log))
			at, n := (m.look().start+m.look().next)/2, 0
			m.store = &altered{Store: m.store, mark: func(mk *mark) bool {
				if mk.offset < at || name == "ids" && !mk.ids || name == "missing" && !mk.ids || n > 0 && name != "missing" {
					return true
				}
				n++
				return alter(mk)
			}}
			res, err := m.scrub(t.Context(), ScrubRequest{From: FromBegin, To: m.look().next}, atOnce)
			if err != nil || res.Odd == "" {
				t.Fatalf("%+v, %v", res, err)
			}
			if _, ok := m.store.(*altered); !ok || n == 0 {
				t.Fatal("nothing was altered")
			}
		})
	}
}

// TestScrubMeetsDamage: what doesn't verify makes the replica a damaged one; what it doesn't have any more, or yet, does not.
func TestScrubMeetsDamage(t *testing.T) {
	t.Parallel()
	log := plainLog(t, 200, "x", "y")
	open := func(t *testing.T) *Partition {
		return &Partition{name: "t/0", m: machineAt(t, log, len(log))}
	}
	run := func(p *Partition, from, to int64) error {
		_, err := p.Scrub(t.Context(), ScrubRequest{From: from, To: to}, atOnce)
		return err
	}
	for name, alter := range map[string]func(c *storage.Chunk){
		"a flipped bit":              func(c *storage.Chunk) { c.Data[len(c.Data)-3] ^= 1 },
		"a batch of another place":   func(c *storage.Chunk) { record.Batch(c.Data).Stamp(c.Base+1, 1) },
		"a batch that is cut short":  func(c *storage.Chunk) { c.Data = c.Data[:len(c.Data)-1] },
		"a batch too few":            func(c *storage.Chunk) { c.Data = nil },
		"a chunk of another offset":  func(c *storage.Chunk) { c.Base++ },
		"a chunk that ends too late": func(c *storage.Chunk) { c.Last++ },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := open(t)
			p.m.store = &altered{Store: p.m.store, chunk: func(c *storage.Chunk) {
				if c.Base == 50 {
					alter(c)
				}
			}}
			if err := run(p, 0, 40); err != nil || p.Damage() != "" {
				t.Fatalf("before it: %v, %s", err, p.Damage())
			}
			if err := run(p, 40, 60); !errors.Is(err, ErrDamaged) || p.Damage() == "" {
				t.Fatalf("%v, %q", err, p.Damage())
			}
		})
	}
	t.Run("not yet there", func(t *testing.T) {
		p := open(t)
		if err := run(p, 0, p.m.look().next+1); !errors.Is(err, ErrBusy) || p.Damage() != "" {
			t.Fatalf("%v, %q", err, p.Damage())
		}
	})
	t.Run("catching up", func(t *testing.T) {
		p := open(t)
		p.m.restoring = true
		if err := run(p, 0, 10); !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
		p.m.restoring = false
		_, err := p.Scrub(t.Context(), ScrubRequest{From: 0, To: 10}, func(context.Context, int) error {
			p.m.restores++ // it came and went
			return nil
		})
		if !errors.Is(err, ErrBusy) || p.Damage() != "" {
			t.Fatalf("%v, %q", err, p.Damage())
		}
	})
	t.Run("trimmed meanwhile", func(t *testing.T) {
		p := open(t)
		_, err := p.Scrub(t.Context(), ScrubRequest{From: 0, To: p.m.look().next}, func(context.Context, int) error {
			if p.m.look().start == 0 {
				index := p.m.state.index
				p.m.do(t, index+1, append(command(commandHeader{kind: kindTrim, term: 1, counter: p.m.state.counter + 1}), binary.BigEndian.AppendUint64(nil, 150)...))
				p.m.cut()
			}
			return nil
		})
		if p.Damage() != "" || err != nil && !errors.Is(err, ErrTrimmed) {
			t.Fatalf("%v, %q", err, p.Damage())
		}
		if err := run(p, 20, 160); !errors.Is(err, ErrTrimmed) || p.Damage() != "" {
			t.Fatalf("%v, %q", err, p.Damage())
		}
		if err := run(p, 150, 160); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("given up", func(t *testing.T) {
		p := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.Scrub(ctx, ScrubRequest{From: 0, To: 10}, atOnce); !errors.Is(err, context.Canceled) || p.Damage() != "" {
			t.Fatalf("%v, %q", err, p.Damage())
		}
	})
}

// TestCondemned: what other replicas have something else at is served to nobody.
func TestCondemned(t *testing.T) {
	t.Parallel()
	log := plainLog(t, 200, "x", "y")
	p := &Partition{name: "t/0", m: machineAt(t, log, len(log))}
	p.Condemn(50, 60, "the others have something else")
	if p.Damage() == "" {
		t.Fatal("it isn't damaged")
	}
	res, err := p.m.fetch(FetchRequest{Offset: 40, MaxBytes: 1 << 20}, nil, p.name)
	if err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	if err := verify(res.Batches, func(b record.Batch) bool { last = b.LastOffset(); return true }); err != nil || last != 49 {
		t.Fatalf("read up to %d, want 49 (%v)", last, err)
	}
	for _, at := range []int64{50, 59} {
		if _, err := p.m.fetch(FetchRequest{Offset: at, MaxBytes: 1}, nil, p.name); !errors.Is(err, ErrDamaged) {
			t.Errorf("offset %d: %v", at, err)
		}
		if err := p.m.batchesFrom(at, p.name, func(record.Batch) (more, shared bool) { return true, false }); !errors.Is(err, ErrDamaged) {
			t.Errorf("offset %d for groups: %v", at, err)
		}
		if _, err := p.Chunks(ChunkRequest{From: at, To: 100, MaxBytes: 1}); !errors.Is(err, ErrDamaged) {
			t.Errorf("offset %d for replicas: %v", at, err)
		}
	}
	if _, err := p.m.fetch(FetchRequest{Offset: 60, MaxBytes: 1}, nil, p.name); err != nil {
		t.Error(err)
	}
}

// TestStateDigests: replicas that came to an entry on different ways have the same state there; whatever of it is
// different has another digest.
func TestStateDigests(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 20; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 33))
			log := randomLog(t, seed, 500)
			plain := machineAt(t, log, len(log))
			s := plain.state
			barrier := append(command(commandHeader{kind: kindBarrier, term: s.term, counter: s.counter + 1, logTime: s.logTime}), 0, 0, 0, 0, 0, 0, 0, 9)
			log = append(log, barrier)
			at := uint64(len(log))
			// One that took in a snapshot on its way, and one that started from its checkpoint.
			n := rng.IntN(len(log) - 1)
			mid := machineAt(t, log, n)
			restored := machineAt(t, log, rng.IntN(n+1))
			restored.recover(t, mustSnapshot(t, mid), &sources{of: map[uint64]*machine{7: mid}})
			restored.feed(t, log, n, len(log))
			started := machineAt(t, log, n)
			st, err := decodeState(started.state.encode(nil))
			if err != nil {
				t.Fatal(err)
			}
			started.state = st
			if err := started.rebuildWindow(); err != nil {
				t.Fatal(err)
			}
			started.feed(t, log, n, len(log))
			plain.feed(t, log, len(log)-1, len(log))
			want, err := (&Partition{m: plain}).StateAt(0)
			if err != nil || want.Index != at {
				t.Fatalf("%+v, %v", want, err)
			}
			for i, m := range []*machine{restored, started} {
				got, err := (&Partition{m: m}).StateAt(at)
				if err != nil || got != want {
					t.Fatalf("replica %d: %v, want %v (%v)", i, got, want, err)
				}
			}
			if _, err := (&Partition{m: plain}).StateAt(at + 1); !errors.Is(err, ErrBusy) {
				t.Fatalf("not applied yet: %v", err)
			}
			if _, err := (&Partition{m: plain}).StateAt(at - 1); !errors.Is(err, ErrTrimmed) {
				t.Fatalf("no barrier: %v", err)
			}
			// Anything else shows.
			other := machineAt(t, log, len(log)-1)
			what := ""
			switch rng.IntN(3) {
			case 0:
				what = "position"
				other.state.stored++
			case 1:
				what = "producers"
				other.state.producers.add(record.Producer{ID: 99}, 1, 3)
			default:
				what = "groups"
				other.state.groups = newGroupTable()
			}
			other.feed(t, log, len(log)-1, len(log))
			got, err := (&Partition{m: other}).StateAt(at)
			if err != nil || got.Differs(want) != what {
				t.Fatalf("%s is different: it says %q (%v)", what, got.Differs(want), err)
			}
		})
	}
}

func BenchmarkScrub(b *testing.B) {
	dir := b.TempDir()
	e, err := storage.OpenEngine("badger", storage.Options{Dir: dir})
	if err != nil {
		b.Skip("no badger here: ", err)
	}
	defer e.Close()
	m, _ := openMachine(b, e, dir)
	value := bytes.Repeat([]byte("v"), 1000)
	m.do(b, 1, command(commandHeader{kind: kindStart, term: 1}))
	for i := range 256 {
		values := make([]string, 250)
		for j := range values {
			values[j] = string(value)
		}
		m.do(b, uint64(i+2), command(commandHeader{kind: kindAppend, term: 1, counter: uint64(i + 1)}, itemOf(b, -1, record.NoProducer, nil, values...)))
	}
	next := m.look().next
	b.SetBytes(m.bytes())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.scrub(b.Context(), ScrubRequest{From: 0, To: next}, atOnce); err != nil {
			b.Fatal(err)
		}
	}
}
