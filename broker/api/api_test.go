package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// still is a runtime in which every partition is led by broker 1 and has ten
// records.
type still struct{ leader uint64 }

func (s still) Partitions(_ context.Context, parts []Part) []PartitionStatus {
	all := make([]PartitionStatus, len(parts))
	for i := range all {
		all[i] = PartitionStatus{Leader: s.leader, Term: 1, InSync: []uint64{1}, Next: 10}
	}
	return all
}
func (s still) Leader(uint64, int32) uint64 { return s.leader }
func (s still) Term(uint64, int32) uint64   { return 1 }
func (s still) Bounds(_ context.Context, _ uint64, _ int32, timeMS *int64) (wire.OffsetResponse, error) {
	switch {
	case s.leader == 0:
		return wire.OffsetResponse{}, &wire.Error{Code: 503, Reason: wire.ReasonNotLeader, Retriable: true}
	case timeMS != nil:
		return wire.OffsetResponse{Offset: 5, Next: 10}, nil
	}
	return wire.OffsetResponse{Offset: 10, Next: 10}, nil
}
func (still) Carried(context.Context, uint64)                        {}
func (still) Compare(context.Context, uint64, int32) (uint64, error) { return 0, nil }
func (still) Transfer(context.Context, uint64, int32, uint64) error  { return nil }
func (still) Reach(uint64) Reach                                     { return Reach{Up: true} }
func (still) Levels(context.Context) map[uint64]uint32               { return nil }
func (still) Problems() []string                                     { return nil }
func (still) Survivors(context.Context, Part) []Survivor             { return nil }

// Groups are asked about in group_test.go.
func (still) GroupParts(_ context.Context, _ string, parts []Part) []GroupPart {
	return make([]GroupPart, len(parts))
}
func (still) GroupSums(context.Context, []Part) GroupsSeen { return GroupsSeen{} }
func (still) SetGroup(_ context.Context, parts []Part, _ wire.GroupSetRequest) []error {
	return make([]error, len(parts))
}
func (still) Redrive(context.Context, wire.GroupRedriveRequest) (wire.GroupRedriven, error) {
	return wire.GroupRedriven{}, nil
}

