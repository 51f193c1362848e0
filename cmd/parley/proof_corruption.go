package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// corruptionFlags are those of parley proof corruption.
type corruptionFlags struct {
	proofFlags
	count      int
	partitions int32
	atOnce     int
	live       int // per cent of the rounds in which the broker runs while it is damaged
	files      []string
	compare    time.Duration
}

func (a *app) corruptionCommand() *cobra.Command {
	f := corruptionFlags{count: 1000, partitions: 16, atOnce: 60, live: 40, compare: time.Second}
	cmd := &cobra.Command{
		Use: "corruption", Short: "Damages the stored files of brokers and counts what is detected, served and healed", Args: cobra.NoArgs,
		Long: `Starts three brokers as processes and publishes records of which it knows every byte. Round after round one
broker's files are damaged, while it is stopped, was killed, or runs: ` + strings.Join(damageNames(), ", ") + `,
in files of all kinds. A broker that refuses to start must say which file is damaged; that damage is then
taken back, so that each one is found for itself, and in the end done again: the disk is wiped and the broker
joins anew, as docs/operations.md says. Everything else must heal by itself. Every record is read from the
damaged broker before and after, and compared with what was acked; at the end the replicas are compared on
disk. Exit 1 if anything wrong was served, lost, not detected, not healed or not said clearly.`,
		Example: "  go run ./cmd/parley proof corruption --count 1000\n  go run ./cmd/parley proof corruption --count 100 --seed 7 --files value-log,raft-journal",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.count < 1 || f.partitions < 1 || f.atOnce < 1 || f.live < 0 || f.live > 100 {
				return usagef("--count %d --partitions %d --at-once %d --live %d: want 1, 1, 1 and 0 to 100", f.count, f.partitions, f.atOnce, f.live)
			}
			for _, name := range f.files {
				if !slices.Contains(fileKindNames(), name) {
					return usagef("--files %s: choose from %s", name, strings.Join(fileKindNames(), ", "))
				}
			}
			if !cmd.Flags().Changed("seed") {
				f.seed = rand.Uint64() % 1_000_000
			}
			return a.proveCorruption(cmd.Context(), &f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&f.count, "count", f.count, "so `many` corruptions")
	flags.Uint64Var(&f.seed, "seed", 0, "`seed` of the corruptions (default: a random one, printed)")
	flags.Int32Var(&f.partitions, "partitions", f.partitions, "partitions of the topic, each with three replicas")
	flags.IntVar(&f.atOnce, "at-once", f.atOnce, "so `many` corruptions of one broker in a round at most")
	flags.IntVar(&f.live, "live", f.live, "`per cent` of the rounds in which the broker runs meanwhile")
	flags.DurationVar(&f.compare, "compare", f.compare, "how `often` the brokers compare their replicas; where that is long, what verifies nothing when it is read would be served")
	flags.StringSliceVar(&f.files, "files", nil, "only these `kinds` of files: "+strings.Join(fileKindNames(), ", "))
	flags.StringVar(&f.parleyd, "parleyd", ownBrokerName, "the parleyd `binary`; self is the broker in this program")
	flags.BoolVar(&f.keep, "keep", false, "keep the working directory; it stays after a failure in any case")
	return cmd
}

// corruptionCut is how much is applied between two cuts of a Raft log.
const corruptionCut = "32768"

// Limits of the proof's waits.
const (
	corruptionRefusal = 40 * time.Second // for a start that is to fail
	corruptionHealing = 3 * time.Minute
	corruptionLead    = 4 * time.Second // for a damaged broker to lead what it can, before it is read
	corruptionAnswer  = 20 * time.Second
	corruptionMeet    = 2 * time.Second // for a running broker to find damage by itself, after all was read
)

// corruptionProof is one run.
type corruptionProof struct {
	a       *app
	f       *corruptionFlags
	dir     string
	begin   time.Time
	rng     *rand.Rand
	brokers []*clusterProcess
	c       *client.Client
	ledger  *corruptionLedger
	result  corruptionResult
}

// corruptionResult is what a run prints with -o json.
type corruptionResult struct {
	Seed      uint64                    `json:"seed"`
	Seconds   float64                   `json:"seconds"`
	Rounds    int                       `json:"rounds"`
	Count     int                       `json:"corruptions"`
	Detected  int                       `json:"detected"`
	Harmless  int                       `json:"harmless"`
	Missed    int                       `json:"not_detected"`
	Unclear   int                       `json:"ended_unclearly"`
	Healed    int                       `json:"healed"`
	Unhealed  int                       `json:"not_healed"`
	Uncounted int                       `json:"uncounted"` // went with a directory that was refused for something else
	Wiped     int                       `json:"wiped_brokers"`
	Replaced  int                       `json:"replaced_replicas"`
	Acked     int64                     `json:"acked"`
	Read      int64                     `json:"read"`
	Wrong     int64                     `json:"served_wrong"`
	Lost      int64                     `json:"lost"`
	Replicas  int64                     `json:"replicas"`
	Batches   int64                     `json:"batches"`
	Different int64                     `json:"different_replicas"`
	Failures  []string                  `json:"failures,omitempty"`
	ByFile    map[string]map[string]int `json:"by_file"`
	ByDamage  map[string]map[string]int `json:"by_damage"`
	ByBroker  map[string]map[string]int `json:"by_state_of_the_broker"`
	HealSlow  float64                   `json:"slowest_healing_seconds"`
}

func (r *corruptionResult) clean() bool {
	return r.Missed == 0 && r.Unclear == 0 && r.Unhealed == 0 && r.Wrong == 0 && r.Lost == 0 && r.Different == 0 && len(r.Failures) == 0
}

func (p *corruptionProof) say(format string, args ...any) {
	fmt.Fprintf(p.a.stderr, "%s %6.1f s  %s\n", time.Now().UTC().Format("15:04:05.000"), time.Since(p.begin).Seconds(), fmt.Sprintf(format, args...))
}

func (p *corruptionProof) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.result.Failures = append(p.result.Failures, text)
	p.say("FAILURE: %s", text)
}

