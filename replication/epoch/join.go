package epoch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

type joinRequest struct {
	Self config.Broker `json:"self"`
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
	req, err := json.Marshal(joinRequest{o.Self})
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
	next, err := c.Admit(ctx, q.Self)
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

// Admit has an epoch decided that names a new broker. Its id is a new one. A name that
// a broker has already passes to the newcomer only when the old one is not live and
// holds nothing: its disk was wiped before it held anything, or its replicas were
// given to others.
func (c *Cluster) Admit(ctx context.Context, b config.Broker) (*config.Config, error) {
	if b.Incarnation == "" || b.Name == "" {
		return nil, refusal("a broker needs a name and an incarnation")
	}
	next, err := c.Propose(ctx, func(next *config.Config) error {
		for i := range next.Brokers {
			if next.Brokers[i].Incarnation == b.Incarnation {
				return ErrUnchanged
			}
		}
		if old := next.BrokerNamed(b.Name); old != nil {
			if err := c.replaceable(next, old); err != nil {
				return err
			}
			next.Change = fmt.Sprintf("broker %s joined in place of an emptied one", b.Name)
			c.replace(next, old, b)
			return nil
		}
		b.ID, b.State, b.Weight = next.TakeBroker(), config.Active, max(b.Weight, 1)
		next.Brokers = append(next.Brokers, b)
		next.Change = fmt.Sprintf("broker %s joined", b.Name)
		return nil
	})
	if errors.Is(err, ErrUnchanged) {
		return next, nil
	}
	return next, err
}

func (c *Cluster) replaceable(cur *config.Config, old *config.Broker) error {
	held := 0
	for i := range cur.Topics {
		for n := range cur.Topics[i].Partitions {
			if _, on := cur.Topics[i].Partitions[n].On(old.ID); on {
				held++
			}
		}
	}
	switch {
	case old.State != config.Dead && (old.ID == c.self.ID || c.o.Alive(old.ID)):
		return refusal(fmt.Sprintf("a broker named %s is in the cluster and live (id %d, %s): give another name", old.Name, old.ID, old.Addresses.Peer))
	case held > 0:
		return refusal(fmt.Sprintf("broker %s (id %d) still holds %d replicas: remove it first, or give another name", old.Name, old.ID, held))
	}
	return nil
}

// replace puts a newcomer in an old broker's place. The old one's seat on the council goes
// to nobody yet, unless it is the only one.
func (c *Cluster) replace(next *config.Config, old *config.Broker, b config.Broker) {
	gone := old.ID
	b.ID, b.State, b.Weight = next.TakeBroker(), config.Active, max(b.Weight, 1)
	var brokers []config.Broker
	for _, x := range next.Brokers {
		if x.ID != gone {
			brokers = append(brokers, x)
		}
	}
	next.Brokers = append(brokers, b)
	var council []uint64
	for _, id := range next.Council {
		if id != gone {
			council = append(council, id)
		}
	}
	next.Council = council
}
