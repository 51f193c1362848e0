package epoch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
)

var self1 = config.Broker{ID: 1, Name: "b1", Incarnation: "i1"}

func genesis() *config.Config {
	return &config.Config{
		Council: []uint64{1}, NextBroker: 2, NextTopic: 1, NextShard: 1, NextReplica: 1,
		Brokers: []config.Broker{{ID: 1, Name: "b1", Weight: 100}},
	}
}

func open(t *testing.T, dir string) *Cluster {
	t.Helper()
	s, err := Open(Options{Dir: dir, Genesis: genesis, Self: self1, Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func form(next *config.Config) error {
	next.ClusterID, next.Brokers[0].Incarnation = "c1", "i1"
	return nil
}

// propose decides n further epochs.
func propose(t *testing.T, s *Cluster, n int) {
	t.Helper()
	for range n {
		_, err := s.Propose(t.Context(), func(next *config.Config) error {
			next.Change = fmt.Sprintf("change %d", next.Epoch)
			return form(next)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestHistory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	propose(t, s, 2*KeepValues+50)
	check := func(s *Cluster, newest uint64) {
		t.Helper()
		if s.Current().Epoch != newest {
			t.Fatalf("epoch %d, want %d", s.Current().Epoch, newest)
		}
		all := s.History(newest, 1000)
		if uint64(len(all)) != newest+1 {
			t.Fatalf("%d headers", len(all))
		}
		for i, h := range all {
			if h.Epoch != newest-uint64(i) || i > 0 && all[i-1].Previous != h.Hash {
				t.Fatalf("header %d: %+v", i, h)
			}
		}
		if h, c, err := s.At(newest - KeepValues + 1); err != nil || c.Hash() != h.Hash {
			t.Fatalf("a recent value: %v", err)
		}
		if h, c, err := s.At(3); !errors.Is(err, ErrForgotten) || c != nil || h.Change != "change 3" {
			t.Fatalf("an old value: %+v %v", h, err)
		}
		if _, _, err := s.At(newest + 1); !errors.Is(err, ErrUnknownEpoch) {
			t.Fatalf("a future value: %v", err)
		}
		if got := s.History(5, 2); len(got) != 2 || got[0].Epoch != 5 || got[1].Epoch != 4 {
			t.Fatalf("a page: %+v", got)
		}
	}
	check(s, 2*KeepValues+50)
	s.Close()
	s = open(t, dir)
	check(s, 2*KeepValues+50)
	propose(t, s, 1)
	check(s, 2*KeepValues+51)
}

func TestProposeErrors(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	propose(t, s, 1)
	mine := errors.New("mine")
	if c, err := s.Propose(t.Context(), func(*config.Config) error { return mine }); !errors.Is(err, mine) || c.Epoch != 1 {
		t.Errorf("%v %v", c.Epoch, err)
	}
	if _, err := s.Propose(t.Context(), func(next *config.Config) error { next.NextTopic = 0; return nil }); !errors.Is(err, config.ErrInvalid) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Propose(ctx, form); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if s.Current().Epoch != 1 {
		t.Errorf("epoch %d", s.Current().Epoch)
	}
	s.Close()
	if _, err := s.Propose(t.Context(), form); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	slow := s.Watch(ctx)
	var wg sync.WaitGroup
	for range 4 {
		ch := s.Watch(t.Context())
		wg.Go(func() {
			last := uint64(0)
			for c := range ch {
				if c.Epoch < last {
					t.Errorf("epoch %d after %d", c.Epoch, last)
				}
				last = c.Epoch
				if last == 20 {
					return
				}
			}
			t.Error("the watch ended early")
		})
	}
	propose(t, s, 20)
	wg.Wait()
	if c := <-slow; c.Epoch != 20 {
		t.Errorf("a slow watcher got epoch %d", c.Epoch)
	}
	cancel()
	if _, ok := <-slow; ok {
		t.Error("the watch did not end with its context")
	}
	last := s.Watch(t.Context())
	<-last
	s.Close()
	if _, ok := <-last; ok {
		t.Error("the watch did not end with the store")
	}
}

// TestTornAndDamaged cuts the journal at every byte, and flips bits of every
// byte. A cut must lose nothing but what was not committed in the bytes that
// are left; a flip must be refused or change nothing.
func TestTornAndDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	propose(t, s, 3)
	s.Close()
	whole, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	entries, end, err := scan(whole)
	if err != nil || len(entries) != 5 || end != int64(len(whole)) { // four epochs and a start
		t.Fatalf("%d entries to %d, %v", len(entries), end, err)
	}
	var ends []int64 // of each committed entry
	at := int64(block)
	for _, e := range entries {
		at += (frameHeader+int64(len(e.payload))+block-1)/block*block + block
		ends = append(ends, at)
	}
	for n := range whole {
		want := 0
		for _, e := range ends {
			if int64(n) >= e {
				want++
			}
		}
		got, end, err := scan(whole[:n])
		if err != nil || len(got) != want || end > int64(n) {
			t.Fatalf("cut at %d: %d entries to %d, %v; want %d", n, len(got), end, err, want)
		}
		// A file system may have grown the file without having written it.
		zeros := append(bytes.Clone(whole[:n/block*block]), make([]byte, 3*block)...)
		if got, _, err := scan(zeros); err != nil || len(got) > want {
			t.Fatalf("zeros from %d: %d entries, %v", n/block*block, len(got), err)
		}
		for _, bit := range []byte{0x01, 0x80} {
			bad := bytes.Clone(whole)
			bad[n] ^= bit
			got, _, err := scan(bad)
			if err == nil && len(got) != len(entries) {
				t.Fatalf("bit %#x of byte %d flipped: %d entries and no error", bit, n, len(got))
			}
			if err == nil {
				for i := range got {
					if !bytes.Equal(got[i].payload, entries[i].payload) {
						t.Fatalf("byte %d flipped: entry %d is another", n, i)
					}
				}
			}
		}
	}
	// And with the whole store.
	bad := bytes.Clone(whole)
	bad[block+frameHeader+5] ^= 1
	write(t, dir, bad)
	if _, err := Open(Options{Dir: dir, Genesis: genesis, Self: self1, Clock: time.Now}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a damaged journal: %v", err)
	}
	if left, err := os.ReadFile(filepath.Join(dir, journalName)); err != nil || !bytes.Equal(left, bad) {
		t.Fatal("a damaged journal was changed")
	}
	write(t, dir, whole[:len(whole)-block])
	if _, err := Open(Options{Dir: dir, Genesis: genesis, Self: self1, Clock: time.Now}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a journal without its last marker, which was written: %v", err)
	}
	// The power went before that marker was written.
	older := append(ending{number: 1}.encode(), make([]byte, endPage-block)...)
	if err := os.WriteFile(filepath.Join(dir, endName), append(older, older...), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := open(t, dir); s.Current().Epoch != 2 {
		t.Errorf("epoch %d after a torn commit", s.Current().Epoch)
	} else {
		propose(t, s, 1)
		s.Close()
	}
	if s := open(t, dir); s.Current().Epoch != 3 {
		t.Errorf("epoch %d after the next one", s.Current().Epoch)
	}
}

func write(t *testing.T, dir string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, journalName), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestEndOfJournal: what says how far the journal went is needed, in one of two copies, once it was promised.
func TestEndOfJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	propose(t, s, 2)
	s.Close()
	path := filepath.Join(dir, endName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: dir, Genesis: genesis, Self: self1, Clock: time.Now}
	for page := 0; page < endBytes; page += endPage {
		bad, told := bytes.Clone(whole), ""
		bad[page+9] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		o.OnMended = func(what string) { told = what }
		s, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if !strings.Contains(told, path) {
			t.Errorf("told %q", told)
		}
		if _, _, good, err := readEnding(diskDirectory(dir)); good != 2 || err != nil {
			t.Errorf("%d notes are good, %v", good, err)
		}
	}
	for what, b := range map[string][]byte{"nothing": {}, "zeros": make([]byte, endBytes), "no file": nil} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if b != nil {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(o); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A journal of before there was such a file gets it.
	f := diskDirectory(dir)
	b, err := f.read(journalName)
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := scan(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		entries[i].ended = false
	}
	os.Remove(path)
	j, err := rewriteJournal(f, entries)
	if err != nil {
		t.Fatal(err)
	}
	j.close()
	os.Remove(path)
	if s, err = Open(o); err != nil {
		t.Fatal(err)
	}
	s.Close()
	os.Remove(path)
	if _, err := Open(o); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

// TestBrokenChain replaces an entry by another, well formed one.
func TestBrokenChain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	propose(t, s, 3)
	_, v2, err := s.At(2)
	if err != nil {
		t.Fatal(err)
	}
	other := v2.Clone()
	other.Change = "something else"
	s.Close()
	b, err := other.Encode()
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := scan(whole)
	if err != nil {
		t.Fatal(err)
	}
	entries[3].payload = b // after epoch 0, the start, and epoch 1
	j, err := rewriteJournal(diskDirectory(dir), entries)
	if err != nil {
		t.Fatal(err)
	}
	j.close()
	if _, err := Open(Options{Dir: dir, Genesis: genesis, Self: self1, Clock: time.Now}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a broken chain: %v", err)
	}
}

// faulty is a file whose n-th operation fails, and which forgets what was not
// synced.
type faulty struct {
	file
	left int
	ops  []string
}

var errFault = errors.New("input/output error")

func (f *faulty) fail(op string) error {
	f.ops = append(f.ops, op)
	if f.left--; f.left == 0 {
		return errFault
	}
	return nil
}

func (f *faulty) WriteAt(b []byte, at int64) (int, error) {
	if err := f.fail("write"); err != nil {
		n, _ := f.file.WriteAt(b[:len(b)/2], at)
		return n, err
	}
	return f.file.WriteAt(b, at)
}

func (f *faulty) Sync() error {
	if err := f.fail("sync"); err != nil {
		return err
	}
	return f.file.Sync()
}

// TestFaults fails each write and each sync of a proposal in turn: the process
// is told once, nothing more is decided, and what was decided before is there
// after a restart.
func TestFaults(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 5; n++ {
		dir := t.TempDir()
		var told []error
		s, err := Open(Options{Dir: dir, Genesis: genesis, Self: self1, Clock: time.Now, OnFatal: func(err error) { told = append(told, err) }})
		if err != nil {
			t.Fatal(err)
		}
		propose(t, s, 2)
		f := &faulty{left: n}
		s.order(t.Context(), func(w *owner) { f.file, w.journal.f = w.journal.f, f })
		_, err = s.Propose(t.Context(), form)
		if n == 5 { // the run without a fault shows the order of the steps
			if err != nil || fmt.Sprint(f.ops) != "[write sync write sync]" {
				t.Errorf("steps %v, %v", f.ops, err)
			}
			s.Close()
			break
		}
		if !errors.Is(err, errFault) || len(told) != 1 || s.Current().Epoch != 2 {
			t.Errorf("fault %d: %v, told %v, epoch %d", n, err, told, s.Current().Epoch)
		}
		if _, err := s.Propose(t.Context(), form); !errors.Is(err, ErrClosed) || len(told) != 1 {
			t.Errorf("after fault %d: %v, told %v", n, err, told)
		}
		s.Close()
		s = open(t, dir)
		// A failed sync of the marker leaves it open whether the epoch was decided.
		if got := s.Current().Epoch; got != 2 && !(n == 4 && got == 3) {
			t.Errorf("fault %d: epoch %d after the restart", n, got)
		}
	}
}

func FuzzScan(f *testing.F) {
	e := entry{kind: kindValue, epoch: 1, payload: []byte("value")}
	b := appendFrame(bytes.Clone(fileHeader), e)
	f.Add(append(b, marker(e, block)...))
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, end, err := scan(b)
		if err != nil {
			return
		}
		if end > int64(len(b)) {
			t.Fatalf("end %d of %d bytes", end, len(b))
		}
		again, end2, err := scan(b[:end])
		if err != nil || end2 != end || len(again) != len(entries) {
			t.Fatalf("cut at its end it reads differently: %d entries, then %d, %v", len(entries), len(again), err)
		}
	})
}

func FuzzHeader(f *testing.F) {
	h := Header{Epoch: 3, By: "b1", Change: "x", Council: []uint64{1}}
	f.Add(h.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeader(b)
		if err != nil {
			return
		}
		got, err := decodeHeader(h.encode())
		if err != nil || fmt.Sprint(got) != fmt.Sprint(h) {
			t.Fatalf("%+v and %+v, %v", h, got, err)
		}
	})
}
