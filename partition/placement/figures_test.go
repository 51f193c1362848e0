package placement

import (
	"math/rand/v2"
	"slices"
	"testing"
)

const (
	figureP = 1024
	figureR = 3
)

func (in Input) count(broker uint64) int {
	n := 0
	for _, p := range in.Partitions {
		if slices.Contains(p.Replicas, broker) {
			n++
		}
	}
	return n
}

func spread(plan *Plan) float64 {
	most, sum, hosts := 0, 0, 0
	for _, l := range plan.Loads {
		if l.Upper > 0 {
			most, sum, hosts = max(most, l.After), sum+l.After, hosts+1
		}
	}
	return float64(most) * float64(hosts) / float64(sum)
}

// TestFigures pins what the planner promises for 1,024 partitions of three replicas on
// brokers of equal weight.
func TestFigures(t *testing.T) {
	t.Parallel()
	for _, f := range []struct {
		brokers     int
		most        float64 // of the mean
		join, leave float64 // of the optimum; 0: not promised
	}{{3, 1, 1, 0}, {4, 1.06, 1, 1.10}, {5, 1.06, 1, 1.10}, {6, 1.06, 1, 1.10}, {7, 1.06, 1, 1.10}, {8, 1.06, 1, 1.10},
		{9, 1.06, 1, 1.10}, {10, 1.06, 1, 1.10}, {100, 1.08, 0, 0}} {
		in := Input{equalBrokers(f.brokers), newPartitions(figureP, figureR)}
		plan := mustMake(t, in)
		verify(t, in, plan)
		got := spread(plan)
		if got > f.most {
			t.Errorf("%d brokers: the fullest has %.3f of the mean, allowed is %.2f", f.brokers, got, f.most)
		}
		first := next(in, plan)

		join := first
		join.Brokers = equalBrokers(f.brokers + 1)
		joined := mustMake(t, join)
		verify(t, join, joined)
		joinRatio := float64(len(joined.Moves)) * float64(f.brokers+1) / (figureP * figureR)
		if f.join > 0 && joinRatio > f.join {
			t.Errorf("%d brokers: a join moves %.3f of the optimum, allowed is %.2f", f.brokers, joinRatio, f.join)
		}

		worst := 0.0
		for b := range f.brokers {
			for _, state := range []State{Dead, Draining} {
				if b > 0 && f.brokers > 10 {
					continue
				}
				leave := first
				leave.Brokers = equalBrokers(f.brokers)
				leave.Brokers[b].State = state
				left := mustMake(t, leave)
				verify(t, leave, left)
				if held := first.count(uint64(b + 1)); f.brokers > figureR && len(left.Moves) != held {
					t.Errorf("%d brokers: %d held %d and %d moved", f.brokers, b+1, held, len(left.Moves))
				}
				worst = max(worst, float64(len(left.Moves))*float64(f.brokers)/(figureP*figureR))
			}
		}
		if f.leave > 0 && worst > f.leave {
			t.Errorf("%d brokers: a leave moves %.3f of the optimum, allowed is %.2f", f.brokers, worst, f.leave)
		}
		t.Logf("%3d brokers: fullest %.4f of the mean; join %.4f, leave at most %.4f of the optimum", f.brokers, got, joinRatio, worst)
	}
}

// TestRollingFigures lets brokers join one by one up to ten and leave again in
// another order: the figures hold at each step, not only on a fresh plan.
func TestRollingFigures(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 0))
		in := Input{equalBrokers(3), newPartitions(figureP, figureR)}
		in = next(in, mustMake(t, in))
		for id := uint64(4); id <= 16; id++ {
			n := len(in.Brokers)
			limit, optimum := 1.0, float64(figureP*figureR)/float64(n+1)
			dying := -1
			if n == 10 || n > 4 && r.IntN(3) == 0 {
				limit, optimum = 1.10, float64(figureP*figureR)/float64(n)
				dying = r.IntN(n)
				in.Brokers[dying].State = Dead
			} else {
				in.Brokers = append(slices.Clone(in.Brokers), Broker{ID: id, Weight: 100})
			}
			plan := mustMake(t, in)
			verify(t, in, plan)
			if got := float64(len(plan.Moves)) / optimum; got > limit {
				t.Errorf("seed %d, %d brokers, dying %d: moves %.3f of the optimum", seed, n, dying, got)
			}
			if got := spread(plan); got > 1.06 {
				t.Errorf("seed %d, %d brokers, dying %d: the fullest has %.3f of the mean", seed, n, dying, got)
			}
			hosts := in.Hosts()
			mean := float64(figureP) / float64(hosts)
			changes := 0
			for _, l := range plan.Leads {
				if l.Reason.Code != CodeLeft {
					changes++
				}
			}
			// A newcomer takes its share of leaders; the rest is what the floors and ceilings shift.
			if changes > int(mean)+hosts {
				t.Errorf("seed %d, %d brokers, dying %d: %d partitions change their leader, a share is %.1f", seed, n, dying, changes, mean)
			}
			for _, l := range plan.Loads {
				if l.Upper > 0 && (float64(l.LedAfter) >= mean+1 || float64(l.LedAfter) <= mean-1) {
					t.Errorf("seed %d: broker %d leads %d of a mean of %.1f", seed, l.Broker, l.LedAfter, mean)
				}
				if !l.Within() || l.LedAfter > l.LeadUpper || l.LedAfter < l.LeadLower {
					t.Errorf("seed %d, %d brokers, dying %d: %+v", seed, n, dying, l)
				}
			}
			in = next(in, plan)
			if dying >= 0 {
				in.Brokers = slices.Delete(slices.Clone(in.Brokers), dying, dying+1)
			}
		}
	}
}

// TestReturn heals around a dead broker and lets it come back: it gets its share, and
// nothing moves between the others.
func TestReturn(t *testing.T) {
	t.Parallel()
	in := Input{equalBrokers(5), newPartitions(figureP, figureR)}
	in = next(in, mustMake(t, in))
	in.Brokers = equalBrokers(5)
	in.Brokers[2].State = Dead
	plan := mustMake(t, in)
	lost := len(plan.Moves)
	in = next(in, plan)
	in.Brokers = equalBrokers(5)
	plan = mustMake(t, in)
	verify(t, in, plan)
	back := 0
	for _, m := range plan.Moves {
		if m.To != 3 {
			t.Errorf("%+v though only broker 3 has room", m)
		}
		back++
	}
	share := figureP * figureR / 5
	if back < share*95/100-1 || back > share {
		t.Errorf("broker 3 lost %d and got %d back of a share of %d", lost, back, share)
	}
}
