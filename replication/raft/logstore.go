package raft

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"

	"github.com/parleymq/parley/replication/format"
	"github.com/parleymq/parley/replication/raft/journal"
)

// What dragonboat's status file says of the log store of a directory: the marker of its kind.
const (
	// journalStore is ours (ADR 0100). New directories get it.
	journalStore = "parley-journal"
	// journalFormat changes with the bytes on disk.
	journalFormat = 1
	// journalDir is where it is, below the directory of host name and deployment.
	journalDir = "journal"
)

// storeBytes is how much one replica's update, or several, may have before it is saved on its own.
const storeBytes = 64 << 20

// keepsJournal says whether a directory has our log store, or will: one that was made by earlier versions has
// dragonboat's Pebble store, and keeps it.
func keepsJournal(fsys vfs.FS, dir string) (bool, error) {
	status, err := readStatus(fsys, dir)
	if err != nil {
		return true, err
	}
	if status == nil {
		return true, foreignData(fsys, dir)
	}
	switch name := fsys.PathJoin(dir, statusFile); {
	case status.LogdbType == journalStore && status.BinVer > journalFormat:
		return true, format.Newer("raft directory "+name, "format", uint64(status.BinVer), journalFormat)
	case status.LogdbType != journalStore && strings.HasPrefix(status.LogdbType, "parley-"):
		return true, fmt.Errorf("raft directory %s: %w: its log store is %q, this program knows %q: start the newer program", name, format.ErrNewer, status.LogdbType, journalStore)
	}
	return status.LogdbType == journalStore, nil
}

// foreignData refuses a directory without a status file that holds another log store's data: our own would begin empty
// beside it, without all that was acked.
func foreignData(fsys vfs.FS, dir string) error {
	hosts, err := list(fsys, dir)
	if err != nil {
		return fmt.Errorf("list raft directory: %w", err)
	}
	for _, host := range hosts {
		if info, err := fsys.Stat(fsys.PathJoin(dir, host)); err != nil || !info.IsDir() {
			continue
		}
		deployments, err := list(fsys, fsys.PathJoin(dir, host))
		if err != nil {
			return fmt.Errorf("list raft directory: %w", err)
		}
		for _, deployment := range deployments {
			for _, store := range []string{"logdb-0", "logdb"} {
				if _, err := fsys.Stat(fsys.PathJoin(dir, host, deployment, store)); err == nil {
					return fmt.Errorf("%w: %s is missing, and there is %s: restore it from a backup of this directory",
						ErrForeignDirectory, fsys.PathJoin(dir, statusFile), fsys.PathJoin(dir, host, deployment, store))
				}
			}
		}
	}
	return nil
}

