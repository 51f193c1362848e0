package paxos_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/parleymq/parley/replication/paxos"
)

type (
	rs      = []paxos.Result
	reasons = []paxos.Reason
)

func TestBootstrapNeedsEverybody(t *testing.T) {
	t.Parallel()
	base := listed(1, 2, 3)
	c := newCluster(t, base, members(1, 2)...)
	c.read(1, 7)
	c.run()
	same(t, "reads without broker 3", len(c.reads), 0)
	one := after(base, members(1, 2, 3), members(1, 2, 3))
	if err := c.propose(1, 8, one); err != nil {
		t.Fatal(err)
	}
	c.run()
	same(t, "epochs without broker 3", c.newest(1, 2), []uint64{0, 0})

	c.start(member(3), base)
	for range 4 { // a phase each
		c.retry(1)
		c.run()
	}
	same(t, "epochs", c.newest(1, 2, 3), []uint64{1, 1, 1})
	same(t, "outcome", c.results(8), rs{paxos.Chosen, paxos.Done})
}

func TestBootstrapReadFindsEverybody(t *testing.T) {
	t.Parallel()
	c := newCluster(t, listed(1, 2, 3), members(1, 2, 3)...)
	c.read(2, 7)
	c.run()
	if len(c.reads) != 1 || c.reads[0].Epoch != 0 || len(c.reads[0].Peers) != 3 {
		t.Fatalf("reads %+v, want epoch 0 and three peers", c.reads)
	}
	for _, x := range members(1, 2, 3) {
		if !slices.Contains(c.reads[0].Peers, x) {
			t.Errorf("peers %v lack %v", c.reads[0].Peers, x)
		}
	}
}

func TestDifferingListsAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, listed(1, 2, 3), members(1, 3)...)
	c.start(member(2), listed(1, 2, 4))
	c.read(1, 7)
	c.run()
	same(t, "reads", len(c.reads), 0)
	same(t, "refusals by broker 2", c.reasons(2), reasons{paxos.OtherHistory})
}

// established is a cluster of three at epoch 1.
func established(t *testing.T, council ...uint64) (*cluster, paxos.Entry) {
	one := after(listed(1, 2, 3), members(1, 2, 3), members(council...))
	return newCluster(t, one, members(1, 2, 3)...), one
}

func TestWipedDiskIsRefused(t *testing.T) {
	t.Parallel()
	base := listed(1, 2, 3)
	c := newCluster(t, base, members(1, 2, 3)...)
	if err := c.propose(1, 1, after(base, members(1, 2, 3), members(1, 2, 3))); err != nil {
		t.Fatal(err)
	}
	c.run()
	wiped := paxos.Member{ID: 2, Incarnation: "another"}
	c.start(wiped, base)
	c.read(2, 7)
	c.run()
	same(t, "newest of the wiped broker", c.newest(2), []uint64{0})
	same(t, "refusals by the wiped broker", c.reasons(2), reasons{paxos.Wiped})
	same(t, "refusals by broker 1", c.reasons(1), reasons{paxos.Established})
	same(t, "reads", len(c.reads), 0)
}

func TestOtherClusterIsRefused(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2, 3)
	c.start(member(3), entry(paxos.Facts{Cluster: "other", Epoch: 1, Previous: one.Previous, Members: members(1, 2, 3), Council: members(1, 2, 3)}))
	if err := c.propose(1, 1, after(one, members(1, 2, 3), members(1, 2, 3))); err != nil {
		t.Fatal(err)
	}
	c.run()
	same(t, "refusals", c.reasons(3), reasons{paxos.OtherCluster})
	same(t, "epochs", c.newest(1, 2, 3), []uint64{2, 2, 1})
}

func TestStaleProposerIsTold(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2, 3)
	first, second := after(one, members(1, 2, 3), members(1, 2)), after(one, members(1, 2, 3), members(1, 3))
	c.lose = func(m paxos.Message) bool { return m.To.ID == 3 && m.From.ID != 3 }
	if err := c.propose(1, 1, first); err != nil {
		t.Fatal(err)
	}
	c.run()
	same(t, "epochs", c.newest(1, 2, 3), []uint64{2, 2, 1})
	c.lose = nil
	if err := c.propose(3, 2, second); err != nil {
		t.Fatal(err)
	}
	c.retry(3)
	c.run()
	same(t, "outcome of the first", c.results(1), rs{paxos.Chosen, paxos.Done})
	same(t, "outcome of the second", c.results(2), rs{paxos.Lost})
	same(t, "newest", c.machines[3].Newest().Hash, first.Hash)
	if err := c.propose(3, 3, second); !errors.Is(err, paxos.ErrStaleBase) {
		t.Errorf("on an old base: %v", err)
	}
}

