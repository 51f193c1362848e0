package paxos_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/parleymq/parley/replication/paxos"
)

// decode reads the values of these tests: facts as JSON.
func decode(v []byte) (paxos.Facts, error) {
	var f paxos.Facts
	if err := json.Unmarshal(v, &f); err != nil {
		return f, err
	}
	f.Hash = sha256.Sum256(v)
	return f, nil
}

func entry(f paxos.Facts) paxos.Entry {
	v, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	return paxos.Entry{Epoch: f.Epoch, Hash: sha256.Sum256(v), Previous: f.Previous, Value: v}
}

func member(id uint64) paxos.Member { return paxos.Member{ID: id, Incarnation: fmt.Sprintf("i%d", id)} }

func members(ids ...uint64) (all []paxos.Member) {
	for _, id := range ids {
		all = append(all, member(id))
	}
	return all
}

// listed is an epoch 0 that knows ids and no incarnations.
func listed(ids ...uint64) paxos.Entry {
	var all []paxos.Member
	for _, id := range ids {
		all = append(all, paxos.Member{ID: id})
	}
	return entry(paxos.Facts{Members: all, Council: all})
}

// after is a value that follows base.
func after(base paxos.Entry, named, council []paxos.Member) paxos.Entry {
	return entry(paxos.Facts{Cluster: "c", Epoch: base.Epoch + 1, Previous: base.Hash, Members: named, Council: council})
}

// cluster delivers messages in the order in which they were sent, to those who are up.
type cluster struct {
	t         *testing.T
	machines  map[uint64]*paxos.Machine
	histories map[uint64][]paxos.Entry
	records   map[uint64][]paxos.Record
	outcomes  []paxos.Outcome
	reads     []paxos.ReadResult
	refused   []paxos.Refusal
	net       []paxos.Message
	lose      func(paxos.Message) bool
}

func newCluster(t *testing.T, base paxos.Entry, of ...paxos.Member) *cluster {
	t.Helper()
	c := &cluster{t: t, machines: map[uint64]*paxos.Machine{}, histories: map[uint64][]paxos.Entry{}, records: map[uint64][]paxos.Record{}}
	for _, x := range of {
		c.start(x, base)
	}
	return c
}

func (c *cluster) start(x paxos.Member, base paxos.Entry) {
	c.t.Helper()
	m, err := paxos.New(paxos.Options{Self: x, Boot: 1, Decode: decode, State: paxos.State{Newest: base}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.machines[x.ID], c.histories[x.ID], c.records[x.ID] = m, []paxos.Entry{base}, nil
}

func (c *cluster) take(id uint64, fx paxos.Effects) {
	c.records[id] = append(c.records[id], fx.Persist...)
	c.histories[id] = append(c.histories[id], fx.Learned...)
	c.outcomes = append(c.outcomes, fx.Outcomes...)
	c.reads = append(c.reads, fx.Reads...)
	c.refused = append(c.refused, fx.Refused...)
	c.net = append(c.net, fx.Send...)
	for _, s := range fx.Serve {
		h := c.histories[id]
		if i := slices.IndexFunc(h, func(e paxos.Entry) bool { return e.Epoch == s.From }); i >= 0 {
			c.net = append(c.net, c.machines[id].Decided(s.To, h[i:]))
		}
	}
}

func (c *cluster) run() {
	c.t.Helper()
	for n := 0; len(c.net) > 0; n++ {
		if n > 10_000 {
			c.t.Fatal("messages never end")
		}
		in := c.net[0]
		c.net = c.net[1:]
		if m := c.machines[in.To.ID]; m != nil && (c.lose == nil || !c.lose(in)) {
			c.take(in.To.ID, m.Step(in))
		}
	}
}

func (c *cluster) propose(id, ticket uint64, e paxos.Entry) error {
	fx, err := c.machines[id].Propose(ticket, e.Epoch-1, e.Value)
	c.take(id, fx)
	return err
}

func (c *cluster) read(id, ticket uint64) {
	c.t.Helper()
	fx, err := c.machines[id].Read(ticket)
	if err != nil {
		c.t.Fatal(err)
	}
	c.take(id, fx)
}

func (c *cluster) retry(id uint64) { c.take(id, c.machines[id].Retry()) }

func (c *cluster) newest(ids ...uint64) (all []uint64) {
	for _, id := range ids {
		all = append(all, c.machines[id].Newest().Epoch)
	}
	return all
}

func (c *cluster) results(ticket uint64) (all []paxos.Result) {
	for _, o := range c.outcomes {
		if o.Ticket == ticket {
			all = append(all, o.Result)
		}
	}
	return all
}

func (c *cluster) reasons(by uint64) (all []paxos.Reason) {
	for _, r := range c.refused {
		if r.By.ID == by && !slices.Contains(all, r.Reason) {
			all = append(all, r.Reason)
		}
	}
	return all
}

func same[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s: got %s, want %s", what, g, w)
	}
}
