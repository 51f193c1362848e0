package journal

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// go test ./replication/raft/journal -run TestPowerCuts -journal.seeds 200
var (
	crashSeeds = flag.Int("journal.seeds", 4, "scripts of TestPowerCuts")
	crashSeed  = flag.Uint64("journal.seed", 1, "the first seed")
)

const crashSteps = 60

func testOptions(d *disk) Options {
	return Options{FS: d, SegmentBytes: 4 << 10, byHand: true}
}

// perform opens the journal and asks for steps until one fails. It returns how many were acknowledged.
func perform(d *disk, steps []step) (int, error) {
	j, err := Open("/j", testOptions(d))
	if err != nil {
		return 0, err
	}
	for i, s := range steps {
		if err := s.do(j); err != nil {
			_ = j.Close()
			return i, err
		}
	}
	return len(steps), j.Close()
}

// meant is what steps mean together.
func meant(steps []step) oracle {
	o := make(oracle)
	for _, s := range steps {
		s.means(o)
	}
	return o
}

// holds says whether what a disk has is what was acknowledged, or that and the step under way.
func holds(d *disk, steps []step, acked int) error {
	j, err := Open("/j", testOptions(d))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer j.Close()
	err = meant(steps[:acked]).differs(j, true)
	if err != nil && acked < len(steps) {
		if errNext := meant(steps[:acked+1]).differs(j, true); errNext != nil {
			return fmt.Errorf("%w; with the step under way: %w", err, errNext)
		}
		err = nil
	}
	return err
}

// The power goes with each operation in turn. What was acknowledged is there when it is back, also when it goes
// again meanwhile.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	for seed := *crashSeed; seed < *crashSeed+uint64(*crashSeeds); seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			if err := powerCuts(seed, func(*disk) {}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func powerCuts(seed uint64, mutate func(*disk)) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	steps := script(rng, crashSteps)
	d := newDisk()
	if n, err := perform(d, steps); err != nil {
		return fmt.Errorf("without a power cut: step %d: %w", n, err)
	}
	if err := holds(d, steps, len(steps)); err != nil {
		return fmt.Errorf("without a power cut: %w", err)
	}
	for cut := 1; cut <= d.ops+1; cut++ {
		d := newDisk()
		d.cutAt = cut
		mutate(d)
		acked, err := perform(d, steps)
		if err != nil && !errors.Is(err, errPower) {
			return fmt.Errorf("power cut at operation %d: step %d: %w", cut, acked, err)
		}
		for again := range 3 {
			left := d.after(rng)
			mutate(left)
			if again == 2 {
				// It goes again while the journal is opened.
				left.cutAt = 1 + rng.IntN(8)
				if j, err := Open("/j", testOptions(left)); err == nil {
					_ = j.Close()
				} else if !errors.Is(err, errPower) {
					return fmt.Errorf("power cut at operation %d, and %d of the next start: %w", cut, left.cutAt, err)
				}
				left = left.after(rng)
				mutate(left)
			}
			if err := holds(left, steps, acked); err != nil {
				return fmt.Errorf("power cut at operation %d (%s), step %d, %d acknowledged: %w\n%s",
					cut, last(d.trace), acked, acked, err, strings.Join(tail(d.trace, 12), "\n"))
			}
		}
	}
	return nil
}

// A process ends with each operation in turn, or gets an error there. What the next one found is on disk before it builds on
// it, also what can be read though it was never synced.
func TestWhatIsReadIsOnDisk(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(5, 1))
	steps := script(rng, crashSteps)
	whole := newDisk()
	if n, err := perform(whole, steps); err != nil {
		t.Fatalf("step %d: %v", n, err)
	}
	underWay := 0
	for at := 1; at <= 2*whole.ops; at++ {
		d := newDisk()
		if d.cutAt = at; at > whole.ops {
			d.cutAt, d.failAt = 0, at-whole.ops
		}
		acked, err := perform(d, steps)
		if err == nil {
			continue // all was saved, or it was an error of closing
		}
		d.goOn()
		j, err := Open("/j", testOptions(d))
		if err != nil {
			t.Fatalf("operation %d (%s): open: %v", at, last(d.trace), err)
		}
		found := meant(steps[:acked])
		if found.differs(j, true) != nil {
			underWay++
			if acked == len(steps) {
				t.Fatalf("operation %d: %v", at, found.differs(j, true))
			}
			found = meant(steps[:acked+1])
		}
		if err := found.differs(j, true); err != nil {
			t.Fatalf("operation %d: %v", at, err)
		}
		for range 3 {
			left, err := Open("/j", testOptions(d.after(rng)))
			if err != nil {
				t.Fatalf("operation %d (%s), and the power went later: open: %v", at, d.trace[min(at, len(d.trace))-1], err)
			}
			if err := found.differs(left, true); err != nil {
				t.Fatalf("operation %d, and the power went later: %v", at, err)
			}
			_ = left.Close()
		}
		_ = j.Close()
	}
	if underWay == 0 {
		t.Error("nothing was found that had not been acknowledged: the test shows nothing")
	}
}

