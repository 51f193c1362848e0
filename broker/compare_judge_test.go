package broker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		votes  []ballot
		voters int
		same   bool
		good   string
		bad    []uint64
	}{
		"all the same":                      {[]ballot{{1, 1, "a", ""}, {2, 2, "a", ""}, {3, 3, "a", ""}}, 3, true, "", nil},
		"one alone":                         {[]ballot{{1, 1, "a", ""}}, 3, true, "", nil},
		"one of three differs":              {[]ballot{{1, 1, "a", ""}, {2, 2, "b", ""}, {3, 3, "a", ""}}, 3, false, "a", []uint64{2}},
		"the leader differs":                {[]ballot{{1, 1, "b", ""}, {2, 2, "a", ""}, {3, 3, "a", ""}}, 3, false, "a", []uint64{1}},
		"two of two":                        {[]ballot{{1, 1, "a", ""}, {2, 2, "b", ""}}, 2, false, "", nil},
		"two of three, one away":            {[]ballot{{1, 1, "a", ""}, {2, 2, "b", ""}}, 3, false, "", nil},
		"three of three":                    {[]ballot{{1, 1, "a", ""}, {2, 2, "b", ""}, {3, 3, "c", ""}}, 3, false, "", nil},
		"two of five, of which one differs": {[]ballot{{1, 1, "a", ""}, {2, 2, "a", ""}, {3, 3, "b", ""}}, 5, false, "", nil},
		"two of five differ":                {[]ballot{{1, 1, "a", ""}, {2, 2, "b", ""}, {3, 3, "a", ""}, {4, 4, "a", ""}, {5, 5, "c", ""}}, 5, false, "a", []uint64{2, 5}},
		"one contradicts itself":            {[]ballot{{1, 1, "a", ""}, {2, 2, "a", "odd"}, {3, 3, "a", ""}}, 3, false, "a", []uint64{2}},
		"two contradict themselves":         {[]ballot{{1, 1, "a", "odd"}, {2, 2, "a", "odd"}, {3, 3, "a", ""}}, 3, false, "", nil},
		"the majority contradicts itself":   {[]ballot{{1, 1, "b", "odd"}, {2, 2, "b", "odd"}, {3, 3, "a", ""}}, 3, false, "", nil},
		"one contradicts, another differs":  {[]ballot{{1, 1, "a", "odd"}, {2, 2, "b", ""}, {3, 3, "a", ""}}, 3, false, "", nil},
		"one replica that contradicts":      {[]ballot{{1, 1, "a", "odd"}}, 1, false, "", nil},
		"one of two contradicts":            {[]ballot{{1, 1, "a", ""}, {2, 2, "b", "odd"}}, 2, false, "", nil},
	} {
		j := judge(c.votes, c.voters)
		var bad []uint64
		for _, v := range j.bad {
			bad = append(bad, v.Broker)
		}
		if j.same != c.same || j.good != c.good || !slices.Equal(bad, c.bad) {
			t.Errorf("%s: %+v", name, j)
		}
	}
}

// TestJudgeNeverHurts: whatever the ballots are, as many replicas as make a majority of all are left that agree and
// don't contradict themselves, or nobody is judged; and where such are, everybody else is.
func TestJudgeNeverHurts(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 20_000 {
		voters := 1 + rng.IntN(7)
		votes := make([]ballot, 1+rng.IntN(voters))
		for i := range votes {
			votes[i] = ballot{Broker: uint64(i), Replica: uint64(i), Digest: fmt.Sprint(rng.IntN(3))}
			if rng.IntN(4) == 0 {
				votes[i].Odd = "odd"
			}
		}
		j := judge(votes, voters)
		// The dumb oracle: each digest's followers, counted by hand.
		var majority string
		for _, digest := range []string{"0", "1", "2"} {
			n := 0
			for _, v := range votes {
				if v.Digest == digest && v.Odd == "" {
					n++
				}
			}
			if 2*n > voters {
				majority = digest
			}
		}
		var bad []ballot
		clean := true
		for _, v := range votes {
			if v.Digest != votes[0].Digest || v.Odd != "" {
				clean = false
			}
			if majority != "" && (v.Digest != majority || v.Odd != "") {
				bad = append(bad, v)
			}
		}
		if j.same != clean || !slices.Equal(j.bad, bad) || len(bad) > 0 && j.good != majority {
			t.Fatalf("seed %d: %d voters, %+v: %+v, want the majority %q and %+v", seed, voters, votes, j, majority, bad)
		}
		if left := len(votes) - len(j.bad); len(j.bad) > 0 && 2*left <= voters {
			t.Fatalf("seed %d: %d of %d are left: %+v", seed, left, voters, j)
		}
	}
}

