package placement

import (
	"fmt"
	"testing"
)

func equalBrokers(n int) []Broker {
	brokers := make([]Broker, n)
	for i := range brokers {
		brokers[i] = Broker{ID: uint64(i + 1), Weight: 100}
	}
	return brokers
}

func newPartitions(count, factor int) []Partition {
	parts := make([]Partition, count)
	for i := range parts {
		parts[i] = Partition{Shard: uint64(i + 1), Factor: factor}
	}
	return parts
}

// next is the input that follows a plan whose moves are all done.
func next(in Input, plan *Plan) Input {
	at := make(map[uint64][]uint64, len(plan.Assignments))
	for _, a := range plan.Assignments {
		at[a.Shard] = a.Replicas
	}
	parts := make([]Partition, len(in.Partitions))
	for i, p := range in.Partitions {
		parts[i] = Partition{Shard: p.Shard, Factor: p.Factor, Replicas: at[p.Shard]}
	}
	return Input{Brokers: in.Brokers, Partitions: parts}
}

func mustMake(tb testing.TB, in Input) *Plan {
	tb.Helper()
	plan, err := Make(in)
	if err != nil {
		tb.Fatal(err)
	}
	return plan
}

func BenchmarkMake(b *testing.B) {
	for _, size := range []struct{ parts, factor, brokers int }{{1024, 3, 10}, {6666, 3, 100}} {
		fresh := Input{equalBrokers(size.brokers), newPartitions(size.parts, size.factor)}
		first := next(fresh, mustMake(b, fresh))
		joined, left := first, first
		joined.Brokers = equalBrokers(size.brokers + 1)
		left.Brokers = equalBrokers(size.brokers)
		left.Brokers[size.brokers/2].State = Dead
		for _, c := range []struct {
			name string
			in   Input
		}{{"fresh", fresh}, {"unchanged", first}, {"join", joined}, {"leave", left}} {
			b.Run(fmt.Sprintf("replicas=%d/brokers=%d/%s", size.parts*size.factor, size.brokers, c.name), func(b *testing.B) {
				b.ReportAllocs()
				for range b.N {
					if _, err := Make(c.in); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
