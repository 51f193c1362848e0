package epoch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

type joinRequest struct {
	Self  config.Broker `json:"self"`
	Level uint32        `json:"level,omitempty"` // the newest feature level that it knows
}

type joinReply struct {
	Cluster string `json:"cluster"`
	ID      uint64 `json:"id"`
	Epoch   uint64 `json:"epoch"`
	Begin   []byte `json:"begin"`             // the first epochs, as a Decided
	Refused string `json:"refused,omitempty"` // for good
}

// JoinOptions of Join.
type JoinOptions struct {
	Dir   string
	Self  config.Broker // all but the id
	Level uint32        // the newest feature level that it knows
	Seeds []string      // peer addresses of brokers that are in the cluster
	Ask   Ask
	// OnWait is told why nobody has admitted this broker yet, when that changes.
	OnWait func(why string)

	dir directory
}

// Joined is what a broker learned when it was admitted.
type Joined struct {
	Cluster string
	ID      uint64
	Epoch   uint64 // that names it
}

// Join asks the seeds, one after another until ctx ends, to admit this data directory
// by an epoch, and then begins the journal in Dir with the cluster's first epochs. Open and
// Bootstrap, with the same seeds, do the rest. To join again is harmless: an admitted
// incarnation keeps its id. ErrRefused: the cluster won't have it.
func Join(ctx context.Context, o JoinOptions) (Joined, error) {
	if o.dir == nil {
		if err := os.MkdirAll(o.Dir, 0o750); err != nil {
			return Joined{}, fmt.Errorf("make epoch directory: %w", err)
		}
		o.dir = diskDirectory(o.Dir)
	}
	if len(o.Seeds) == 0 {
		return Joined{}, errors.New("join a cluster: no address to ask was given")
	}
	req, err := json.Marshal(joinRequest{o.Self, o.Level})
	if err != nil {
		return Joined{}, fmt.Errorf("join a cluster: %w", err)
	}
	waits := ""
	for n := 0; ; n++ {
		seed := o.Seeds[n%len(o.Seeds)]
		reply, err := o.askOnce(ctx, seed, req)
		if err == nil {
			return reply.begin(o)
		}
		if errors.Is(err, ErrRefused) || ctx.Err() != nil {
			return Joined{}, fmt.Errorf("join a cluster by %s: %w", seed, err)
		}
		if why := fmt.Sprintf("%s: %v", seed, err); why != waits {
			if waits = why; o.OnWait != nil {
				o.OnWait(why)
			}
		}
		t := time.NewTimer(time.Second)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return Joined{}, fmt.Errorf("join a cluster by %s: %w: %w", seed, ctx.Err(), err)
		}
	}
}

func (o *JoinOptions) askOnce(ctx context.Context, seed string, req []byte) (joinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, formTimeout)
	defer cancel()
	var r joinReply
	b, err := o.Ask(ctx, seed, SubjectJoin, req)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("answer to %s: %w", SubjectJoin, err)
	}
	if r.Refused != "" {
		return r, fmt.Errorf("%w: %s", ErrRefused, r.Refused)
	}
	return r, nil
}

// begin writes the journal that a newcomer begins with.
func (r *joinReply) begin(o JoinOptions) (Joined, error) {
	m, err := decodeMessage(r.Begin)
	if err != nil || len(m.Entries) == 0 || m.Entries[0].Epoch != 0 {
		return Joined{}, fmt.Errorf("join a cluster: the first epochs are not readable: %w", errors.Join(err, errForm))
	}
	j, entries, _, err := openJournal(o.dir)
	if err != nil {
		return Joined{}, err
	}
	for _, e := range entries {
		if e.kind != kindBoot {
			j.close()
			return Joined{}, fmt.Errorf("join a cluster: %s holds epochs of one already", o.dir.path(journalName))
		}
	}
	last := m.Entries[len(m.Entries)-1].Epoch
	err = j.append(entry{kind: kindStep, epoch: last, payload: encodeRecords([]paxos.Record{{Kind: paxos.RecordDecided, Epoch: last, Entries: m.Entries}})})
	if err = errors.Join(err, j.close()); err != nil {
		return Joined{}, fmt.Errorf("join a cluster: %w", err)
	}
	return Joined{Cluster: r.Cluster, ID: r.ID, Epoch: r.Epoch}, nil
}

// refusal is an admission that would fail in the same way at every member.
type refusal string

func (r refusal) Error() string { return string(r) }

func (c *Cluster) answerJoin(ctx context.Context, incarnation string, req []byte) ([]byte, error) {
	var q joinRequest
	if err := json.Unmarshal(req, &q); err != nil {
		return nil, fmt.Errorf("answer %s: %w", SubjectJoin, err)
	}
	if q.Self.Incarnation != incarnation {
		return nil, fmt.Errorf("answer %s: %w: %q", SubjectJoin, ErrForged, q.Self.Incarnation)
	}
	if c.Current().Epoch == 0 {
		return nil, fmt.Errorf("answer %s: this broker has no cluster yet", SubjectJoin)
	}
	next, err := c.Admit(ctx, q.Self, q.Level)
	var refused refusal
	if errors.As(err, &refused) {
		return json.Marshal(joinReply{Refused: refused.Error()})
	}
	if err != nil {
		return nil, fmt.Errorf("answer %s: %w", SubjectJoin, err)
	}
	c.mu.Lock()
	entries := c.history.from(0)
	c.mu.Unlock()
	r := joinReply{Cluster: next.ClusterID, Epoch: next.Epoch}
	for i := range next.Brokers {
		if next.Brokers[i].Incarnation == incarnation {
			r.ID = next.Brokers[i].ID
		}
	}
	m := paxos.Message{Kind: paxos.Decided, From: c.self, To: paxos.Member{ID: r.ID, Incarnation: incarnation}, Cluster: next.ClusterID, Entries: entries}
	r.Begin = encodeMessage(&m)
	return json.Marshal(r)
}