func TestNotNamedMayNotPropose(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2, 3)
	c.start(member(4), one)
	next := after(one, members(1, 2, 3, 4), members(1, 2, 3))
	if err := c.propose(4, 1, next); !errors.Is(err, paxos.ErrNotNamed) {
		t.Errorf("broker 4: %v", err)
	}
	in := paxos.Message{Kind: paxos.Prepare, From: member(4), To: member(1), Cluster: "c", Epoch: 2, Previous: one.Hash, Ballot: paxos.Ballot{Round: 1, Incarnation: "i4", Boot: 1}}
	fx := c.machines[1].Step(in)
	if len(fx.Persist) != 0 || len(fx.Refused) != 1 || fx.Refused[0].Reason != paxos.NotNamed {
		t.Errorf("a stranger's Prepare: %+v", fx)
	}
	in.From = member(2) // with a ballot that isn't its own
	if fx := c.machines[1].Step(in); len(fx.Persist) != 0 || len(fx.Refused) != 1 || fx.Refused[0].Reason != paxos.NotNamed {
		t.Errorf("a borrowed ballot: %+v", fx)
	}
}

func TestInvalidValuesAreRefused(t *testing.T) {
	t.Parallel()
	all := members(1, 2, 3, 4, 5)
	one := after(listed(1, 2, 3, 4, 5), all, members(1, 2, 3))
	ok := paxos.Facts{Cluster: "c", Epoch: 2, Previous: one.Hash, Members: all, Council: members(1, 2, 3)}
	for name, change := range map[string]func(*paxos.Facts){
		"two join the council":    func(f *paxos.Facts) { f.Council = all },
		"two leave the council":   func(f *paxos.Facts) { f.Council = members(1) },
		"two change":              func(f *paxos.Facts) { f.Council = members(1, 4, 5) },
		"no council":              func(f *paxos.Facts) { f.Council = nil },
		"a councillor twice":      func(f *paxos.Facts) { f.Council = members(1, 2, 2) },
		"a councillor unnamed":    func(f *paxos.Facts) { f.Members = members(1, 2, 4) },
		"a broker twice":          func(f *paxos.Facts) { f.Members = members(1, 2, 3, 3) },
		"a broker without a disk": func(f *paxos.Facts) { f.Members = append(members(1, 2, 3), paxos.Member{ID: 4}) },
		"another cluster":         func(f *paxos.Facts) { f.Cluster = "d" },
		"no cluster":              func(f *paxos.Facts) { f.Cluster = "" },
		"another epoch":           func(f *paxos.Facts) { f.Epoch = 3 },
		"another chain":           func(f *paxos.Facts) { f.Previous = paxos.Hash{1} },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, one, members(1, 2, 3)...)
			f := ok
			change(&f)
			v := entry(f).Value
			if _, err := c.machines[1].Propose(1, 1, v); !errors.Is(err, paxos.ErrInvalidValue) {
				t.Errorf("proposer: %v", err)
			}
			b := paxos.Ballot{Round: 1, Incarnation: "i1", Boot: 1}
			fx := c.machines[2].Step(paxos.Message{Kind: paxos.Accept, From: member(1), To: member(2), Cluster: "c", Epoch: 2, Previous: one.Hash, Ballot: b, Value: v})
			if len(fx.Persist) != 0 || len(fx.Refused) != 1 || fx.Refused[0].Reason != paxos.InvalidValue {
				t.Errorf("acceptor: %+v", fx)
			}
		})
	}
	c := newCluster(t, one, members(1, 2, 3)...)
	for _, v := range [][]byte{nil, []byte("{"), make([]byte, paxos.MaxValue+1)} {
		if _, err := c.machines[1].Propose(1, 1, v); !errors.Is(err, paxos.ErrInvalidValue) {
			t.Errorf("a value of %d bytes: %v", len(v), err)
		}
	}
	for name, f := range map[string]paxos.Facts{
		"seat changes hands": {Council: members(1, 2, 4)}, "one joins": {Council: members(1, 2, 3, 4)}, "one leaves": {Council: members(1, 2)},
	} {
		c := newCluster(t, one, all...)
		if err := c.propose(1, 1, after(one, all, f.Council)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.run()
		same(t, name, c.results(1), rs{paxos.Chosen, paxos.Done})
		same(t, name, c.newest(1, 2, 3, 4, 5), []uint64{2, 2, 2, 2, 2})
	}
}

