package placement

import (
	"testing"
)

const (
	figureP = 1024
	figureR = 3
)

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
				worst = max(worst, float64(len(left.Moves))*float64(f.brokers)/(figureP*figureR))
			}
		}
		if f.leave > 0 && worst > f.leave {
			t.Errorf("%d brokers: a leave moves %.3f of the optimum, allowed is %.2f", f.brokers, worst, f.leave)
		}
		t.Logf("%3d brokers: fullest %.4f of the mean; join %.4f, leave at most %.4f of the optimum", f.brokers, got, joinRatio, worst)
	}
}
