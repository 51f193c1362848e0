package api

import (
	"context"
	"errors"
	"testing"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

// headless is a runtime in which no partition has a leader, and these are left of them.
type headless struct {
	still
	left []Survivor
}

func (h headless) Survivors(context.Context, Part) []Survivor { return h.left }

// A partition whose majority is there, and is about to elect a leader, is not recovered: also when a replica was back only after
// the operator was shown that it was away.
func TestRecoverRefusesAMajority(t *testing.T) {
	t.Parallel()
	h := handlers(t, 3)
	h.Runtime = headless{}
	if _, err := h.Store.Propose(t.Context(), func(c *config.Config) error { c.FeatureLevel = config.Level; return nil }); err != nil {
		t.Fatal(err)
	}
	c, err := h.Store.Propose(t.Context(), func(c *config.Config) error {
		topic := config.Topic{ID: c.NextTopic, Name: "t", Subjects: []string{"t"}, CreatedAt: 1}
		c.NextTopic++
		p := config.Partition{Shard: c.TakeShard()}
		for b := range uint64(3) {
			p.Replicas = append(p.Replicas, config.Replica{ID: c.TakeReplica(), Broker: b + 1})
		}
		topic.Partitions = []config.Partition{p}
		c.Topics = append(c.Topics, topic)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	left := func(away ...uint64) (all []Survivor) {
		for _, r := range c.Topic("t").Partitions[0].Replicas {
			s := Survivor{Replica: r.ID, Broker: r.Broker, Term: 2, Index: 9, Next: 5}
			for _, id := range away {
				if id == r.Broker {
					s = Survivor{Replica: r.ID, Broker: r.Broker, Away: true, Problem: "away"}
				}
			}
			all = append(all, s)
		}
		return all
	}
	h.Runtime = headless{left: left(1, 3)}
	if plan, err := h.PartitionRecover(t.Context(), wire.RecoverRequest{Topic: "t"}); err != nil || plan.From != "b2" {
		t.Fatalf("%+v, %v", plan, err)
	}
	h.Runtime = headless{left: left(1)} // b3 is back
	was := h.Store.Current().Epoch
	for _, q := range []wire.RecoverRequest{{Topic: "t"}, {Topic: "t", From: "b2", Accept: true}, {Topic: "t", Empty: true, Accept: true}} {
		var e *wire.Error
		if _, err := h.PartitionRecover(t.Context(), q); !errors.As(err, &e) || !e.Retriable || h.Store.Current().Epoch != was {
			t.Errorf("%+v: %v", q, err)
		}
	}
}
