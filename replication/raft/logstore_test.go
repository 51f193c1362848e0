package raft

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"

	"github.com/parleymq/parley/replication/raft/journal"
	"github.com/parleymq/parley/replication/replicationtest"
)

func mustStore(t *testing.T, dir string) *store {
	t.Helper()
	j, err := journal.Open(dir, journal.Options{SegmentBytes: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	s := &store{journal: j, fatal: func(err error) { t.Logf("fatal: %v", err) }}
	for range execShards {
		s.batches = append(s.batches, j.NewBatch())
	}
	s.spare.New = func() any { return j.NewBatch() }
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func entriesOf(term, first, last uint64) []raftpb.Entry {
	var out []raftpb.Entry
	for i := first; i <= last; i++ {
		out = append(out, raftpb.Entry{Term: term, Index: i, Type: raftpb.EncodedEntry, Key: i * 7, Cmd: []byte(fmt.Sprint("entry ", i, " of term ", term))})
	}
	return out
}

func (s *store) mustSave(t *testing.T, updates ...raftpb.Update) {
	t.Helper()
	if err := s.SaveRaftState(updates, 1); err != nil {
		t.Fatal(err)
	}
}

// What dragonboat expects of a log store, each before and after it is opened anew.
func TestStoreContract(t *testing.T) {
	t.Parallel()
	const shard, replica = 3, 4
	state := raftpb.State{Term: 2, Vote: 3, Commit: 4}
	update := func(u raftpb.Update) raftpb.Update {
		u.ShardID, u.ReplicaID = shard, replica
		return u
	}
	type expect struct {
		state        raftpb.State
		first, count uint64
		err          error
	}
	for name, test := range map[string]struct {
		do       func(t *testing.T, s *store)
		snapshot uint64 // ReadRaftState is asked with it
		want     expect
		read     [3]uint64 // low, high, limit
		entries  []raftpb.Entry
	}{
		"nothing": {do: func(*testing.T, *store) {}, want: expect{err: raftio.ErrNoSavedLog}},
		"entries and state": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 10)}))
			},
			want:    expect{state: state, first: 1, count: 10},
			read:    [3]uint64{3, 8, math.MaxUint64},
			entries: entriesOf(2, 3, 7),
		},
		"state is replaced": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 4)}))
				s.mustSave(t, update(raftpb.Update{State: raftpb.State{Term: 3, Vote: 1, Commit: 4}}))
			},
			want: expect{state: raftpb.State{Term: 3, Vote: 1, Commit: 4}, first: 1, count: 4},
		},
		"an update without a state keeps it": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 4)}))
				s.mustSave(t, update(raftpb.Update{EntriesToSave: entriesOf(2, 5, 6)}))
			},
			want: expect{state: state, first: 1, count: 6},
		},
		"another replica's": {
			do: func(t *testing.T, s *store) {
				u := update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 10)})
				v := u
				v.ReplicaID, v.EntriesToSave = 5, entriesOf(2, 1, 12)
				w := u
				w.ShardID, w.EntriesToSave = 4, entriesOf(2, 1, 13)
				s.mustSave(t, u, v, w)
			},
			want:    expect{state: state, first: 1, count: 10},
			read:    [3]uint64{9, 20, math.MaxUint64},
			entries: entriesOf(2, 9, 10),
		},
		"entries that replace others": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 10)}))
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(3, 6, 7)}))
			},
			want:    expect{state: state, first: 1, count: 7},
			read:    [3]uint64{5, 11, math.MaxUint64},
			entries: append(entriesOf(2, 5, 5), entriesOf(3, 6, 7)...),
		},
		"the first entry may be longer than the limit": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 10)}))
			},
			want:    expect{state: state, first: 1, count: 10},
			read:    [3]uint64{2, 8, 0},
			entries: entriesOf(2, 2, 2),
		},
		"the limit is passed by one": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 10)}))
			},
			want:    expect{state: state, first: 1, count: 10},
			read:    [3]uint64{2, 8, uint64(entriesOf(2, 2, 2)[0].SizeUpperLimit())},
			entries: entriesOf(2, 2, 3),
		},
		"removed entries": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 10)}))
				if err := s.RemoveEntriesTo(shard, replica, 6); err != nil {
					t.Fatal(err)
				}
				if done, err := s.CompactEntriesTo(shard, replica, 6); err != nil {
					t.Fatal(err)
				} else {
					<-done
				}
			},
			snapshot: 8,
			want:     expect{state: raftpb.State{Term: 2, Vote: 3, Commit: 8}, first: 8, count: 3},
			read:     [3]uint64{7, 11, math.MaxUint64},
			entries:  entriesOf(2, 7, 10),
		},
		"a snapshot at the end of the log": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 4)}))
			},
			snapshot: 4,
			want:     expect{state: state, first: 4, count: 0},
		},
		"a snapshot that was received": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 4)}))
				s.mustSave(t, update(raftpb.Update{State: raftpb.State{Term: 3, Commit: 100}, Snapshot: raftpb.Snapshot{Index: 100, Term: 3}}))
				s.mustSave(t, update(raftpb.Update{EntriesToSave: entriesOf(3, 101, 103)}))
			},
			snapshot: 100,
			want:     expect{state: raftpb.State{Term: 3, Commit: 100}, first: 101, count: 3},
			read:     [3]uint64{101, 104, math.MaxUint64},
			entries:  entriesOf(3, 101, 103),
		},
		"a snapshot and its entries in one": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: raftpb.State{Term: 1, Commit: 100}, Snapshot: raftpb.Snapshot{Index: 16, Term: 1}, EntriesToSave: entriesOf(1, 17, 100)}))
			},
			snapshot: 16,
			want:     expect{state: raftpb.State{Term: 1, Commit: 100}, first: 17, count: 84},
		},
		"only a snapshot": {
			do: func(t *testing.T, s *store) {
				if err := s.SaveSnapshots([]raftpb.Update{update(raftpb.Update{Snapshot: raftpb.Snapshot{Index: 100, Term: 2}})}); err != nil {
					t.Fatal(err)
				}
			},
			snapshot: 100,
			want:     expect{err: raftio.ErrNoSavedLog},
		},
		"removed": {
			do: func(t *testing.T, s *store) {
				if err := s.SaveBootstrapInfo(shard, replica, raftpb.Bootstrap{Join: true}); err != nil {
					t.Fatal(err)
				}
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 10)}))
				if err := s.RemoveNodeData(shard, replica); err != nil {
					t.Fatal(err)
				}
				if _, err := s.GetBootstrapInfo(shard, replica); !errors.Is(err, raftio.ErrNoBootstrapInfo) {
					t.Errorf("bootstrap: %v", err)
				}
			},
			want: expect{err: raftio.ErrNoSavedLog},
			read: [3]uint64{1, 11, math.MaxUint64},
		},
		"imported": {
			do: func(t *testing.T, s *store) {
				s.mustSave(t, update(raftpb.Update{State: state, EntriesToSave: entriesOf(2, 1, 10)}))
				if err := s.ImportSnapshot(raftpb.Snapshot{ShardID: shard, Index: 70, Term: 9, Type: raftpb.OnDiskStateMachine}, replica); err != nil {
					t.Fatal(err)
				}
				info, err := s.GetBootstrapInfo(shard, replica)
				if err != nil || !info.Join {
					t.Errorf("bootstrap: %+v, %v", info, err)
				}
				if got, err := s.GetSnapshot(shard, replica); err != nil || got.Index != 70 {
					t.Errorf("snapshot: %+v, %v", got, err)
				}
			},
			snapshot: 70,
			want:     expect{state: raftpb.State{Term: 9, Commit: 70}, first: 70, count: 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for range 2 {
				s := mustStore(t, dir)
				if test.do != nil {
					test.do(t, s)
					test.do = nil
				}
				got, err := s.ReadRaftState(shard, replica, test.snapshot)
				if !errors.Is(err, test.want.err) || got.State != test.want.state || got.FirstIndex != test.want.first || got.EntryCount != test.want.count {
					t.Fatalf("state %+v, %v, want %+v", got, err, test.want)
				}
				entries, _, err := s.IterateEntries(nil, 0, shard, replica, test.read[0], test.read[1], test.read[2])
				if err != nil || !reflect.DeepEqual(entries, test.entries) {
					t.Fatalf("entries %v, %v, want %v", entries, err, test.entries)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestStoreKnowsItsReplicas(t *testing.T) {
	t.Parallel()
	s := mustStore(t, t.TempDir())
	info := raftpb.Bootstrap{Addresses: map[uint64]string{1: "a", 2: "b"}, Type: raftpb.OnDiskStateMachine}
	if _, err := s.GetBootstrapInfo(1, 2); !errors.Is(err, raftio.ErrNoBootstrapInfo) {
		t.Errorf("bootstrap of nobody: %v", err)
	}
	for shard := range uint64(3) {
		if err := s.SaveBootstrapInfo(shard+1, 2, info); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.GetBootstrapInfo(1, 2)
	if err != nil || !reflect.DeepEqual(got, info) {
		t.Errorf("bootstrap %+v, %v", got, err)
	}
	if all, err := s.ListNodeInfo(); err != nil || len(all) != 3 || all[0] != raftio.GetNodeInfo(1, 2) {
		t.Errorf("replicas %v, %v", all, err)
	}
	// An older snapshot doesn't replace a newer one.
	for _, index := range []uint64{5, 20, 10} {
		u := raftpb.Update{ShardID: 1, ReplicaID: 2, Snapshot: raftpb.Snapshot{Index: index, Term: 1}}
		if err := s.SaveSnapshots([]raftpb.Update{u}); err != nil {
			t.Fatal(err)
		}
	}
	if snapshot, err := s.GetSnapshot(1, 2); err != nil || snapshot.Index != 20 {
		t.Errorf("snapshot %+v, %v", snapshot, err)
	}
	if err := s.SaveRaftState(nil, 17); err == nil {
		t.Error("a worker that isn't one was served")
	}
	// A worker's states of many logs cost one fsync.
	var many []raftpb.Update
	for shard := range uint64(1000) {
		many = append(many, raftpb.Update{ShardID: shard + 1, ReplicaID: 2, State: raftpb.State{Term: 5, Vote: 2}})
	}
	before := s.journal.Figures()
	s.mustSave(t, many...)
	after := s.journal.Figures()
	if n := after.Batches - before.Batches; n != 1 {
		t.Errorf("1,000 votes took %d fsyncs", n)
	}
	if n := after.Bytes - before.Bytes; n > 40_000 {
		t.Errorf("1,000 votes took %d bytes", n)
	}
	// A commit index alone costs none.
	for i := range many {
		many[i].State.Commit++
	}
	s.mustSave(t, many...)
	if n := s.journal.Figures().Batches - after.Batches; n != 0 {
		t.Errorf("1,000 commit indexes took %d fsyncs", n)
	}
	// Nor does a heartbeat, whose update has nothing to save.
	for i := range many {
		many[i].State = raftpb.State{}
	}
	s.mustSave(t, many...)
	if n := s.journal.Figures().Batches - after.Batches; n != 0 {
		t.Errorf("1,000 heartbeats took %d fsyncs", n)
	}
}

// A directory that was made with a Pebble log keeps it, a new one has a journal. What was written is there in both.
func TestDirectoriesOfEarlierVersions(t *testing.T) {
	t.Parallel()
	for _, pebble := range []bool{true, false} {
		dir := t.TempDir()
		for round := range 3 {
			c := testConfig(dir)
			c.pebble = pebble && round == 0 // as an earlier version
			h, err := NewHost(c)
			if err != nil {
				t.Fatal(err)
			}
			if ours := h.store.Load() != nil; ours == pebble {
				t.Fatalf("round %d of a directory with Pebble %v: journal %v", round, pebble, ours)
			}
			ledger := replicationtest.NewLedger(nil)
			l := mustLead(t, h, ledger)
			mustPropose(t, l, "line")
			if n := len(ledger.Lines()); n != round+1 {
				t.Errorf("round %d: %d lines", round, n)
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
		}
		kinds, err := filepath.Glob(filepath.Join(dir, "*", "*", "journal", "JOURNAL"))
		if err != nil || (len(kinds) == 1) == pebble {
			t.Errorf("with Pebble %v: journals %v, %v", pebble, kinds, err)
		}
		// A status file says the kind; a version that doesn't know it refuses.
		status, err := readStatus(vfs.Default, dir)
		if err != nil || (status.LogdbType == journalStore) == pebble {
			t.Errorf("status %+v, %v", status, err)
		}
	}
}

// A journal that is damaged is an error of NewHost, which names the file, and not the end of the process.
func TestDamagedJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h, err := NewHost(testConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	l := mustLead(t, h, replicationtest.NewLedger(nil))
	for range 10 {
		mustPropose(t, l, "line")
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "*", "journal", "*.journal"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	if err := os.WriteFile(files[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = NewHost(testConfig(dir))
	if !errors.Is(err, journal.ErrDamaged) || !strings.Contains(err.Error(), files[0]) {
		t.Fatalf("open: %v", err)
	}
}

// A replica may have applied what its saved commit index doesn't cover.
func TestCommitIndexIsForgotten(t *testing.T) {
	t.Parallel()
	disk := vfs.NewStrictMem()
	c := testConfig("/raft")
	c.FS = disk
	var applied atomic.Int64
	for round := range 3 {
		h, err := NewHost(c)
		if err != nil {
			t.Fatal(err)
		}
		ledger := replicationtest.NewLedger(nil)
		l := mustLead(t, h, ledger)
		if err := l.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(ledger.Lines()); int64(n) != applied.Load() {
			t.Fatalf("round %d: %d lines, want %d", round, n, applied.Load())
		}
		for range 20 {
			mustPropose(t, l, "line")
			applied.Add(1)
		}
		disk.SetIgnoreSyncs(true)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		disk.ResetToSyncedState()
		disk.SetIgnoreSyncs(false)
		// A commit index was not worth an fsync of its own.
		s := h.store.Load().journal.Figures()
		if s.Batches > 20+15 {
			t.Errorf("round %d: %d fsyncs for 20 lone proposals", round, s.Batches)
		}
	}
}