// A commit index that was only remembered is on disk with the entries after it, whether these come with a state or not:
// dragonboat goes by a change of a log's members once it is committed, and who has the next change must not forget that.
func TestCommitIndexGoesWithEntries(t *testing.T) {
	t.Parallel()
	key := Key{1, 1}
	for name, state := range map[string]State{"with a state": {Term: 2, Commit: 2}, "without": {}} {
		d := newDisk()
		j, err := Open("/j", testOptions(d))
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range []Update{
			{State: State{Term: 2}, First: 1, Entries: texts{"a", "b", "c"}},
			{State: State{Term: 2, Commit: 2}},
			{State: state, First: 4, Entries: texts{"d"}},
		} {
			b := j.NewBatch()
			b.Save(key, u)
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		left, err := Open("/j", testOptions(d.after(rand.New(rand.NewPCG(1, 1)))))
		if err != nil {
			t.Fatal(err)
		}
		if s, _ := left.Status(key); s.State.Commit != 2 || s.Last != 4 {
			t.Errorf("%s: after a power cut commit is %d and the log ends at %d, want 2 and 4", name, s.State.Commit, s.Last)
		}
		if err := left.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func last(s []string) string { return s[len(s)-1] }

func tail(s []string, n int) []string { return s[max(0, len(s)-n):] }

// The test sees a journal, or a disk, that doesn't sync.
func TestPowerCutsAreNoticed(t *testing.T) {
	t.Parallel()
	for name, mutate := range map[string]func(*disk){
		"files aren't synced":    func(d *disk) { d.noSync = true },
		"directory isn't synced": func(d *disk) { d.noNames = true },
	} {
		if err := powerCuts(1, mutate); err == nil {
			t.Errorf("%s, and nothing was lost", name)
		}
	}
}

// An error of the disk ends the journal: nothing is acknowledged after it, whatever the disk says then, and
// what was before is there.
func TestDiskErrors(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(7, 1))
	steps := script(rng, crashSteps)
	whole := newDisk()
	if n, err := perform(whole, steps); err != nil {
		t.Fatalf("step %d: %v", n, err)
	}
	opened := 0
	for at := 1; at <= whole.ops; at++ {
		d := newDisk()
		d.failAt = at
		told := 0
		o := testOptions(d)
		o.OnError = func(error) { told++ }
		j, err := Open("/j", o)
		if err != nil {
			continue // as it should: nothing is there yet
		}
		opened++
		acked, failed := 0, false
		for _, s := range steps {
			err := s.do(j)
			saves := s.name != "tidy" && s.name != "trim" && s.name != "commit index"
			switch {
			case err == nil && failed && saves:
				t.Fatalf("operation %d failed, and a step (%s) was acknowledged after it", at, s.name)
			case err == nil && !failed:
				acked++
			case err != nil:
				if s.name == "tidy" {
					j.fail(err) // as the cleaner does
				}
				// A commit index is remembered at once.
				if err := meant(steps[:acked]).differs(j, true); !failed && err != nil && !strings.Contains(err.Error(), "commit of") {
					t.Fatalf("operation %d failed, and %v", at, err)
				}
				failed = true
			}
		}
		_ = j.Close()
		if failed && told != 1 {
			t.Fatalf("operation %d: told %d times", at, told)
		}
		for range 2 {
			if err := holds(d.after(rng), steps, acked); err != nil {
				t.Fatalf("operation %d (%s): %v", at, d.trace[at-1], err)
			}
		}
	}
	if opened < whole.ops-20 {
		t.Errorf("%d of %d journals were opened", opened, whole.ops)
	}
}