func (a *app) proveCorruption(ctx context.Context, f *corruptionFlags) (err error) {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("this proof needs Linux; this is %s", runtime.GOOS)
	}
	dir, done, err := a.workingDirectory(f.keep)
	if err != nil {
		return err
	}
	defer func() { done(err) }()
	fmt.Fprintf(a.stderr, "seed %d, working directory %s\n", f.seed, dir)
	command, err := a.parleyd(ctx, &f.proofFlags, dir)
	if err != nil {
		return err
	}
	p := &corruptionProof{a: a, f: f, dir: dir, begin: time.Now(), rng: rand.New(rand.NewPCG(f.seed, f.seed)), result: corruptionResult{
		Seed: f.seed, ByFile: map[string]map[string]int{}, ByDamage: map[string]map[string]int{}, ByBroker: map[string]map[string]int{},
	}}
	if err := p.start(ctx, command); err != nil {
		return err
	}
	defer func() {
		for _, b := range p.brokers {
			b.kill()
		}
	}()
	defer func() { closeClient(p.c) }()
	for p.result.Count < f.count {
		if err := p.round(ctx); err != nil {
			return fmt.Errorf("round %d: %w", p.result.Rounds, err)
		}
		if p.result.Rounds > 10*f.count {
			return errors.New("hardly anything can be damaged")
		}
	}
	if err := p.conclude(ctx); err != nil {
		return err
	}
	if err := p.print(); err != nil {
		return err
	}
	if !p.result.clean() {
		return errReported
	}
	return nil
}

// start brings the cluster up, with a topic whose records are known, and a group that has handled them.
func (p *corruptionProof) start(ctx context.Context, command []string) error {
	all, err := newBrokerProcesses(command, p.dir, 3)
	if err != nil {
		return err
	}
	var urls []string
	for i, b := range all {
		b.logPath = filepath.Join(p.dir, b.name+".log")
		b.settings = append(b.settings, "--join", all[(i+1)%3].peer+","+all[(i+2)%3].peer, "--log-level", "info", "--log-format", "json", "--trash-grace", "1s", "--compare-every", p.f.compare.String())
		if p.f.parleyd == ownBrokerName {
			b.settings = append(b.settings, "--cut-bytes", corruptionCut)
		} else {
			b.settings = append(b.settings, "--free-space-floor", "0", "--copy-rate", "0")
			b.env = append(b.env, "PARLEY_TEST_CUT_BYTES="+corruptionCut)
		}
		p.brokers = append(p.brokers, &clusterProcess{brokerProcess: b, index: i})
		urls = append(urls, b.url())
	}
	if err := startTogether(ctx, all); err != nil {
		for _, b := range all {
			b.kill()
		}
		return err
	}
	p.c, err = dial(ctx, connection{Server: strings.Join(urls, ",")}, 10*time.Second)
	if err == nil {
		_, err = p.c.CreateTopic(ctx, client.TopicSpec{Name: corruptionTopic, Partitions: p.f.partitions, Replicas: 3})
	}
	if err == nil {
		p.ledger = newCorruptionLedger(p.c, p.f.seed, p.f.partitions, func(format string, args ...any) { p.fail(format, args...) })
		err = p.ledger.publish(ctx, p.rng, 12*int(p.f.partitions))
	}
	if err == nil {
		err = p.ledger.handle(ctx)
	}
	if err != nil {
		for _, b := range all {
			b.kill()
		}
		return err
	}
	p.say("3 brokers, %d partitions, %d records", p.f.partitions, p.ledger.acked)
	return nil
}