// readStatus reads dragonboat's status file: the last 8 bytes of the MD5 of a protobuf message, then
// the message. It returns nil when there is none.
func readStatus(fsys vfs.FS, dir string) (*raftpb.RaftDataStatus, error) {
	name := fsys.PathJoin(dir, statusFile)
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	data, err := io.ReadAll(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var status raftpb.RaftDataStatus
	if len(data) < 8 || !bytes.Equal(data[:8], statusHash(data[8:])) || status.Unmarshal(data[8:]) != nil {
		// Dragonboat would panic. Nothing else is in it that could be lost, but a
		// damaged file is a damaged disk: a person should look.
		return nil, fmt.Errorf("%w: %s is damaged: restore it from a backup of this directory", ErrForeignDirectory, name)
	}
	return &status, nil
}

// storeFactory makes the journal of a host.
type storeFactory struct{ h *Host }

var _ config.LogDBFactory = storeFactory{}

func (storeFactory) Name() string { return journalStore }

func (f storeFactory) Create(c config.NodeHostConfig, _ config.LogDBCallback, dirs, _ []string) (raftio.ILogDB, error) {
	h := f.h
	o := journal.Options{
		SegmentBytes: h.config.SegmentBytes,
		OnError:      func(err error) { h.fatal(fmt.Errorf("raft log: %w", err)) },
		OnMended: func(what string) {
			h.logger.Warn().Str("damage", what).Msg("raft journal was damaged where it costs nothing, and is mended")
		},
	}
	fsys := vfs.Default
	if h.config.FS != nil {
		fsys = h.config.FS
		o.FS = seamFS{fsys}
	}
	dir := fsys.PathJoin(dirs[0], journalDir)
	if err := makeDir(fsys, dir); err != nil {
		return nil, fmt.Errorf("make raft journal: %w", err)
	}
	j, err := journal.Open(dir, o)
	if err != nil {
		return nil, err
	}
	s := &store{journal: j, fatal: o.OnError, keepAll: h.config.KeepAll}
	for range c.Expert.Engine.ExecShards {
		s.batches = append(s.batches, j.NewBatch())
	}
	s.spare.New = func() any { return j.NewBatch() }
	h.store.Store(s)
	return s, nil
}

// store is dragonboat's log store on a journal.
//
// An error that it returns makes dragonboat panic; OnFatal has been told by then.
type store struct {
	journal *journal.Journal
	fatal   func(error)
	batches []*journal.Batch // by step worker
	spare   sync.Pool        // for everybody else
	keepAll bool             // Config.KeepAll
	// taken is up to which entry a replica's state machine had everything when it was opened here, by key.
	taken sync.Map
}

var _ raftio.ILogDB = (*store)(nil)

func (s *store) Name() string         { return journalStore }
func (s *store) BinaryFormat() uint32 { return journalFormat }
func (s *store) Close() error         { return s.journal.Close() }

// entries are a Save's.
type entries []raftpb.Entry

func (e *entries) Len() int       { return len(*e) }
func (e *entries) Size(i int) int { return (*e)[i].Size() }
func (e *entries) Put(i int, to []byte) error {
	n, err := (*e)[i].MarshalTo(to)
	if err == nil && n != len(to) {
		err = fmt.Errorf("it has %d bytes, %d were announced", n, len(to))
	}
	return err
}

// SaveRaftState implements raftio.ILogDB.
func (s *store) SaveRaftState(updates []raftpb.Update, worker uint64) error {
	if worker == 0 || worker > uint64(len(s.batches)) {
		return fmt.Errorf("save raft state: worker %d: 1 to %d are known", worker, len(s.batches))
	}
	b := s.batches[worker-1]
	b.Reset()
	for i := range updates {
		u := &updates[i]
		key := journal.Key{Shard: u.ShardID, Replica: u.ReplicaID}
		save := journal.Update{State: journal.State{Term: u.State.Term, Vote: u.State.Vote, Commit: u.State.Commit}}
		if !raftpb.IsEmptySnapshot(u.Snapshot) {
			if known, _ := s.journal.Status(key); u.Snapshot.Index > known.SnapshotIndex {
				data, err := u.Snapshot.Marshal()
				if err != nil {
					return s.gaveUp(fmt.Errorf("encode snapshot of log %d: %w", u.ShardID, err))
				}
				save.Install, save.Snapshot = u.Snapshot.Index, data
			}
		}
		if n := len(u.EntriesToSave); n > 0 {
			if last := u.EntriesToSave[n-1].Index; save.Install > last {
				return s.gaveUp(fmt.Errorf("save raft state of log %d: a snapshot at %d with entries up to %d", u.ShardID, save.Install, last))
			}
			save.First = u.EntriesToSave[0].Index
			save.Entries = (*entries)(&u.EntriesToSave)
		}
		b.Save(key, save)
		if b.Len() >= storeBytes {
			if err := b.Commit(); err != nil {
				return s.gaveUp(err)
			}
			b.Reset()
		}
	}
	return s.gaveUp(b.Commit())
}

// gaveUp tells OnFatal before dragonboat panics.
func (s *store) gaveUp(err error) error {
	if err != nil && !errors.Is(err, journal.ErrClosed) {
		s.fatal(err)
	}
	return err
}

// commit saves a batch that isn't a step worker's.
func (s *store) commit(fill func(*journal.Batch)) error {
	b := s.spare.Get().(*journal.Batch)
	defer s.spare.Put(b)
	b.Reset()
	fill(b)
	return s.gaveUp(b.Commit())
}

// IterateEntries implements raftio.ILogDB.
func (s *store) IterateEntries(ents []raftpb.Entry, size uint64, shard, replica, low, high, limit uint64) ([]raftpb.Entry, uint64, error) {
	err := s.journal.Read(journal.Key{Shard: shard, Replica: replica}, low, high, func(index uint64, data []byte) (bool, error) {
		var e raftpb.Entry
		if err := e.Unmarshal(data); err != nil || e.Index != index {
			return false, fmt.Errorf("entry %d of log %d can't be decoded (index %d): %w", index, shard, e.Index, errors.Join(journal.ErrDamaged, err))
		}
		if s.keepAll {
			if err := stay(&e, replica); err != nil {
				return false, err
			}
		}
		ents = append(ents, e)
		size += uint64(e.SizeUpperLimit())
		return size <= limit, nil
	})
	if err != nil {
		return nil, 0, s.gaveUp(err)
	}
	return ents, size, nil
}

// ReadRaftState implements raftio.ILogDB.
func (s *store) ReadRaftState(shard, replica, snapshot uint64) (raftio.RaftState, error) {
	known, _ := s.journal.Status(journal.Key{Shard: shard, Replica: replica})
	if !known.HasState {
		return raftio.RaftState{}, raftio.ErrNoSavedLog
	}
	state := raftio.RaftState{
		State:      raftpb.State{Term: known.State.Term, Vote: known.State.Vote, Commit: known.State.Commit},
		FirstIndex: snapshot,
	}
	// A commit index may be forgotten; what a snapshot covers was committed, and dragonboat insists.
	state.State.Commit = max(state.State.Commit, snapshot)
	if s.keepAll && known.Last >= known.First {
		state.State.Commit = max(state.State.Commit, known.Last)
	}
	if known.Last > snapshot && known.Last >= known.First {
		state.FirstIndex = max(known.First, snapshot)
		state.EntryCount = known.Last - state.FirstIndex + 1
	}
	return state, nil
}

// RemoveEntriesTo implements raftio.ILogDB.
func (s *store) RemoveEntriesTo(shard, replica, index uint64) error {
	s.journal.Trim(journal.Key{Shard: shard, Replica: replica}, index)
	return nil
}

var compacted = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// CompactEntriesTo implements raftio.ILogDB. The journal cleans itself.
func (s *store) CompactEntriesTo(uint64, uint64, uint64) (<-chan struct{}, error) {
	return compacted, nil
}

// SaveSnapshots implements raftio.ILogDB.
func (s *store) SaveSnapshots(updates []raftpb.Update) error {
	var err error
	commitErr := s.commit(func(b *journal.Batch) {
		for i := range updates {
			u := &updates[i]
			if raftpb.IsEmptySnapshot(u.Snapshot) {
				continue
			}
			data, merr := u.Snapshot.Marshal()
			if merr != nil {
				err = fmt.Errorf("encode snapshot of log %d: %w", u.ShardID, merr)
				continue
			}
			b.Snapshot(journal.Key{Shard: u.ShardID, Replica: u.ReplicaID}, u.Snapshot.Index, data)
		}
	})
	return errors.Join(err, commitErr)
}

// GetSnapshot implements raftio.ILogDB.
func (s *store) GetSnapshot(shard, replica uint64) (raftpb.Snapshot, error) {
	known, _ := s.journal.Status(journal.Key{Shard: shard, Replica: replica})
	var snapshot raftpb.Snapshot
	if known.Snapshot == nil {
		return snapshot, nil
	}
	if err := snapshot.Unmarshal(known.Snapshot); err != nil {
		return snapshot, s.gaveUp(fmt.Errorf("decode snapshot of log %d: %w", shard, err))
	}
	if at, ok := s.taken.Load(journal.Key{Shard: shard, Replica: replica}); ok && !snapshot.Imported && snapshot.OnDiskIndex <= at.(uint64) {
		snapshot.Dummy = true // its file isn't needed, and isn't looked at: see snapshotfile.go
	}
	return snapshot, nil
}

// SaveBootstrapInfo implements raftio.ILogDB.
func (s *store) SaveBootstrapInfo(shard, replica uint64, info raftpb.Bootstrap) error {
	data, err := info.Marshal()
	if err != nil {
		return fmt.Errorf("encode bootstrap of log %d: %w", shard, err)
	}
	return s.commit(func(b *journal.Batch) { b.Bootstrap(journal.Key{Shard: shard, Replica: replica}, data) })
}

// GetBootstrapInfo implements raftio.ILogDB.
func (s *store) GetBootstrapInfo(shard, replica uint64) (raftpb.Bootstrap, error) {
	known, _ := s.journal.Status(journal.Key{Shard: shard, Replica: replica})
	var info raftpb.Bootstrap
	if known.Bootstrap == nil {
		return info, raftio.ErrNoBootstrapInfo
	}
	if err := info.Unmarshal(known.Bootstrap); err != nil {
		return info, fmt.Errorf("decode bootstrap of log %d: %w", shard, err)
	}
	return info, nil
}

// ListNodeInfo implements raftio.ILogDB.
func (s *store) ListNodeInfo() ([]raftio.NodeInfo, error) {
	var out []raftio.NodeInfo
	for _, key := range s.journal.Replicas() {
		if known, _ := s.journal.Status(key); known.Bootstrap != nil {
			out = append(out, raftio.GetNodeInfo(key.Shard, key.Replica))
		}
	}
	return out, nil
}

// RemoveNodeData implements raftio.ILogDB.
func (s *store) RemoveNodeData(shard, replica uint64) error {
	key := journal.Key{Shard: shard, Replica: replica}
	if _, ok := s.journal.Status(key); !ok {
		return nil
	}
	return s.commit(func(b *journal.Batch) { b.Remove(key) })
}

// ImportSnapshot implements raftio.ILogDB.
func (s *store) ImportSnapshot(snapshot raftpb.Snapshot, replica uint64) error {
	if snapshot.Type == raftpb.UnknownStateMachine {
		return fmt.Errorf("import snapshot of log %d: its state machine's type is unknown", snapshot.ShardID)
	}
	info := raftpb.Bootstrap{Join: true, Type: snapshot.Type}
	bootstrap, err := info.Marshal()
	if err != nil {
		return fmt.Errorf("encode bootstrap of log %d: %w", snapshot.ShardID, err)
	}
	data, err := snapshot.Marshal()
	if err != nil {
		return fmt.Errorf("encode snapshot of log %d: %w", snapshot.ShardID, err)
	}
	return s.commit(func(b *journal.Batch) {
		b.Import(journal.Key{Shard: snapshot.ShardID, Replica: replica}, bootstrap,
			journal.State{Term: snapshot.Term, Commit: snapshot.Index}, snapshot.Index, data)
	})
}
