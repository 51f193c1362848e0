package journal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Many save, read, trim and snapshot at once while segments are cleaned, on the real file system. What each was
// told is there, at once and after a restart.
func TestCrowd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := Options{SegmentBytes: 256 << 10, OnError: func(err error) { t.Error(err) }}
	want := make(oracle)
	for round := range 3 {
		j, err := Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		if err := want.differs(j, false); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		const crowd, saves = 16, 40
		var wg sync.WaitGroup
		for w := range crowd {
			key := Key{uint64(w), 1}
			l := want.log(key)
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(w), uint64(round)))
				b := j.NewBatch()
				for n := range saves {
					var e texts
					first := l.last + 1
					for range 1 + rng.IntN(4) {
						l.last++
						text := fmt.Sprintf("%d@%d %s", w, l.last, strings.Repeat("x", rng.IntN(8<<10)))
						l.entries[l.last] = text
						e = append(e, text)
					}
					l.state = State{Term: 1 + uint64(n/10), Vote: 1, Commit: first}
					b.Reset()
					b.Save(key, Update{State: l.state, First: first, Entries: e})
					if err := b.Commit(); err != nil {
						t.Error(err)
						return
					}
					// A replica where little happens keeps its entries for long.
					if n%7 == 6 && w > 1 {
						l.snapIndex, l.snapshot = first, fmt.Sprint("snapshot ", first)
						b.Reset()
						b.Snapshot(key, first, []byte(l.snapshot))
						if err := b.Commit(); err != nil {
							t.Error(err)
							return
						}
						l.trim = first
						j.Trim(key, l.trim)
					}
					if n%5 == 0 {
						next := l.trim + 1
						err := j.Read(key, next, l.last+1, func(index uint64, text []byte) (bool, error) {
							if index != next || string(text) != l.entries[index] {
								return false, fmt.Errorf("entry %d of %v is %.40q", index, key, text)
							}
							next++
							return true, nil
						})
						if err != nil || next != l.last+1 {
							t.Errorf("read: %v, up to %d of %d", err, next-1, l.last)
							return
						}
					}
				}
			})
		}
		wg.Wait()
		if err := want.differs(j, false); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		f := j.Figures()
		t.Logf("round %d: %+v", round, f)
		if f.Joined == 0 || f.MovedBytes == 0 {
			t.Errorf("nobody shared an fsync, or nothing was copied: %+v", f)
		}
		for deadline := time.Now().Add(20 * time.Second); f.SegmentBytes > f.LiveBytes*3/2+8*o.SegmentBytes; f = j.Figures() {
			if time.Now().After(deadline) {
				t.Fatalf("%d bytes for %d that live", f.SegmentBytes, f.LiveBytes)
			}
			time.Sleep(time.Millisecond)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A replica where nothing happens keeps no segment, and segments that were emptied are written again.
func TestIdleReplicasHoldNothingUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, err := Open(dir, Options{SegmentBytes: 128 << 10, byHand: true})
	if err != nil {
		t.Fatal(err)
	}
	want := make(oracle)
	b := j.NewBatch()
	for i := range uint64(200) {
		key := Key{100 + i, 1}
		l := want.log(key)
		l.bootstrap, l.state, l.last = "bootstrap", State{1, 2, 1}, 1
		l.entries[1] = "idle"
		b.Bootstrap(key, []byte("bootstrap"))
		b.Save(key, Update{State: l.state, First: 1, Entries: texts{"idle"}})
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	busy := Key{1, 1}
	l := want.log(busy)
	for i := range uint64(1000) {
		l.last++
		l.state = State{1, 1, l.last}
		text := fmt.Sprint(l.last, strings.Repeat("y", 8000))
		l.entries[l.last] = text
		b.Reset()
		b.Save(busy, Update{State: l.state, First: l.last, Entries: texts{text}})
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if i%20 == 19 {
			l.trim = l.last - 5
			j.Trim(busy, l.trim)
			if err := j.tidy(); err != nil {
				t.Fatal(err)
			}
		}
	}
	f := j.Figures()
	if f.Segments > 3 {
		t.Errorf("%d segments are left: %+v", f.Segments, f)
	}
	if f.MovedBytes*5 > f.Bytes {
		t.Errorf("%d bytes of %d were copies", f.MovedBytes, f.Bytes)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) > f.Segments+MaxSpares+1 {
		t.Errorf("%d files", len(files))
	}
	reused := 0
	for _, s := range j.spares {
		if s.whole {
			reused++
		}
	}
	if reused == 0 {
		t.Errorf("no emptied segment was kept")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = Open(dir, Options{SegmentBytes: 128 << 10, byHand: true}); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := want.differs(j, false); err != nil {
		t.Fatal(err)
	}
	if name := filepath.Base(j.active().name); name < fmt.Sprintf("%016x", 60) {
		t.Errorf("%s is the newest segment", name)
	}
}

// An update that can't be right is refused before anything is written, and harms nobody else.
func TestRefusedUpdates(t *testing.T) {
	t.Parallel()
	d := newDisk()
	j, err := Open("/j", testOptions(d))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	key := Key{1, 1}
	b := j.NewBatch()
	b.Save(key, Update{State: State{Term: 1}, First: 1, Entries: texts{"a", "b"}})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	for name, u := range map[string]Update{
		"begin at 4":          {First: 4, Entries: texts{"x"}},
		"first index is 0":    {First: 0, Entries: texts{"x"}},
		"are allowed":         {First: 3, Entries: huge{}},
		"can't be encoded so": {First: 3, Entries: broken{}},
	} {
		b.Reset()
		b.Save(key, u)
		if err := b.Commit(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.Reset()
	b.Save(key, Update{First: 3, Entries: texts{"c"}})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if s, _ := j.Status(key); s.Last != 3 {
		t.Errorf("%d entries", s.Last)
	}
}

type huge struct{}

func (huge) Len() int              { return 1 }
func (huge) Size(int) int          { return MaxEntry + 1 }
func (huge) Put(int, []byte) error { return nil }

type broken struct{}

func (broken) Len() int              { return 1 }
func (broken) Size(int) int          { return 10 }
func (broken) Put(int, []byte) error { return fmt.Errorf("can't be encoded so") }

// Entries that replace others may adjoin them on disk.
func TestReplacedEntries(t *testing.T) {
	t.Parallel()
	j, err := Open("/j", testOptions(newDisk()))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	want := make(oracle)
	l := want.log(Key{1, 1})
	b := j.NewBatch()
	save := func(first uint64, e ...string) {
		t.Helper()
		l.state.Term++
		for i, text := range e {
			l.last = first + uint64(i)
			l.entries[l.last] = text
		}
		b.Reset()
		b.Save(Key{1, 1}, Update{State: l.state, First: first, Entries: texts(e)})
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := want.differs(j, false); err != nil {
			t.Fatal(err)
		}
	}
	save(1, "a", "b", "c", "d", "e")
	save(3, "C", "D")
	save(5, "E")
	save(4, "dd")
	save(5, "ee", "ff")
	save(4, "ddd")
	save(5, "eee")
}

// What comes to be known while a state is copied is not taken for saved.
func TestTrimWhileAStateIsCopied(t *testing.T) {
	t.Parallel()
	d := newDisk()
	j, err := Open("/j", testOptions(d))
	if err != nil {
		t.Fatal(err)
	}
	key := Key{1, 1}
	b := j.NewBatch()
	b.Save(key, Update{State: State{1, 1, 3}, First: 1, Entries: texts{"a", "b", "c", "d"}})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, between := range []func(){
		func() { j.Trim(key, 2) },
		func() {
			c := j.NewBatch()
			c.Save(key, Update{State: State{1, 1, 4}})
			if c.frames != 0 {
				t.Error("a commit index was not only remembered")
			}
		},
	} {
		if err := j.commit(&request{late: func(b *Batch) error {
			b.metas(func(*log) bool { return true })
			between()
			return nil
		}}); err != nil {
			t.Fatal(err)
		}
		if !j.index.logs[key].unsaved {
			t.Error("what came meanwhile is taken for saved")
		}
	}
	if s, _ := j.Status(key); s.State.Commit != 4 || s.First != 3 {
		t.Errorf("%+v", s)
	}
}

// What looks at the index when its turn has come stands before what changes it.
func TestOrderOfABatch(t *testing.T) {
	t.Parallel()
	late := func(*Batch) error { return nil }
	waiting := []*request{{batch: &Batch{}}, {batch: &Batch{}, late: late}, {batch: &Batch{}}, {batch: &Batch{}, late: late}}
	j := &Journal{queue: append([]*request(nil), waiting...)}
	taken := j.take()
	for i, want := range []int{1, 3, 0, 2} {
		if taken[i] != waiting[want] {
			t.Errorf("place %d is not request %d", i, want)
		}
	}
	if len(j.queue) != 0 {
		t.Errorf("%d wait still", len(j.queue))
	}
}

// A batch, or an entry, may be longer than a segment.
func TestLongBatches(t *testing.T) {
	t.Parallel()
	d := newDisk()
	j, err := Open("/j", testOptions(d))
	if err != nil {
		t.Fatal(err)
	}
	want := make(oracle)
	l := want.log(Key{1, 1})
	b := j.NewBatch()
	for range 3 {
		var e texts
		first := l.last + 1
		for range 5 {
			l.last++
			text := strings.Repeat(string(rune('a'+l.last)), 700<<10)
			l.entries[l.last] = text
			e = append(e, text)
		}
		l.state = State{1, 1, first}
		b.Reset()
		b.Save(Key{1, 1}, Update{State: l.state, First: first, Entries: e})
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	l.trim = 3
	j.Trim(Key{1, 1}, 3)
	if err := j.tidy(); err != nil {
		t.Fatal(err)
	}
	if err := want.differs(j, false); err != nil {
		t.Fatal(err)
	}
	if j, err = Open("/j", testOptions(d.copy())); err != nil {
		t.Fatal(err)
	}
	if err := want.differs(j, true); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkSave(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			j, err := Open(b.TempDir(), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer j.Close()
			batch := j.NewBatch()
			e := texts{strings.Repeat("x", size)}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			index := uint64(0)
			for b.Loop() {
				index++
				batch.Reset()
				batch.Save(Key{1, 1}, Update{State: State{1, 1, index}, First: index, Entries: e})
				if err := batch.Commit(); err != nil {
					b.Fatal(err)
				}
				if index%1000 == 0 {
					j.Trim(Key{1, 1}, index-10)
				}
			}
		})
	}
}
