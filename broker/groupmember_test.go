package broker_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// memberOf asks as an SDK's member does, by any broker.
type memberOf struct {
	t            testing.TB
	nc           *nats.Conn
	topic, group string
	id           string
	anchor       int32
}

func newMember(t testing.TB, nc *nats.Conn, topic, group, id string, partitions int32) *memberOf {
	return &memberOf{t: t, nc: nc, topic: topic, group: group, id: id, anchor: record.PartitionOf([]byte(group), partitions)}
}

func (m *memberOf) ask(prefix string, partition int32, q, res any) error {
	return brokertest.Call(m.nc, fmt.Sprintf("%s%s.%d", prefix, m.topic, partition), q, res)
}

// again repeats what a failover refused.
func (m *memberOf) again(what string, f func() error) {
	m.t.Helper()
	brokertest.Eventually(m.t, what, func() bool {
		err := f()
		var e *wire.Error
		if err == nil {
			return true
		}
		if !errors.As(err, &e) || !e.Retriable {
			m.t.Fatalf("%s: %v", what, err)
		}
		return false
	})
}

func (m *memberOf) join(o wire.GroupOptions) (a wire.GroupAssignment) {
	m.t.Helper()
	m.again("join", func() error {
		return m.ask(wire.GroupJoin, m.anchor, wire.GroupJoinRequest{Group: m.group, Member: m.id, Name: "name of " + m.id, Host: "h", Version: "1", Options: o}, &a)
	})
	return a
}

func (m *memberOf) lease(partition int32, a wire.GroupAssignment, wait time.Duration) (l wire.GroupLeased, err error) {
	q := wire.GroupLeaseRequest{Group: m.group, Member: m.id, Generation: a.Generation, WaitMS: wait.Milliseconds(), Options: a.Options}
	brokertest.Eventually(m.t, "the partition has a leader", func() bool {
		l = wire.GroupLeased{}
		err = m.ask(wire.GroupLease, partition, q, &l)
		var e *wire.Error
		return !errors.As(err, &e) || e.Reason != wire.ReasonNotLeader
	})
	return l, err
}

func (m *memberOf) commit(partition int32, token uint64, offset int64, release bool) error {
	return m.ask(wire.GroupCommit, partition, wire.GroupCommitRequest{Group: m.group, Member: m.id, Token: token, Offset: offset, Release: release}, nil)
}

// TestExclusiveGroupOverBrokers: members that are connected to different brokers share a
// topic; a partition moves from one to the other once it was given up, and commits under the
// old token are refused.
func TestExclusiveGroupOverBrokers(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "orders", 4)
	one := newMember(t, c.Brokers[0].Connect(), "orders", "g", "m1", 4)
	two := newMember(t, c.Brokers[1].Connect(), "orders", "g", "m2", 4)
	for n := range int32(4) {
		publishAll(t, one.nc, "orders", n, "a", "b", "c")
	}
	a := one.join(wire.GroupOptions{SessionMS: 20_000})
	if len(a.Partitions) != 4 || a.Options.Mode != wire.ModeExclusive || a.Options.SessionMS != 20_000 || a.Options.From != "earliest" {
		t.Fatalf("assignment %+v", a)
	}
	tokens := map[int32]uint64{}
	for _, n := range a.Partitions {
		l, err := one.lease(n, a, time.Second)
		if err != nil || l.Token == 0 || l.Next != 0 {
			t.Fatalf("lease of %d: %+v, %v", n, l, err)
		}
		tokens[n] = l.Token
		if err := one.commit(n, l.Token, 2, false); err != nil {
			t.Fatalf("commit on %d: %v", n, err)
		}
	}
	// The first member hears of the second one while it waits.
	heard := make(chan wire.GroupAssignment, 1)
	go func() {
		var s wire.GroupAssignment
		if err := one.ask(wire.GroupSync, one.anchor, wire.GroupSyncRequest{Group: "g", Member: "m1", Generation: a.Generation, WaitMS: 6000}, &s); err != nil {
			t.Errorf("sync: %v", err)
		}
		heard <- s
	}()
	b := two.join(wire.GroupOptions{})
	s := <-heard
	if len(b.Partitions) != 2 || len(s.Partitions) != 2 || s.Generation != b.Generation {
		t.Fatalf("second %+v, first %+v", b, s)
	}
	n := b.Partitions[0]
	granted := make(chan wire.GroupLeased, 1)
	go func() {
		l, err := two.lease(n, b, 10*time.Second)
		if err != nil {
			t.Errorf("lease of the second member: %v", err)
		}
		granted <- l
	}()
	brokertest.Eventually(t, "the first member hears that its partition is wanted", func() bool {
		var done wire.GroupCommitted
		if err := one.ask(wire.GroupCommit, n, wire.GroupCommitRequest{Group: "g", Member: "m1", Token: tokens[n], Offset: 2}, &done); err != nil {
			t.Fatal(err)
		}
		return done.Wanted
	})
	if err := one.commit(n, tokens[n], 3, true); err != nil {
		t.Fatal(err)
	}
	l := <-granted
	if l.Next != 3 || l.Token <= tokens[n] {
		t.Errorf("granted %+v after token %d", l, tokens[n])
	}
	var e *wire.Error
	if err := one.commit(n, tokens[n], 3, false); !errors.As(err, &e) || e.Reason != wire.ReasonLeaseLost {
		t.Errorf("commit under the old token: %v", err)
	}
	d, err := c.Brokers[2].API().GroupDescribe(t.Context(), wire.GroupRequest{Topic: "orders", Group: "g"})
	if err != nil || len(d.Members) != 2 || d.Partitions[n].Member != "name of m2" || d.Partitions[n].Committed != 3 || d.Lag != 3 {
		t.Errorf("%+v, %v", d, err)
	}
	// With other options a third one is turned away.
	three := newMember(t, two.nc, "orders", "g", "m3", 4)
	if err := three.ask(wire.GroupJoin, three.anchor, wire.GroupJoinRequest{Group: "g", Member: "m3", Options: wire.GroupOptions{Mode: wire.ModeShared}}, nil); !errors.As(err, &e) || e.Reason != wire.ReasonGroupMismatch {
		t.Errorf("join with another mode: %v", err)
	}
}

