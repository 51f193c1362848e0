package config

import (
	"fmt"
	"testing"
)

// TestRecoverOn: what comes of a broker's part of a cluster is valid, names it alone, and gives
// every live partition a new group.
func TestRecoverOn(t *testing.T) {
	t.Parallel()
	c := &Config{ClusterID: "c", Epoch: 7, Previous: Hash{1}, FeatureLevel: Level, NextBroker: 4, NextTopic: 4, NextShard: 9, NextReplica: 30, Council: []uint64{1, 2, 3}, Uneven: 5}
	for id := uint64(1); id <= 3; id++ {
		c.Brokers = append(c.Brokers, Broker{ID: id, Name: fmt.Sprint("b", id), Incarnation: fmt.Sprint("i", id), Weight: 1, State: Dead})
	}
	at := func(r ...uint64) (list []Replica) { // id, broker, …
		for i := 0; i < len(r); i += 2 {
			list = append(list, Replica{r[i], r[i+1]})
		}
		return list
	}
	c.Topics = []Topic{
		{ID: 1, Name: "live", Subjects: []string{"live"}, Partitions: []Partition{
			{Shard: 1, Replicas: at(1, 1, 2, 2, 3, 3)},
			{Shard: 2, Replicas: at(4, 1, 5, 2)},
			{Shard: 3, Replicas: at(6, 1), Target: at(7, 3), Moved: true},
			{Shard: 4, Replicas: at(8, 3), Target: at(9, 3), Retired: at(10, 3, 11, 1)},
		}},
		{ID: 2, Name: "gone", Subjects: []string{"gone"}, DeletedAt: 1, Partitions: []Partition{{Shard: 5, Replicas: at(12, 1)}, {Shard: 6, Replicas: at(13, 3)}}},
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"{live 1 0 1 3 true [1 2] 0 0}", "{live 1 1 2 0 false [1 2] 0 0}", "{live 1 2 3 7 false [1] 0 0}", "{live 1 3 4 9 false [] 0 0}",
	} {
		if got := fmt.Sprint(c.Survivors(3, nil)[i]); got != want {
			t.Errorf("survivor %d: %s, want %s", i, got, want)
		}
	}
	// Of two replicas on one broker the one that has more is gone on with, not the newer one.
	left := c.Survivors(3, func(_ *Topic, _ int, r Replica) (uint64, uint64) { return map[uint64]uint64{8: 4, 9: 3}[r.ID], r.ID })
	if got := fmt.Sprint(left[3]); got != "{live 1 3 4 8 true [] 4 8}" {
		t.Errorf("of an old replica that has more: %s", got)
	}
	older := c.Clone()
	older.Epoch, older.Previous = 8, c.Hash()
	older.RecoverOn(3, left)
	if p := older.Topics[0].Partitions[3]; fmt.Sprint(p.Replicas, p.Retired) != "[{8 3}] [{9 3} {10 3}]" {
		t.Errorf("recovered on the older replica: %+v", p)
	}
	n := c.Clone()
	n.Epoch, n.Previous = 8, c.Hash()
	n.RecoverOn(3, nil)
	if err := n.Validate(); err != nil {
		t.Fatal(err)
	}
	if len(n.Brokers) != 1 || n.Brokers[0].State != Active || fmt.Sprint(n.Council) != "[3]" || n.Uneven != 0 {
		t.Errorf("brokers %+v, council %v", n.Brokers, n.Council)
	}
	for i, want := range []string{
		"{9 [{3 3}] [] [] [] false}", "{10 [{30 3}] [] [] [] false}", "{11 [{7 3}] [] [] [] false}", "{12 [{9 3}] [] [] [{8 3} {10 3}] false}",
	} {
		p := n.Topics[0].Partitions[i]
		if got := fmt.Sprintf("{%d %v %v %v %v %v}", p.Shard, p.Replicas, p.Target, p.Abandoned, p.Retired, p.Moved); got != want {
			t.Errorf("partition %d: %s, want %s", i, got, want)
		}
	}
	if gone := n.Topics[1]; !gone.Purge || len(gone.Partitions[0].Replicas) != 0 || gone.Partitions[1].Replicas[0].ID != 13 {
		t.Errorf("the deleted topic: %+v", gone)
	}
	if _, err := n.Encode(); err != nil {
		t.Error(err)
	}
}

// TestRemoveBroker: tombstones lose what they had there, retired replicas there are forgotten, and
// that may follow what was before.
func TestRemoveBroker(t *testing.T) {
	t.Parallel()
	c := &Config{ClusterID: "c", Epoch: 7, Previous: Hash{1}, FeatureLevel: Level, NextBroker: 4, NextTopic: 5, NextShard: 9, NextReplica: 30, Council: []uint64{1, 2, 3}}
	for id := uint64(1); id <= 3; id++ {
		c.Brokers = append(c.Brokers, Broker{ID: id, Name: fmt.Sprint("b", id), Incarnation: fmt.Sprint("i", id), Weight: 1})
	}
	c.Topics = []Topic{
		{ID: 1, Name: "live", Subjects: []string{"live"}, Partitions: []Partition{{Shard: 1, Replicas: []Replica{{1, 1}}, Retired: []Replica{{2, 3}}, Moved: true}}},
		{ID: 2, Name: "gone", Subjects: []string{"gone"}, DeletedAt: 1, Partitions: []Partition{{Shard: 5, Replicas: []Replica{{3, 1}, {4, 3}}}}},
		{ID: 3, Name: "only", Subjects: []string{"only"}, DeletedAt: 1, Partitions: []Partition{{Shard: 6, Replicas: []Replica{{5, 3}}}}},
		{ID: 4, Name: "three", Subjects: []string{"three"}, DeletedAt: 1, Partitions: []Partition{{Shard: 7, Replicas: []Replica{{6, 1}, {7, 2}, {8, 3}}}}},
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	all := func(uint64) bool { return true }
	if got := fmt.Sprint(c.NeededOn(3, all), c.NeededOn(1, all), c.NeededOn(2, all), c.Holds(3), c.Holds(1)); got != "[gone only] [gone] [] 0 1" {
		t.Errorf("%s", got)
	}
	// With the second broker gone, the third topic has its majority from the other two, and needs each of them.
	if got := fmt.Sprint(c.NeededOn(1, func(id uint64) bool { return id != 2 }), c.NeededOn(2, func(id uint64) bool { return id != 2 })); got != "[gone three] []" {
		t.Errorf("with the second broker gone: %s", got)
	}
	n := c.Clone()
	n.Epoch, n.Previous = 8, c.Hash()
	n.RemoveBroker(3)
	if err := n.Follows(c); err != nil {
		t.Error(err)
	}
	if err := n.Validate(); err != nil {
		t.Error(err)
	}
	if got := fmt.Sprint(n.Council, n.Topics[0].Partitions[0].Retired, n.Topics[1].Partitions[0].Replicas, n.Topics[1].Purge, n.Topics[2].Purge); got != "[1 2] [] [{3 1}] false true" {
		t.Errorf("%s", got)
	}
	// Two of three are left of the third topic: its Raft group has three members yet, and no majority without either.
	if got := fmt.Sprint(n.NeededOn(1, all), n.NeededOn(2, all)); got != "[gone three] [three]" {
		t.Errorf("%s", got)
	}
	// A live one's replicas don't just go.
	n = c.Clone()
	n.Epoch, n.Previous = 8, c.Hash()
	n.RemoveBroker(1)
	if n.Validate() == nil {
		t.Error("a broker with a replica of a live topic was removed")
	}
}