// Superseded marks the name of a broker whose name a newcomer took over: NAME~ID. No broker
// can be started under such a name.
const Superseded = "~"

// Admit has an epoch decided that names a new broker, which knows feature levels up to level. Its
// id is a new one. A name passes to the newcomer when the broker that has it is dead, or can't be
// reached: its disk was emptied. That one leaves the cluster when it holds nothing; otherwise it
// stays as a dead one, under another name, until its replicas were given to others.
func (c *Cluster) Admit(ctx context.Context, b config.Broker, level uint32) (*config.Config, error) {
	if b.Incarnation == "" || b.Name == "" {
		return nil, refusal("a broker needs a name and an incarnation")
	}
	// Whom others reach is asked once, not within the change.
	gone := map[uint64]bool{}
	cur := c.Current()
	for i := range cur.Brokers {
		o := &cur.Brokers[i]
		if o.Incarnation != b.Incarnation && (o.Name == b.Name || sameAddress(o, &b)) {
			gone[o.ID] = o.State == config.Dead || o.ID != c.self.ID && c.o.Gone(ctx, o.ID)
		}
	}
	next, err := c.Propose(ctx, func(next *config.Config) error {
		if level < next.FeatureLevel {
			return refusal(fmt.Sprintf("the cluster is at feature level %d, this program knows up to %d: use a newer version", next.FeatureLevel, level))
		}
		for i := range next.Brokers {
			o := &next.Brokers[i]
			switch {
			case o.Incarnation == b.Incarnation && o.Name == b.Name:
				return ErrUnchanged
			case o.Incarnation == b.Incarnation:
				return refusal(fmt.Sprintf("this data directory has joined already, as broker %s (id %d): start it under that name", o.Name, o.ID))
			case o.Name == b.Name && !gone[o.ID]:
				return refusal(fmt.Sprintf("a broker named %s is in the cluster and live (id %d, %s): give another name", o.Name, o.ID, o.Addresses.Peer))
			case sameAddress(o, &b) && !gone[o.ID]:
				return refusal(fmt.Sprintf("broker %s (id %d) is live at the same address (%s for peers, %s for raft): give each broker its own", o.Name, o.ID, o.Addresses.Peer, o.Addresses.Raft))
			}
		}
		text := fmt.Sprintf("broker %s joined", b.Name)
		if old := next.BrokerNamed(b.Name); old != nil {
			text = c.supersede(next, old.ID)
		}
		b.ID, b.State, b.Weight = next.TakeBroker(), config.Active, max(b.Weight, 1)
		next.Brokers = append(next.Brokers, b)
		next.Change = text
		next.EvenOut()
		return nil
	})
	if errors.Is(err, ErrUnchanged) {
		return next, nil
	}
	return next, err
}

func sameAddress(a, b *config.Broker) bool {
	return a.Addresses.Peer != "" && a.Addresses.Peer == b.Addresses.Peer || a.Addresses.Raft != "" && a.Addresses.Raft == b.Addresses.Raft
}

// supersede makes a broker's name free for a newcomer, and says how.
func (c *Cluster) supersede(next *config.Config, id uint64) string {
	old := next.Broker(id)
	name := old.Name
	if next.Holds(id) == 0 {
		next.RemoveBroker(id)
		return fmt.Sprintf("broker %s joined in place of an emptied one (id %d)", name, id)
	}
	old.State = config.Dead
	old.Name = fmt.Sprintf("%s%s%d", name, Superseded, id)
	return fmt.Sprintf("broker %s joined in place of one that is gone, which is named %s while others take over its replicas", name, old.Name)
}

// Known is what a broker at some address says of its cluster.
type Known struct {
	Cluster string
	Epoch   uint64 // 0: it has no cluster yet
	Named   bool   // that epoch names the one who asked
	Name    string // of the broker that answers
}

// Probe asks the broker at an address what it knows, before there is a store, or beside it.
func Probe(ctx context.Context, ask Ask, self config.Broker, address string) (Known, error) {
	req, err := json.Marshal(hello{Self: self, Epoch: math.MaxInt64}) // nothing is to be sent along
	if err != nil {
		return Known{}, fmt.Errorf("ask %s: %w", SubjectHello, err)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := ask(ctx, address, SubjectHello, req)
	if err != nil {
		return Known{}, err
	}
	var a hello
	if err := json.Unmarshal(reply, &a); err != nil {
		return Known{}, fmt.Errorf("answer to %s: %w", SubjectHello, err)
	}
	return Known{Cluster: a.Cluster, Epoch: a.Epoch, Named: a.Named, Name: a.Self.Name}, nil
}