// pull asks for records of a shared group.
func (m *memberOf) pull(partition int32, q wire.GroupPullRequest) (head wire.GroupPulled, batches []byte, err error) {
	q.Group, q.Member = m.group, m.id
	body, err := json.Marshal(q)
	if err != nil {
		return head, nil, err
	}
	answer, err := m.nc.Request(fmt.Sprintf("%s%s.%d", wire.GroupPull, m.topic, partition), body, brokertest.Wait)
	if err != nil {
		return head, nil, err
	}
	if answer.Header.Get(wire.HeaderError) != "" {
		return head, nil, brokertest.Decode(answer.Data, nil)
	}
	n := binary.BigEndian.Uint32(answer.Data)
	return head, answer.Data[4+n:], json.Unmarshal(answer.Data[4:4+n], &head)
}

// TestSharedGroupOverBrokers: PULL and ACK of the SDK, over a hop and without.
func TestSharedGroupOverBrokers(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "jobs", 1)
	options := wire.GroupOptions{Mode: wire.ModeShared, AckWaitMS: 600_000}
	next := int64(0)
	for i, b := range c.Brokers {
		m := newMember(t, b.Connect(), "jobs", "g", fmt.Sprintf("m%d", i), 1)
		got := make(chan error, 1)
		go func() { // waits without records
			head, batches, err := m.pull(0, wire.GroupPullRequest{WaitMS: 10_000, Options: options})
			switch {
			case err != nil:
			case len(head.Deliveries) != 1 || head.Deliveries[0].First != next || len(batches) == 0:
				err = fmt.Errorf("waited for %d, got %+v with %d bytes", next, head, len(batches))
			default:
				d := head.Deliveries[0]
				err = m.ask(wire.GroupAck, 0, wire.GroupAckRequest{Group: "g", Member: m.id, Items: []wire.GroupAckItem{{Kind: wire.AckDone, First: d.First, Last: d.Last, Token: d.Token}}}, nil)
			}
			got <- err
		}()
		publishAll(t, m.nc, "jobs", 0, "v")
		if err := <-got; err != nil {
			t.Fatalf("%s: %v", b.Name, err)
		}
		publishAll(t, m.nc, "jobs", 0, "v", "v", "v")
		head, batches, err := m.pull(0, wire.GroupPullRequest{MaxMessages: 2, Options: options})
		if err != nil || len(head.Deliveries) != 1 || head.Deliveries[0].First != next+1 || head.Deliveries[0].Last != next+2 {
			t.Fatalf("%s: %+v, %v", b.Name, head, err)
		}
		records := 0
		for len(batches) > 0 {
			b, rest, err := record.Split(batches)
			if err != nil {
				t.Fatal(err)
			}
			all, err := brokertest.Records(b)
			if err != nil {
				t.Fatal(err)
			}
			records, batches = records+len(all), rest
		}
		if records < 2 {
			t.Errorf("%d records in the batches", records)
		}
		token := head.Deliveries[0].Token
		head, _, err = m.pull(0, wire.GroupPullRequest{MaxMessages: 2, Options: options})
		if err != nil || len(head.Deliveries) != 1 || head.Deliveries[0].First != next+3 {
			t.Fatalf("%s: %+v, %v", b.Name, head, err)
		}
		var acked wire.GroupAcked
		if err := m.ask(wire.GroupAck, 0, wire.GroupAckRequest{Group: "g", Member: m.id, Items: []wire.GroupAckItem{
			{Kind: wire.AckDone, First: next + 1, Last: next + 3, Token: token}, {Kind: wire.AckDone, First: next + 40, Last: next + 40, Token: token},
		}}, &acked); err != nil || len(acked.Refused) != 1 || acked.Refused[0].Item != 1 || acked.Refused[0].Reason != wire.ReasonNotDelivered {
			t.Fatalf("%+v, %v", acked, err)
		}
		next += 4
		// Nothing is there: that is an answer, too; and a wait ends when its member has enough.
		if head, batches, err := m.pull(0, wire.GroupPullRequest{Options: options}); err != nil || len(head.Deliveries) != 0 || len(batches) != 0 {
			t.Fatalf("%+v, %v", head, err)
		}
		go func() {
			head, _, err := m.pull(0, wire.GroupPullRequest{WaitMS: 30_000, Options: options})
			if err == nil && len(head.Deliveries) != 0 {
				err = fmt.Errorf("%+v", head)
			}
			got <- err
		}()
		brokertest.Eventually(t, "the wait ends", func() bool {
			if _, _, err := m.pull(0, wire.GroupPullRequest{Stop: true, Options: options}); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-got:
				if err != nil {
					t.Fatal(err)
				}
				return true
			default:
				return false
			}
		})
	}
}

