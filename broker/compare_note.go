package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/partition"
)

// comparison is what is known of a partition's comparisons. Its leader changes it and tells the other
// replicas' brokers, so that the next leader goes on; all keep it in a file. Times are Unix
// milliseconds, 0 never.
type comparison struct {
	Shard     uint64 `json:"shard"`
	Updated   int64  `json:"updated"`
	Since     int64  `json:"since"` // this broker has known the partition
	Requested bool   `json:"requested,omitempty"`
	// Of the pass that is under way; Begun is 0 where none is.
	Begun   int64    `json:"begun,omitempty"`
	Told    int64    `json:"told,omitempty"`
	First   int64    `json:"first,omitempty"`  // offset that it began with
	Cursor  int64    `json:"cursor,omitempty"` // offset where it goes on
	Target  int64    `json:"target,omitempty"` // where it ends: the log's end when it began
	Bytes   int64    `json:"bytes,omitempty"`
	Missing []uint64 `json:"missing,omitempty"` // brokers whose replicas were not compared in some run
	// StateAt is the entry at which the states were compared last, 0 where they could not be.
	StateAt uint64 `json:"state_at,omitempty"`

	Passes      uint64       `json:"passes,omitempty"` // that are through
	Last        *pass        `json:"last,omitempty"`
	Differences []difference `json:"differences,omitempty"` // that are not over
	More        int          `json:"more,omitempty"`        // beyond compareMost
	Checked     int64        `json:"checked,omitempty"`     // when they were looked at last
	Event       string       `json:"event,omitempty"`       // the last one
	EventAt     int64        `json:"event_at,omitempty"`
}

// pass is one way through a whole log.
type pass struct {
	Begun   int64    `json:"begun"`
	Ended   int64    `json:"ended"`
	From    int64    `json:"from"`
	UpTo    int64    `json:"up_to"` // excluded
	Bytes   int64    `json:"bytes"`
	Missing []uint64 `json:"missing,omitempty"`
	State   bool     `json:"state"` // compared too
}

// What differs.
const (
	whatRecords = "records"
	whatState   = "state"
)

// difference is something that replicas don't have alike.
type difference struct {
	What  string                 `json:"what"`
	From  int64                  `json:"from"`
	To    int64                  `json:"to"`
	State *partition.StateDigest `json:"state,omitempty"` // the leader's
	Votes []ballot               `json:"votes"`
	Good  string                 `json:"good,omitempty"` // what the majority has; "" there is none
	Found int64                  `json:"found"`
}

func (d *difference) is(o *difference) bool {
	return d.What == o.What && (d.What == whatState || d.From < o.To && o.From < d.To)
}

func (n *comparison) clone() comparison {
	c := *n
	c.Missing, c.Differences = slices.Clone(n.Missing), slices.Clone(n.Differences)
	return c
}

// comparisonDue orders what is to be compared next.
type comparisonDue struct {
	rank int // 0: not due
	at   int64
}

func (d comparisonDue) before(o comparisonDue) bool {
	return d.rank > o.rank || d.rank == o.rank && d.rank > 0 && d.at < o.at
}

// due says when, and how urgently, a partition is to be gone on with. Every below 0: only when asked for.
func (n *comparison) due(now time.Time, every time.Duration) comparisonDue {
	ms := now.UnixMilli()
	switch {
	case n.Requested:
		return comparisonDue{4, n.Updated}
	case len(n.Differences) > 0 && ms-n.Checked >= compareCheck.Milliseconds():
		return comparisonDue{3, n.Checked}
	case n.Begun != 0:
		return comparisonDue{2, n.Begun}
	case every > 0 && ms >= n.next(every):
		return comparisonDue{1, n.next(every)}
	}
	return comparisonDue{}
}

// next is when the next pass is to begin. A part of the log that nobody else had is compared sooner.
func (n *comparison) next(every time.Duration) int64 {
	switch {
	case n.Last == nil:
		return n.Since + every.Milliseconds()
	case len(n.Last.Missing) > 0:
		return n.Last.Ended + (every / comparePart).Milliseconds()
	}
	return n.Last.Begun + every.Milliseconds()
}

func (n *comparison) miss(brokers []uint64) {
	for _, id := range brokers {
		if !slices.Contains(n.Missing, id) {
			n.Missing = append(n.Missing, id)
		}
	}
	slices.Sort(n.Missing)
}

// end ends a pass.
func (n *comparison) end(now time.Time) {
	n.Last = &pass{Begun: n.Begun, Ended: now.UnixMilli(), From: n.First, UpTo: max(n.Cursor, 0), Bytes: n.Bytes, Missing: n.Missing, State: n.StateAt != 0}
	n.Begun, n.Cursor, n.Target, n.First, n.Bytes, n.Missing, n.Requested, n.Told = 0, 0, 0, 0, 0, nil, false, now.UnixMilli()
	n.Passes++
}