// conclude reads everything from each broker, then compares the replicas on disk.
func (p *corruptionProof) conclude(ctx context.Context) error {
	if err := p.healthy(ctx, corruptionHealing); err != nil {
		p.fail("at the end: %v", err)
	}
	for _, b := range p.brokers {
		if err := p.readThrough(ctx, b); err != nil {
			p.fail("at the end: %v", err)
		}
	}
	for _, b := range p.brokers {
		if err := b.stop(); err != nil {
			p.fail("at the end: %v", err)
		}
	}
	p.say("replicas are compared on disk")
	at, err := placedReplicas(p.brokers)
	if err != nil {
		return err
	}
	r := &p.result
	r.Replicas, r.Batches, r.Different, err = compareReplicas(p.brokers, at, p.say)
	r.Acked, r.Read, r.Wrong, r.Lost = p.ledger.acked, p.ledger.read, p.ledger.wrong, p.ledger.lost
	r.Seconds = time.Since(p.begin).Seconds()
	return err
}

// count takes a corruption's end into the result.
func (p *corruptionProof) count(c *corruption) {
	r := &p.result
	add := func(m map[string]map[string]int, key string) {
		if m[key] == nil {
			m[key] = map[string]int{}
		}
		m[key][c.outcome]++
	}
	switch c.outcome {
	case outcomeUncounted:
		r.Uncounted++
		return
	case outcomeHarmless, outcomeOverwritten, outcomeReplayed:
		r.Harmless++
	case outcomeMissed:
		r.Missed++
	case outcomeUnclear:
		r.Unclear++
	default:
		r.Detected++
		if c.healed {
			r.Healed++
		} else {
			r.Unhealed++
		}
	}
	r.Count++
	add(r.ByFile, c.file.kind.name)
	add(r.ByDamage, c.how)
	add(r.ByBroker, c.state)
}

func (p *corruptionProof) print() error {
	r := &p.result
	if p.a.json() {
		return p.a.printJSON(r)
	}
	for _, by := range []struct {
		what string
		m    map[string]map[string]int
	}{{"KIND OF FILE", r.ByFile}, {"KIND OF DAMAGE", r.ByDamage}, {"THE BROKER", r.ByBroker}} {
		head := []string{by.what, "CORRUPTIONS"}
		for _, o := range outcomes {
			head = append(head, strings.ToUpper(o))
		}
		t := newTable(head...)
		names := make([]string, 0, len(by.m))
		for name := range by.m {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			sum := 0
			for _, n := range by.m[name] {
				sum += n
			}
			row := []cell{str(name), num(sum)}
			for _, o := range outcomes {
				row = append(row, num(by.m[name][o]))
			}
			t.row(row...)
		}
		if err := p.a.printTable(t); err != nil {
			return err
		}
		fmt.Fprintln(p.a.stdout)
	}
	v := newTable()
	good := func(what string, n int64) { v.row(str(what), num(n)) }
	bad := func(what string, n int64) {
		c := num(n)
		if c.style = green; n != 0 {
			c.style = red
		}
		v.row(str(what), c)
	}
	v.row(str("seed"), rightText(fmt.Sprint(r.Seed)))
	good("corruptions", int64(r.Count))
	good("detected", int64(r.Detected))
	good("healed", int64(r.Healed))
	good("harmless", int64(r.Harmless))
	bad("not detected", int64(r.Missed))
	bad("ended unclearly", int64(r.Unclear))
	bad("not healed", int64(r.Unhealed))
	good("records read", r.Read)
	bad("served wrong", r.Wrong)
	bad("lost", r.Lost)
	bad("failures", int64(len(r.Failures)))
	bad("replicas that differ", r.Different)
	good("replicas compared", r.Replicas)
	good("batches on them", r.Batches)
	good("rounds", int64(r.Rounds))
	good("brokers wiped and joined anew", int64(r.Wiped))
	good("replicas replaced", int64(r.Replaced))
	good("uncounted: went with a refused directory", int64(r.Uncounted))
	v.row(str("slowest healing"), rightText(fmt.Sprintf("%.1f s", r.HealSlow)))
	v.row(str("seconds"), rightText(fmt.Sprintf("%.0f", r.Seconds)))
	return p.a.printTable(v)
}

// logSince is what a broker has logged from a place in its log on.
func logSince(b *clusterProcess, at int64) (string, error) {
	data, err := os.ReadFile(b.logPath)
	if err != nil {
		return "", fmt.Errorf("read the log of %s: %w", b.name, err)
	}
	return string(data[min(at, int64(len(data))):]), nil
}

func logEnd(b *clusterProcess) int64 {
	info, err := os.Stat(b.logPath)
	if err != nil {
		return 0
	}
	return info.Size()
}