// TestGroupChangesByAPI: list, describe, reset and delete ask all leaders, and say what is
// missing when one is away.
func TestGroupChangesByAPI(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "jobs", 3)
	c.Running()[0].CreateTopic(wire.TopicSpec{Name: "single", Partitions: 3, Replicas: 1})
	nc := c.Brokers[0].Connect()
	for n := range int32(3) {
		publishAll(t, nc, "jobs", n, "a", "b")
		publishAll(t, nc, "single", n, "a", "b")
	}
	take := func(topic string, want int) {
		t.Helper()
		for range want {
			mustSettle(t, nc, one(t, nc, topic, "g", wire.NextRequest{ExpiresMS: 5000}), "")
		}
	}
	take("jobs", 6)
	take("single", 6)
	var list wire.GroupList
	if err := brokertest.Call(nc, wire.APIGroupList, wire.GroupListRequest{}, &list); err != nil || len(list.Groups) != 2 || list.Groups[0].Topic != "jobs" ||
		list.Groups[0].Lag != 0 || list.Groups[0].Mode != wire.ModeShared || len(list.Problems) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	var change wire.GroupChange
	if err := brokertest.Call(nc, wire.APIGroupReset, wire.GroupResetRequest{Topic: "jobs", Group: "g", To: "earliest"}, &change); err != nil || change.Detail != "3 partitions to earliest" {
		t.Fatalf("%+v, %v", change, err)
	}
	take("jobs", 6)
	part := int32(1)
	if err := brokertest.Call(nc, wire.APIGroupReset, wire.GroupResetRequest{Topic: "jobs", Group: "g", To: "1", Partition: &part}, &change); err != nil {
		t.Fatal(err)
	}
	if m := one(t, nc, "jobs", "g", wire.NextRequest{ExpiresMS: 5000}); m.Header.Get(wire.HeaderOffset) != "1" || m.Header.Get(wire.HeaderPart) != "1" {
		t.Errorf("after the reset: %+v", m.Header)
	}
	// One broker is gone. What it alone had is not to be asked for.
	c.Brokers[2].Stop()
	brokertest.Eventually(t, "the others lead", func() bool {
		for _, p := range c.Describe("jobs").Partitions {
			if p.Leader == "" || p.Leader == "b3" {
				return false
			}
		}
		return true
	})
	var e *wire.Error
	err := brokertest.Call(nc, wire.APIGroupDelete, wire.GroupRequest{Topic: "single", Group: "g"}, &change)
	if !errors.As(err, &e) || !e.Retriable || !strings.Contains(e.Description, "2 of 3 partitions") {
		t.Errorf("delete with a broker away: %v", err)
	}
	if err := brokertest.Call(nc, wire.APIGroupList, wire.GroupListRequest{Topic: "single"}, &list); err != nil || len(list.Problems) != 1 {
		t.Errorf("list with a broker away: %+v, %v", list, err)
	}
	if err := brokertest.Call(nc, wire.APIGroupDelete, wire.GroupRequest{Topic: "jobs", Group: "g"}, &change); err != nil || change.Change != "deleted" {
		t.Errorf("delete: %+v, %v", change, err)
	}
	if err := brokertest.Call(nc, wire.APIGroupDescribe, wire.GroupRequest{Topic: "jobs", Group: "g"}, nil); !errors.As(err, &e) || e.Reason != wire.ReasonGroupNotFound {
		t.Errorf("describe after delete: %v", err)
	}
}