// differ notes a difference, and reports whether it was known already, with the same outcome.
func (n *comparison) differ(d difference) (known bool) {
	for i := range n.Differences {
		if o := &n.Differences[i]; o.is(&d) {
			d.Found = o.Found
			known = o.Good == d.Good && slices.Equal(o.Votes, d.Votes)
			n.Differences[i] = d
			return known
		}
	}
	if len(n.Differences) >= compareMost {
		n.More++
		return false
	}
	n.Differences = append(n.Differences, d)
	n.Checked = time.Now().UnixMilli()
	return false
}

// states are the differences of states.
func (n *comparison) states() (all []difference) {
	for _, d := range n.Differences {
		if d.What == whatState {
			all = append(all, d)
		}
	}
	return all
}

func (n *comparison) over(d difference, why string) {
	n.Differences = slices.DeleteFunc(n.Differences, func(o difference) bool { return o.is(&d) })
	if len(n.Differences) == 0 {
		n.More = 0
	}
	n.Event, n.EventAt = d.text()+": "+why, time.Now().UnixMilli()
}

func (d *difference) text() string {
	if d.What == whatState {
		return "state of replicas differed"
	}
	return fmt.Sprintf("replicas differed at offsets %d to %d", d.From, d.To-1)
}

// comparedFile has a checksum: what it says of differences is told to people.
type comparedFile struct {
	Version     int              `json:"version"`
	Comparisons []comparisonNote `json:"comparisons"`
}

type comparisonNote struct {
	Comparison json.RawMessage `json:"comparison"`
	Checksum   uint32          `json:"checksum"`
}

const (
	comparedName    = "compared"
	comparedVersion = 1
)

var comparedTable = crc32.MakeTable(crc32.Castagnoli)

// load reads the file. What can't be read is as if it had never been written: everything is compared anew.
func (k *comparer) load(path string) {
	k.path = path
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var f comparedFile
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err == nil && f.Version != comparedVersion {
		err = fmt.Errorf("version %d, this broker knows %d", f.Version, comparedVersion)
	}
	if err != nil {
		k.b.c.Logger.Warn().Err(err).Str("file", path).Msg("the note on compared replicas can't be read: they are compared anew")
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, one := range f.Comparisons {
		var n comparison
		if crc32.Checksum(one.Comparison, comparedTable) == one.Checksum && json.Unmarshal(one.Comparison, &n) == nil {
			k.notes[n.Shard] = &n
		}
	}
}

// save writes the file, if anything changed: of partitions that have a replica here. It isn't fsynced, as a lost one costs
// some reading alone.
func (k *comparer) save() {
	local := *k.b.local.Load()
	k.mu.Lock()
	if !k.dirty {
		k.mu.Unlock()
		return
	}
	f := comparedFile{Version: comparedVersion}
	var err error
	for shard, n := range k.notes {
		if len(local) > 0 && local[shard] == nil { // none at all: it has just started
			delete(k.notes, shard)
			delete(k.again, shard)
			continue
		}
		var one comparisonNote
		if one.Comparison, err = json.Marshal(n); err != nil {
			break
		}
		one.Checksum = crc32.Checksum(one.Comparison, comparedTable)
		f.Comparisons = append(f.Comparisons, one)
	}
	k.dirty = false
	k.mu.Unlock()
	var data []byte
	if err == nil {
		data, err = json.Marshal(f)
	}
	if err == nil {
		err = os.WriteFile(k.path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(k.path+".new", k.path)
	}
	if err != nil {
		k.b.c.Logger.Warn().Err(err).Str("file", k.path).Msg("the note on compared replicas could not be written")
	}
}

// tell tells the other replicas' brokers what is known.
func (k *comparer) tell(s *slot, n comparison) {
	if k.b.peers.mesh == nil {
		return
	}
	msg, err := json.Marshal(n)
	if err != nil {
		k.b.c.Logger.Error().Err(err).Msg("what is known of a comparison could not be encoded")
		return
	}
	for _, r := range s.replicas() {
		if r.Broker != k.b.self() && k.b.peers.alive(r.Broker) {
			// One that doesn't hear it compares more than it needs to.
			if err := k.b.peers.mesh.Send(r.Broker, subjectCompared, msg); err != nil {
				k.b.c.Logger.Debug().Err(err).Str("broker", k.b.brokerName(r.Broker)).Msg("a broker was not told what is known of a comparison")
			}
		}
	}
}

// compared takes what a leader knows.
func (b *Broker) compared(_ context.Context, from mesh.Identity, msg []byte) ([]byte, error) {
	var n comparison
	if err := json.Unmarshal(msg, &n); err != nil {
		return nil, badRequest("malformed word about a comparison")
	}
	s := b.slotOf(n.Shard)
	if s == nil || !s.local || b.leadsNow(s) || s.lead.load().broker != from.Broker {
		return nil, nil
	}
	k := b.comparer
	k.mu.Lock()
	defer k.mu.Unlock()
	if old := k.notes[n.Shard]; old != nil {
		n.Since = min(n.Since, old.Since)
	}
	k.notes[n.Shard] = &n
	k.dirty = true
	return nil, nil
}