// Nothing is told before it is on disk.
func TestRecordsComeWithTheMessagesThatNeedThem(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2, 3)
	m := c.machines[2]
	in := paxos.Message{From: member(1), To: member(2), Cluster: "c", Epoch: 2, Previous: one.Hash, Ballot: paxos.Ballot{Round: 1, Incarnation: "i1", Boot: 1}}
	two := after(one, members(1, 2, 3), members(1, 2, 3))
	for _, step := range []struct {
		kind, answer paxos.Kind
		record       paxos.RecordKind
	}{
		{paxos.Prepare, paxos.Promise, paxos.RecordPromised},
		{paxos.Accept, paxos.Accepts, paxos.RecordAccepted},
		{paxos.Decided, paxos.LearnAck, paxos.RecordDecided},
	} {
		in := in
		in.Kind = step.kind
		switch step.kind {
		case paxos.Accept:
			in.Value = two.Value
		case paxos.Decided:
			in.Entries = []paxos.Entry{two}
		}
		fx := m.Step(in)
		if len(fx.Persist) != 1 || fx.Persist[0].Kind != step.record {
			t.Errorf("%v persists %v", step.kind, fx.Persist)
		}
		if !slices.ContainsFunc(fx.Send, func(m paxos.Message) bool { return m.Kind == step.answer && m.To == member(1) }) {
			t.Errorf("%v sends %v", step.kind, fx.Send)
		}
		again := m.Step(in) // repeated: the same answer, nothing new to persist
		if len(again.Persist) != 0 || len(again.Send)+len(again.Serve) == 0 {
			t.Errorf("%v again: %+v", step.kind, again)
		}
	}
}

func TestDoneNeedsBothCouncils(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2)
	two := after(one, members(1, 2, 3), members(1, 3))
	c.lose = func(m paxos.Message) bool { return m.Kind == paxos.Decided && m.Epoch == 2 && m.To.ID == 2 }
	if err := c.propose(1, 1, two); err != nil {
		t.Fatal(err)
	}
	c.run()
	same(t, "while broker 2 doesn't know", c.results(1), rs{paxos.Chosen})
	c.lose = nil
	c.retry(1)
	c.run()
	same(t, "in the end", c.results(1), rs{paxos.Chosen, paxos.Done})
}

func TestCatchUpPastForgottenValues(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2, 3)
	chain := []paxos.Entry{one}
	for range 5 {
		chain = append(chain, after(chain[len(chain)-1], members(1, 2, 3), members(1, 2, 3)))
	}
	headers := slices.Clone(chain[1:])
	for i := range headers[:4] {
		headers[i].Value, headers[i].Summary = nil, []byte("kept")
	}
	m := c.machines[3]
	in := paxos.Message{Kind: paxos.Decided, From: member(1), To: member(3), Cluster: "c", Epoch: 2, Previous: one.Hash, Entries: headers[:4]}
	if fx := m.Step(in); len(fx.Learned) != 0 || fx.Refused[0].Reason != paxos.Malformed {
		t.Errorf("entries that end without a value: %+v", fx)
	}
	broken := slices.Clone(headers)
	broken[2].Previous = paxos.Hash{9}
	in.Entries = broken
	if fx := m.Step(in); len(fx.Learned) != 0 || fx.Refused[0].Reason != paxos.OtherHistory {
		t.Errorf("a broken chain: %+v", fx)
	}
	in.Entries = headers[1:]
	if fx := m.Step(in); len(fx.Learned) != 0 || len(fx.Send) == 0 || fx.Send[0].Kind != paxos.Fetch || fx.Send[0].Epoch != 2 {
		t.Errorf("a gap: %+v", fx)
	}
	in.Entries = headers
	fx := m.Step(in)
	if len(fx.Learned) != 5 || len(fx.Persist) != 1 || m.Newest().Epoch != 6 {
		t.Errorf("learned %v with %d records", fx.Learned, len(fx.Persist))
	}
	s := paxos.State{Newest: one}
	if err := s.Apply(fx.Persist[0]); err != nil || s.Newest.Epoch != 6 {
		t.Errorf("recovered %v, %v", s.Newest, err)
	}
	other := after(chain[4], members(1, 2, 3), members(1, 2))
	in.Entries, in.Epoch = []paxos.Entry{other}, 6
	if fx := m.Step(in); len(fx.Refused) != 1 || fx.Refused[0].Reason != paxos.Contradiction {
		t.Errorf("another value for the newest epoch: %+v", fx)
	}
}