// TestTopicGoesUnderAGroup: whoever waits for records, a lease or the next generation of a
// topic that is deleted is told that, and not to try again.
func TestTopicGoesUnderAGroup(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "jobs", 3)
	createR3(t, c, "orders", 3)
	nc := c.Brokers[0].Connect()
	m := newMember(t, nc, "orders", "g", "m1", 3)
	a := m.join(wire.GroupOptions{SessionMS: 60_000})
	shared := newMember(t, nc, "jobs", "g", "m1", 3)
	told := make(chan error, 5)
	// Leadership may be on its way to where it belongs: who is told to try again does.
	wait := func(ask func() error) {
		for {
			err := ask()
			var e *wire.Error
			if !errors.As(err, &e) || !e.Retriable {
				told <- err
				return
			}
		}
	}
	go wait(func() error {
		return m.ask(wire.GroupSync, m.anchor, wire.GroupSyncRequest{Group: "g", Member: "m1", Generation: a.Generation, WaitMS: 15_000}, nil)
	})
	for n := range int32(3) {
		go wait(func() error {
			_, _, err := shared.pull(n, wire.GroupPullRequest{WaitMS: 15_000, Options: wire.GroupOptions{Mode: wire.ModeShared}})
			return err
		})
	}
	go wait(func() error {
		_, _, err := next(nc, "jobs", "plain", wire.NextRequest{ExpiresMS: 15_000})
		return err
	})
	brokertest.Eventually(t, "all wait", func() bool {
		l, err := c.Brokers[0].API().GroupList(t.Context(), wire.GroupListRequest{})
		return err == nil && len(l.Groups) == 3
	})
	start := time.Now()
	for _, topic := range []string{"jobs", "orders"} {
		if _, err := c.Brokers[1].API().TopicDelete(t.Context(), wire.NameRequest{Name: topic}); err != nil {
			t.Fatal(err)
		}
	}
	for range cap(told) {
		var e *wire.Error
		if err := <-told; !errors.As(err, &e) || e.Reason != wire.ReasonTopicNotFound || e.Retriable {
			t.Errorf("told %v", err)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("told after %v", took)
	}
}

// A group that somebody has joined and nobody has read with is not through: all that there is is before it.
func TestJoinedGroupHasItsLag(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "jobs", Partitions: 1})
	nc := b.Connect()
	publishAll(t, nc, "jobs", 0, "a", "b", "c")
	m := newMember(t, nc, "jobs", "g", "m", 1)
	a := m.join(wire.GroupOptions{Mode: wire.ModeExclusive})
	describe := func() wire.GroupDescription {
		d, err := b.API().GroupDescribe(t.Context(), wire.GroupRequest{Topic: "jobs", Group: "g"})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := describe(); d.Lag != 3 || d.Partitions[0].Committed != -1 {
		t.Errorf("joined: %+v", d)
	}
	l, err := m.lease(0, a, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.commit(0, l.Token, 2, false); err != nil {
		t.Fatal(err)
	}
	if d := describe(); d.Lag != 1 || d.Partitions[0].Committed != 2 {
		t.Errorf("committed: %+v", d)
	}
}