func handlers(t testing.TB, brokers int) *Handlers {
	t.Helper()
	s, err := epoch.Open(epoch.Options{Dir: t.TempDir(), Self: config.Broker{ID: 1, Name: "b1", Incarnation: "0"}, Clock: time.Now, Genesis: func() *config.Config {
		c := &config.Config{Council: []uint64{1}, NextBroker: uint64(brokers) + 1, NextTopic: 1, NextShard: 1, NextReplica: 1}
		for i := range brokers {
			c.Brokers = append(c.Brokers, config.Broker{ID: uint64(i) + 1, Name: fmt.Sprintf("b%d", i+1), Incarnation: fmt.Sprint(i), Weight: 1})
		}
		return c
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.Propose(t.Context(), func(next *config.Config) error { next.ClusterID = "c"; return nil }); err != nil {
		t.Fatal(err)
	}
	return &Handlers{Store: s, Runtime: still{leader: 1}, Version: "test", Clock: time.Now, MaxRecord: 1 << 20, Logger: zerolog.Nop()}
}

// TestThreeBrokers: what changes once there are more brokers than one.
func TestThreeBrokers(t *testing.T) {
	t.Parallel()
	h := handlers(t, 3)
	if res, err := h.TopicCreate(t.Context(), wire.TopicSpec{Name: "t", Partitions: 6}); err != nil || res.Detail != "6 partitions, 3 replicas" {
		t.Fatalf("%+v, %v", res, err)
	}
	if res, err := h.TopicCreate(t.Context(), wire.TopicSpec{Name: "t", Partitions: 6, Replicas: 3}); err != nil || res.Change != "unchanged" {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := h.TopicCreate(t.Context(), wire.TopicSpec{Name: "u", Replicas: 4}); !errors.Is(err, &wire.Error{Reason: wire.ReasonInvalidConfig}) || !strings.Contains(err.Error(), "3 active brokers") {
		t.Errorf("4 replicas: %v", err)
	}
	if _, err := h.TopicCreate(t.Context(), wire.TopicSpec{Name: "one", Replicas: 1}); err != nil {
		t.Error(err)
	}
	first := map[uint64]int{}
	c := h.Store.Current()
	for _, p := range c.Topic("t").Partitions {
		first[p.Replicas[0].Broker]++
	}
	if len(first) != 3 || first[1] != 2 || first[2] != 2 {
		t.Errorf("first replicas %v", first)
	}
	health, err := h.ClusterHealth(t.Context(), None{})
	if err != nil || health.Healthy || len(health.Problems) != 6 || len(health.Warnings) != 1 {
		t.Errorf("%+v, %v", health, err)
	}
	status, err := h.ClusterStatus(t.Context(), None{})
	if err != nil || status.UnderReplicated != 6 || status.Partitions != 7 || status.Brokers[0].Leaders != 7 {
		t.Errorf("%+v, %v", status, err)
	}
	h.Runtime = still{}
	if _, err := h.Offset(t.Context(), wire.OffsetRequest{Topic: "t"}); !errors.Is(err, &wire.Error{Reason: wire.ReasonNotLeader}) {
		t.Errorf("offset without a leader: %v", err)
	}
}

// TestRemoveTheDead: where nobody can take over what a dead broker has, the answer isn't to wait for that.
func TestRemoveTheDead(t *testing.T) {
	t.Parallel()
	h := handlers(t, 4)
	for _, q := range []wire.TopicSpec{{Name: "one", Partitions: 4, Replicas: 1}, {Name: "three", Partitions: 4, Replicas: 3}} {
		if _, err := h.TopicCreate(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	name := ""
	if _, err := h.Store.Propose(t.Context(), func(next *config.Config) error {
		for n, p := range next.Topic("one").Partitions {
			if p.Replicas[0].Broker == 4 {
				name = fmt.Sprintf("(one/%d)", n)
			}
		}
		next.FeatureLevel = config.Level
		next.Broker(4).State = config.Dead
		return nil
	}); err != nil || name == "" {
		t.Fatal(name, err)
	}
	_, err := h.BrokerRemove(t.Context(), wire.NameRequest{Name: "b4"})
	if e := AsError(err); e.Retriable || !strings.Contains(e.Description, name) {
		t.Errorf("%v, want %s", err, name)
	}
	if _, err := h.TopicDelete(t.Context(), wire.NameRequest{Name: "one"}); err != nil {
		t.Fatal(err)
	}
	// What is left others can take over: that is to be waited for.
	_, err = h.BrokerRemove(t.Context(), wire.NameRequest{Name: "b4"})
	if e := AsError(err); !e.Retriable || !strings.Contains(e.Description, "others take them over") {
		t.Errorf("%v", err)
	}
}

// away is a runtime that can't reach some brokers.
type away struct {
	Runtime
	brokers map[uint64]bool
}

func (a away) Reach(id uint64) Reach { return Reach{Up: !a.brokers[id]} }

// TestRemoveWhoDrainsAndDied: a broker that drains is never declared dead. When it can't be reached any more what it
// has is given up where nobody can take it; refused, by name, is what it has the last copy of.
func TestRemoveWhoDrainsAndDied(t *testing.T) {
	t.Parallel()
	h := handlers(t, 3)
	gone := map[uint64]bool{}
	h.Runtime = away{h.Runtime, gone}
	for _, q := range []wire.TopicSpec{{Name: "one", Partitions: 3, Replicas: 1}, {Name: "three", Partitions: 2, Replicas: 3}} {
		if _, err := h.TopicCreate(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Store.Propose(t.Context(), func(next *config.Config) error {
		next.FeatureLevel = config.Level
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ do, want string }{
		{"remove", "drain it first"},
		{"lose", "can't be reached"},
		{"find", ""},
		{"drain", ""},
		{"remove", "2 replicas can't, since all other active brokers"},
		{"lose", "parley partition recover one/"},
		{"delete one", ""},
		{"remove", ""}, // three/0 and three/1 go on with two replicas
	} {
		var err error
		ask := wire.NameRequest{Name: "b3"}
		switch x.do {
		case "remove":
			_, err = h.BrokerRemove(t.Context(), ask)
		case "lose":
			gone[3] = true
			_, err = h.BrokerRemove(t.Context(), ask)
		case "find":
			delete(gone, 3)
		case "drain":
			_, err = h.BrokerDrain(t.Context(), ask)
		case "delete one":
			_, err = h.TopicDelete(t.Context(), wire.NameRequest{Name: "one"})
		}
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(AsError(err).Description, x.want)) {
			t.Fatalf("%s: %v, want %q", x.do, err, x.want)
		}
	}
	for n, p := range h.Store.Current().Topic("three").Partitions {
		if len(p.Target) != 2 || on(p.Target, 3) {
			t.Errorf("three/%d is to have %v", n, p.Target)
		}
	}
}

// TestRemoveWhatDeletedTopicsNeed: who holds nothing but what a deleted topic needs stays, and the answer says what to
// do about it: another one while it can be reached than when it is gone.
func TestRemoveWhatDeletedTopicsNeed(t *testing.T) {
	t.Parallel()
	h := handlers(t, 3)
	gone := map[uint64]bool{}
	h.Runtime = away{h.Runtime, gone}
	if _, err := h.TopicCreate(t.Context(), wire.TopicSpec{Name: "was", Partitions: 3, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.TopicDelete(t.Context(), wire.NameRequest{Name: "was"}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Store.Propose(t.Context(), func(next *config.Config) error {
		next.FeatureLevel = config.Level
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	ask := wire.NameRequest{Name: "b3"}
	for _, down := range []bool{false, true} {
		want := "topic restore"
		if gone[3] = down; down {
			want = "parley broker drain b3"
		}
		if _, err := h.BrokerRemove(t.Context(), ask); err == nil || !strings.Contains(AsError(err).Description, want) || !strings.Contains(AsError(err).Description, "(was)") {
			t.Errorf("down %v: %v, want %s", down, err, want)
		}
	}
	if _, err := h.BrokerDrain(t.Context(), ask); err != nil {
		t.Fatal(err)
	}
	r, err := h.BrokerRemove(t.Context(), ask)
	if err != nil || !strings.Contains(r.Detail, "can't be restored any more: was") {
		t.Errorf("%+v, %v", r, err)
	}
	if l, err := h.TopicList(t.Context(), wire.ListRequest{Deleted: true}); err != nil || len(l.Topics) != 0 {
		t.Errorf("%+v, %v", l, err)
	}
}

func on(replicas []config.Replica, broker uint64) bool {
	return slices.ContainsFunc(replicas, func(r config.Replica) bool { return r.Broker == broker })
}

// TestTooManyReplicas: the limit of the cluster is told, and nothing is kept of
// the attempt.
func TestTooManyReplicas(t *testing.T) {
	t.Parallel()
	h := handlers(t, 1)
	for i := range 19 {
		if _, err := h.TopicCreate(t.Context(), wire.TopicSpec{Name: fmt.Sprintf("t%d", i), Partitions: 1024}); err != nil {
			t.Fatal(err)
		}
	}
	before := h.Store.Current().Epoch
	_, err := h.TopicCreate(t.Context(), wire.TopicSpec{Name: "more", Partitions: 1024})
	if e := AsError(err); e.Reason != wire.ReasonInvalidConfig || !strings.Contains(e.Description, "20000") || h.Store.Current().Epoch != before {
		t.Errorf("%v", err)
	}
	if _, err := h.TopicCreate(t.Context(), wire.TopicSpec{Name: "fits", Partitions: 500}); err != nil {
		t.Error(err)
	}
}

func TestAnswersAreJSON(t *testing.T) {
	t.Parallel()
	h := handlers(t, 1)
	for subject := range subjects() {
		for _, req := range []string{"", "{}", "null", "[]", "7", "{", `{"name":"x"}`, `{"topics":["x"],"epoch":1,"limit":5}`} {
			var v map[string]any
			if b := h.Handle(t.Context(), subject, []byte(req)); json.Unmarshal(b, &v) != nil {
				t.Errorf("%s %s: %q", subject, req, b)
			}
		}
	}
}

func subjects() map[string]handler {
	all := map[string]handler{"$PARLEY.API.NOPE": nil}
	for s, h := range requests {
		all[s] = h
	}
	return all
}

func FuzzHandle(f *testing.F) {
	h := handlers(f, 2)
	subjects := []string{wire.APITopicCreate, wire.APITopicAlter, wire.APITopicDelete, wire.APITopicRestore, wire.APITopicList, wire.APIMetadata, wire.APIOffset, wire.APIEpochShow, wire.APIEpochList}
	f.Add(byte(0), []byte(`{"name":"t","partitions":2,"config":{"retention":"1d"},"subjects":["a.*"]}`))
	f.Add(byte(1), []byte(`{"name":"t","partitions":3}`))
	f.Add(byte(5), []byte(`{"topics":["t"]}`))
	f.Fuzz(func(t *testing.T, which byte, req []byte) {
		b := h.Handle(t.Context(), subjects[int(which)%len(subjects)], req)
		if !json.Valid(b) {
			t.Fatalf("%q", b)
		}
		if strings.Contains(string(b), "inside the broker") {
			t.Fatalf("a handler failed on %q", req)
		}
		if err := h.Store.Current().Validate(); err != nil {
			t.Fatal(err)
		}
	})
}