// A read that begins while a round is under way must not take that round's answers.
func TestReadJoinsTheNextRound(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2, 3)
	c.read(3, 1)
	asked := c.net
	c.net = nil
	var answers []paxos.Message
	for _, in := range asked {
		answers = append(answers, c.machines[in.To.ID].Step(in).Send...)
	}
	c.lose = func(m paxos.Message) bool { return m.To.ID == 3 }
	if err := c.propose(1, 2, after(one, members(1, 2, 3), members(1, 2, 3))); err != nil {
		t.Fatal(err)
	}
	c.run()
	same(t, "epoch 2", c.results(2), rs{paxos.Chosen, paxos.Done})
	c.lose = nil
	c.read(3, 3)
	c.net = append(answers, c.net...)
	c.run()
	got := map[uint64]uint64{}
	for _, r := range c.reads {
		got[r.Ticket] = r.Epoch
	}
	same(t, "reads", got, map[uint64]uint64{1: 1, 3: 2})
}

func TestReadFinishesWhatIsHalfDone(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2, 3)
	two := after(one, members(1, 2, 3), members(1, 2, 3))
	c.lose = func(m paxos.Message) bool { return m.Kind == paxos.Accept && m.To.ID != 2 }
	if err := c.propose(1, 1, two); err != nil {
		t.Fatal(err)
	}
	c.run()
	same(t, "epochs", c.newest(1, 2, 3), []uint64{1, 1, 1})
	c.lose = func(m paxos.Message) bool { return m.To.ID == 1 }
	c.read(3, 2)
	c.run()
	if len(c.reads) != 1 || c.reads[0].Epoch != 2 || c.machines[3].Newest().Hash != two.Hash {
		t.Errorf("reads %v, newest %v", c.reads, c.machines[3].Newest())
	}
}

func TestAbandonedProposalMakesRoom(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2, 3)
	two, other := after(one, members(1, 2, 3), members(1, 2, 3)), after(one, members(1, 2, 3), members(1, 2))
	if err := c.propose(1, 1, two); err != nil {
		t.Fatal(err)
	}
	if err := c.propose(1, 2, other); !errors.Is(err, paxos.ErrBusy) {
		t.Errorf("a second proposal: %v", err)
	}
	c.net = nil
	c.take(1, c.machines[1].Abandon(1))
	if err := c.propose(1, 2, other); err != nil {
		t.Fatal(err)
	}
	c.retry(1)
	c.run()
	same(t, "outcomes", [][]paxos.Result{c.results(1), c.results(2)}, [][]paxos.Result{nil, {paxos.Chosen, paxos.Done}})
}