func TestComparisonsAreDue(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000_000)
	ms := func(ago time.Duration) int64 { return now.Add(-ago).UnixMilli() }
	const every = time.Hour
	for name, c := range map[string]struct {
		n    comparison
		rank int
	}{
		"new":                       {comparison{Since: ms(time.Minute)}, 0},
		"never compared for long":   {comparison{Since: ms(time.Hour)}, 1},
		"compared of late":          {comparison{Since: ms(9 * time.Hour), Last: &pass{Begun: ms(50 * time.Minute), Ended: ms(time.Minute)}}, 0},
		"compared long ago":         {comparison{Last: &pass{Begun: ms(time.Hour), Ended: ms(time.Minute)}}, 1},
		"one was missing":           {comparison{Last: &pass{Begun: ms(50 * time.Minute), Ended: ms(15 * time.Minute), Missing: []uint64{1}}}, 1},
		"one was missing just now":  {comparison{Last: &pass{Begun: ms(50 * time.Minute), Ended: ms(14 * time.Minute), Missing: []uint64{1}}}, 0},
		"under way":                 {comparison{Begun: ms(time.Minute)}, 2},
		"a difference, looked at":   {comparison{Since: ms(0), Differences: []difference{{}}, Checked: ms(time.Second)}, 0},
		"a difference":              {comparison{Since: ms(0), Begun: ms(0), Differences: []difference{{}}, Checked: ms(compareCheck)}, 3},
		"asked for":                 {comparison{Requested: true, Differences: []difference{{}}}, 4},
		"asked for while under way": {comparison{Requested: true, Begun: ms(0)}, 4},
	} {
		if d := c.n.due(now, every); d.rank != c.rank {
			t.Errorf("%s: %+v, want rank %d", name, d, c.rank)
		}
		if d := c.n.due(now, -1); d.rank == 1 {
			t.Errorf("%s: it is due though comparisons are off", name)
		}
	}
	old, older := comparisonDue{1, 5}, comparisonDue{1, 4}
	if !older.before(old) || old.before(older) || (comparisonDue{}).before(old) || !(comparisonDue{2, 9}).before(older) || (comparisonDue{}).before(comparisonDue{}) {
		t.Error("what was compared longest ago doesn't come first")
	}
}

// TestComparisonPass: what a pass leaves behind.
func TestComparisonPass(t *testing.T) {
	t.Parallel()
	now := time.Now()
	n := comparison{Begun: 5, First: 10, Cursor: 90, Target: 80, Bytes: 100, StateAt: 7, Requested: true}
	n.miss([]uint64{3, 2})
	n.miss([]uint64{2})
	n.end(now)
	if n.Begun != 0 || n.Cursor != 0 || n.Requested || n.Passes != 1 || len(n.Missing) > 0 {
		t.Errorf("after it: %+v", n)
	}
	if l := n.Last; l.From != 10 || l.UpTo != 90 || l.Bytes != 100 || !l.State || !slices.Equal(l.Missing, []uint64{2, 3}) || l.Ended != now.UnixMilli() {
		t.Errorf("the pass: %+v", l)
	}
	one := difference{What: whatRecords, From: 5, To: 8, Found: 1, Votes: []ballot{{1, 1, "a", ""}, {2, 2, "b", ""}}}
	again := one
	again.Found = 2
	if n.differ(one) || !n.differ(again) || len(n.Differences) != 1 || n.Differences[0].Found != 1 {
		t.Errorf("a difference that is known: %+v", n.Differences)
	}
	decided := one
	decided.Good = "a"
	if n.differ(decided) || n.Differences[0].Good != "a" {
		t.Error("that there is a majority by now is news")
	}
	for i := range int64(compareMost + 3) {
		n.differ(difference{What: whatRecords, From: 100 + i, To: 101 + i})
	}
	if len(n.Differences) != compareMost || n.More != 4 {
		t.Errorf("%d differences and %d more", len(n.Differences), n.More)
	}
	for _, d := range slices.Clone(n.Differences) {
		n.over(d, "gone")
	}
	if len(n.Differences) != 0 || n.More != 0 || n.Event == "" {
		t.Errorf("when all are over: %+v", n)
	}
}