// What a peer sends can be refused, but does no harm.
func TestGarbageIsRefused(t *testing.T) {
	t.Parallel()
	c, one := established(t, 1, 2, 3)
	m := c.machines[1]
	if err := c.propose(1, 1, after(one, members(1, 2, 3), members(1, 2, 3))); err != nil {
		t.Fatal(err)
	}
	c.run()
	one = m.Newest()
	fx, err := m.Propose(2, 2, after(one, members(1, 2, 3), members(1, 2)).Value)
	if err != nil {
		t.Fatal(err)
	}
	ballot := fx.Send[0].Ballot
	good := paxos.Message{From: member(2), To: member(1), Cluster: "c", Epoch: 3, Previous: one.Hash, Ballot: ballot}
	for name, change := range map[string]func(*paxos.Message){
		"a vote for garbage": func(in *paxos.Message) {
			in.Kind, in.Accepted = paxos.Promise, paxos.Accepted{Ballot: paxos.Ballot{Round: 1}, Value: []byte("x")}
		},
		"an unknown kind":      func(in *paxos.Message) { in.Kind = 99 },
		"no kind":              func(in *paxos.Message) { in.Kind = 0 },
		"no incarnation":       func(in *paxos.Message) { in.Kind, in.From.Incarnation = paxos.Promise, "" },
		"epoch 0":              func(in *paxos.Message) { in.Kind, in.Epoch = paxos.Prepare, 0 },
		"a ballot without end": func(in *paxos.Message) { in.Kind, in.Ballot.Round = paxos.Prepare, paxos.MaxRound+1 },
		"another receiver":     func(in *paxos.Message) { in.Kind, in.To = paxos.Promise, member(3) },
		"an old incarnation":   func(in *paxos.Message) { in.Kind, in.To.Incarnation = paxos.Promise, "old" },
		"no cluster":           func(in *paxos.Message) { in.Kind, in.Cluster = paxos.Promise, "" },
		"a decided nothing": func(in *paxos.Message) {
			in.Kind, in.Entries = paxos.Decided, []paxos.Entry{{Epoch: 3, Previous: one.Hash, Value: []byte("x")}}
		},
	} {
		in := good
		change(&in)
		fx := m.Step(in)
		if len(fx.Refused) != 1 || len(fx.Persist)+len(fx.Learned) != 0 {
			t.Errorf("%s: %+v", name, fx)
		}
	}
	same(t, "newest", m.Newest().Epoch, uint64(2))
}

func TestDamagedStateIsRefused(t *testing.T) {
	t.Parallel()
	one := after(listed(1), members(1), members(1))
	two, three := after(one, members(1), members(1)), paxos.Entry{Epoch: 3}
	b := paxos.Ballot{Round: 2, Incarnation: "i1", Boot: 1}
	lower := paxos.Ballot{Round: 1, Incarnation: "i1", Boot: 1}
	for name, records := range map[string][]paxos.Record{
		"a promise for a later epoch": {{Kind: paxos.RecordPromised, Epoch: 3, Ballot: b}},
		"a promise that falls":        {{Kind: paxos.RecordPromised, Epoch: 2, Ballot: b}, {Kind: paxos.RecordPromised, Epoch: 2, Ballot: lower}},
		"a vote below a promise":      {{Kind: paxos.RecordPromised, Epoch: 2, Ballot: b}, {Kind: paxos.RecordAccepted, Epoch: 2, Ballot: lower, Value: two.Value}},
		"a gap":                       {{Kind: paxos.RecordDecided, Entries: []paxos.Entry{three}}},
		"no value":                    {{Kind: paxos.RecordDecided, Entries: []paxos.Entry{{Epoch: 2, Hash: two.Hash, Previous: one.Hash}}}},
		"nothing decided":             {{Kind: paxos.RecordDecided}},
		"an unknown record":           {{Kind: 9}},
	} {
		s := paxos.State{Newest: one}
		var err error
		for _, r := range records {
			if err = s.Apply(r); err != nil {
				break
			}
		}
		if !errors.Is(err, paxos.ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, e := range map[string]paxos.Entry{
		"no value":     {Epoch: 1},
		"another hash": {Epoch: 1, Hash: paxos.Hash{1}, Previous: one.Previous, Value: one.Value},
	} {
		if _, err := paxos.New(paxos.Options{Self: member(1), Boot: 1, Decode: decode, State: paxos.State{Newest: e}}); !errors.Is(err, paxos.ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoneBroker(t *testing.T) {
	t.Parallel()
	base := entry(paxos.Facts{Members: members(1), Council: members(1)})
	c := newCluster(t, base, member(1))
	for i := range uint64(3) {
		if err := c.propose(1, i, after(c.machines[1].Newest(), members(1), members(1))); err != nil {
			t.Fatal(err)
		}
		c.run()
		same(t, "outcome", c.results(i), rs{paxos.Chosen, paxos.Done})
	}
	same(t, "waiting", c.machines[1].Waiting(), false)
	// 3 records an epoch: promised, accepted, decided.
	same(t, "records", len(c.records[1]), 9)
	s := paxos.State{Newest: base}
	for _, r := range c.records[1] {
		if err := s.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "recovered", s.Newest, c.machines[1].Newest())
}
