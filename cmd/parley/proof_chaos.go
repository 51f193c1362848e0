package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// chaosFlags are those of parley proof chaos and proof failover.
type chaosFlags struct {
	proofFlags
	duration   time.Duration
	brokers    int
	partitions int32
	producers  int
	faults     []string
	recovery   time.Duration // how long the cluster may take to settle after a fault
	moves      int
	atOnce     int
	groups     bool
	compare    time.Duration // how often brokers compare their replicas; 0: as they do by themselves
	spares     int           // brokers that may join beside the first ones
	cutBytes   int64         // of each Raft log; 0: as brokers do by default
}

func (f *chaosFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Uint64Var(&f.seed, "seed", 0, "`seed` of the faults (default: a random one, printed)")
	flags.IntVar(&f.brokers, "brokers", f.brokers, "so `many` brokers, 3 or more")
	flags.Int32Var(&f.partitions, "partitions", f.partitions, "partitions of the topic, each with three replicas")
	flags.IntVar(&f.producers, "producers", f.producers, "SDK producers; half as many plain NATS clients publish beside them")
	flags.StringVar(&f.parleyd, "parleyd", "", "the parleyd `binary` (default: built from this source tree)")
	flags.DurationVar(&f.recovery, "recovery", settleLimit, "how `long` the cluster may take to be healthy after a fault")
	flags.BoolVar(&f.keep, "keep", false, "keep the working directory; it stays after a failure in any case")
}

func (f *chaosFlags) check(cmd *cobra.Command) error {
	if f.moves < 0 || f.moves > 0 && (f.brokers < 4 || f.atOnce < 1 || f.atOnce > int(f.partitions)) {
		return usagef("--moves %d --moves-at-once %d with --brokers %d --partitions %d: want 0 or more, at least 1 and at most one a partition; partitions with three replicas can move where there are 4 brokers or more",
			f.moves, f.atOnce, f.brokers, f.partitions)
	}
	if f.brokers < 3 || f.partitions < 1 || f.producers < 1 {
		return usagef("--brokers %d --partitions %d --producers %d: want 3, 1 and 1 or more", f.brokers, f.partitions, f.producers)
	}
	if f.recovery <= 0 {
		return usagef("--recovery %s: want a time above zero", f.recovery)
	}
	if !cmd.Flags().Changed("seed") {
		f.seed = rand.Uint64() % 1_000_000
	}
	return nil
}

func (a *app) chaosCommand() *cobra.Command {
	f := chaosFlags{duration: 2 * time.Minute, brokers: 3, partitions: 8, producers: 4, atOnce: 3, compare: 2 * time.Second, groups: true, spares: 1, cutBytes: chaosCut}
	cmd := &cobra.Command{
		Use: "chaos", Short: "Kills, pauses and cuts off the brokers of a cluster under load, and counts what is left", Args: cobra.NoArgs,
		Long: `Starts a cluster of real processes whose links go through proxies. While producers,
plain NATS clients and readers run, one fault follows the other: ` + strings.Join(faultNames(), ", ") + `.
After the last one everything is read back and the replicas' logs are compared on disk:
nothing lost, duplicated, reordered or never sent, no offset with two values, replicas
the same byte for byte, and never found to differ by the brokers themselves, who compare them all the while. Three consumer groups work meanwhile, exclusive, shared and
key-ordered: every record is handled, none that was acked comes again, no two members
have the same right, and nothing is taken under an old token. Exit 1 if anything is wrong.

With --moves the partitions move from brokers to brokers meanwhile, some of them to others before they have
arrived; the faults go on until all of them have. Then each replica must be where the last epoch says, and nothing
else.`,
		Example: "  go run ./cmd/parley proof chaos --duration 2m --seed 7\n  go run ./cmd/parley proof chaos --moves 200 --brokers 5 --seed 7\n  go run ./cmd/parley proof chaos --duration 30s --faults kill,cut --keep",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			if f.duration <= 0 {
				return usagef("--duration %s: want a time above zero", f.duration)
			}
			kinds, err := chooseFaults(f.faults)
			if err != nil {
				return err
			}
			return a.proveCluster(cmd.Context(), &f, func(ctx context.Context, p *chaosProof) error {
				end := time.Now().Add(f.duration)
				moved := p.startMoves(ctx)
				for n := 1; n == 1 || time.Now().Before(end) || !moved.done(); n++ {
					if err := p.fault(ctx, n, kinds[p.rng.IntN(len(kinds))]); err != nil {
						return errors.Join(err, moved.stop())
					}
				}
				return moved.wait()
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.DurationVar(&f.duration, "duration", f.duration, "faults for so `long`")
	f.register(cmd)
	flags.StringSliceVar(&f.faults, "faults", nil, "only these `kinds` of faults")
	flags.IntVar(&f.moves, "moves", 0, "so `many` moves of partitions beside the faults, which go on until they are done")
	flags.IntVar(&f.atOnce, "moves-at-once", f.atOnce, "so `many` partitions move at the same time")
	flags.Int64Var(&f.cutBytes, "cut-bytes", f.cutBytes, "a replica's Raft log is cut whenever it has applied so many `bytes`: replicas that were away get snapshots; 0 for what brokers do by themselves")
	flags.DurationVar(&f.compare, "compare-every", f.compare, "the brokers compare each partition's replicas so `often`; 0 for as they do by themselves")
	flags.BoolVar(&f.groups, "groups", f.groups, "consumer groups beside the producers and readers")
	return cmd
}

func (a *app) failoverCommand() *cobra.Command {
	f := chaosFlags{brokers: 3, partitions: 8, producers: 4}
	f.rounds = 100
	how := []string{"kill"}
	cmd := &cobra.Command{
		Use: "failover", Short: "Takes a leader's broker away many times and measures the time without acks", Args: cobra.NoArgs,
		Long: `Round after round the broker that leads a partition is killed with SIGKILL under load, or paused, or
cut off from the others, and comes back once the others have taken over. The time without acks is
counted in every partition that the broker led. In the end everything is checked as by proof chaos.`,
		Example: "  go run ./cmd/parley proof failover --rounds 100\n  go run ./cmd/parley proof failover --rounds 60 --how kill,pause,cut",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			if f.rounds < 1 {
				return usagef("--rounds %d: want 1 or more", f.rounds)
			}
			kinds, err := chooseFailovers(how)
			if err != nil {
				return err
			}
			return a.proveCluster(cmd.Context(), &f, func(ctx context.Context, p *chaosProof) error {
				for n := 1; n <= f.rounds; n++ {
					if err := p.fault(ctx, n, kinds[n%len(kinds)]); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&f.rounds, "rounds", f.rounds, "so `many` times")
	flags.StringSliceVar(&how, "how", how, "`ways` to take it away, in turn: "+strings.Join(failoverWords, ", "))
	f.register(cmd)
	return cmd
}

// comparing are the settings by which brokers compare their replicas.
func (f *chaosFlags) comparing() []string {
	if f.compare <= 0 {
		return nil
	}
	return []string{"--compare-every", f.compare.String(), "--compare-rate", chaosCompareRate}
}

// chaosCompareRate leaves the machine something for the load.
const chaosCompareRate = "32MiB"

// chaosCut makes snapshots of what otherwise is a matter of Raft's log.
const chaosCut = 512 << 10

// chaosProof is one run.
type chaosProof struct {
	a       *app
	f       *chaosFlags
	dir     string
	begin   time.Time
	rng     *rand.Rand
	cluster *processCluster
	c       *client.Client
	audit   *chaosAudit
	load    *chaosLoad
	groups  *chaosGroups // nil: none
	results map[string]*faultResult
	changes int // of the topic
	epochs  epochResult
	moves   *chaosMoves // nil: none
	members membersResult
	// corrupted are the brokers whose files were.
	corrupted map[string]bool
}

// chaosResult is what a run prints with -o json.
type chaosResult struct {
	Seed    uint64  `json:"seed"`
	Seconds float64 `json:"seconds"`
	Faults  int64   `json:"faults"`
	verdict
	LiveRead  int64                   `json:"live_read"`
	Phantom   int64                   `json:"phantom"`
	TwoValues int64                   `json:"two_values"`
	Vanished  int64                   `json:"vanished"`
	Holes     int64                   `json:"holes"`
	StaleEnds int64                   `json:"stale_ends"`
	Stale     int64                   `json:"stale_epochs"`
	Epochs    epochResult             `json:"epochs"`
	Failures  int64                   `json:"failures"`
	Replicas  int64                   `json:"replicas"`
	Batches   int64                   `json:"batches"`
	Compared  comparedResult          `json:"compared"`
	Different int64                   `json:"different_replicas"`
	Moves     *movesResult            `json:"moves,omitempty"`
	Members   membersResult           `json:"members"`
	ByFault   map[string]*faultResult `json:"by_fault"`
	Groups    map[string]groupVerdict `json:"groups,omitempty"`
}

func (r *chaosResult) allClean() bool {
	for _, v := range r.Groups {
		if !v.clean() {
			return false
		}
	}
	return r.clean() && r.Phantom+r.TwoValues+r.Vanished+r.Holes+r.StaleEnds+r.Stale+r.Failures+r.Different+r.Compared.False == 0
}

func (p *chaosProof) say(format string, args ...any) {
	fmt.Fprintf(p.a.stderr, "%s %6.1f s  %s\n", time.Now().UTC().Format("15:04:05.000"), time.Since(p.begin).Seconds(), fmt.Sprintf(format, args...))
}

// workingDirectory makes one for a proof. done removes it, unless the proof has failed or it is to be kept.
func (a *app) workingDirectory(keep bool) (dir string, done func(error), err error) {
	dir, err = os.MkdirTemp("", "parley-proof-")
	if err != nil {
		return "", nil, fmt.Errorf("make a working directory: %w", err)
	}
	return dir, func(err error) {
		if err != nil || keep {
			fmt.Fprintf(a.stderr, "data and logs stay in %s\n", dir)
			return
		}
		if rerr := os.RemoveAll(dir); rerr != nil {
			fmt.Fprintf(a.stderr, "parley: remove the working directory: %v\n", rerr)
		}
	}, nil
}

// proveCluster runs a cluster under load, has its faults made, and checks.
func (a *app) proveCluster(ctx context.Context, f *chaosFlags, faults func(context.Context, *chaosProof) error) (err error) {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("this proof needs Linux: its proxies tell by /proc which broker has dialled; this is %s", runtime.GOOS)
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
	p := &chaosProof{a: a, f: f, dir: dir, begin: time.Now(), rng: rand.New(rand.NewPCG(f.seed, f.seed)), results: map[string]*faultResult{}, corrupted: map[string]bool{}}
	if p.cluster, err = newProcessCluster(command, dir, clusterPlan{brokers: f.brokers, spares: f.spares, cutBytes: f.cutBytes, settings: f.comparing()}); err != nil {
		return err
	}
	defer p.cluster.close()
	if err := p.cluster.start(ctx); err != nil {
		return err
	}
	p.say("%d brokers have formed a cluster", f.brokers)
	if p.c, err = dial(ctx, connection{Server: p.cluster.urls()}, a.timeout); err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			closeClient(p.c)
		}
	}()
	if _, err := p.c.CreateTopic(ctx, client.TopicSpec{Name: chaosTopic, Partitions: f.partitions, Replicas: 3}); err != nil {
		return err
	}
	plain := max(f.producers/2, 1)
	prefix := fmt.Sprintf("c%d", f.seed)
	p.audit = newChaosAudit(prefix, f.producers, f.producers+plain, f.partitions, p.say)
	urls := p.cluster.addresses()
	p.load = &chaosLoad{c: p.c, urls: urls, audit: p.audit, parts: f.partitions, sdk: f.producers, plain: plain, prefix: prefix}
	loadCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.load.start(loadCtx, f.seed)
	running := true
	defer func() {
		if running {
			cancel()
			p.load.stop()
			if p.groups != nil {
				p.groups.stop()
			}
		}
	}()
	if f.groups {
		groups := newChaosGroups(p.c, urls, p.audit, min(f.partitions, 4))
		if err := groups.start(loadCtx, f.seed); err != nil {
			return err
		}
		p.groups = groups
	}
	begin := time.Now()
	if err := p.settle(ctx, begin, true); err != nil {
		return err
	}
	if err := p.change(ctx); err != nil {
		return err
	}
	if err := faults(ctx, p); err != nil {
		return err
	}
	if err := p.settle(ctx, time.Now(), true); err != nil {
		return err
	}
	running = false
	p.load.stop()
	var verdicts map[string]groupVerdict
	if p.groups != nil {
		if verdicts, err = p.groups.finish(ctx, p.say); err != nil {
			p.groups.stop()
			return err
		}
	}
	r, err := p.conclude(ctx)
	if err != nil {
		return err
	}
	// A follower learns of the last commit with the leader's next message: so all of them are at the same end before
	// anybody stops.
	if err := p.level(ctx); err != nil {
		p.audit.anomaly(&p.audit.failures, "%v", err)
	}
	closeClient(p.c)
	closed = true
	if err := p.onDisk(r); err != nil {
		return err
	}
	r.Seconds, r.Groups = time.Since(begin).Seconds(), verdicts
	if err := p.print(r); err != nil {
		return err
	}
	if !r.allClean() {
		return errReported
	}
	return nil
}

func (p *chaosProof) conclude(ctx context.Context) (*chaosResult, error) {
	p.say("everything is read back")
	if err := p.audit.finish(ctx, p.c); err != nil {
		return nil, err
	}
	r := &chaosResult{Seed: p.f.seed, verdict: p.audit.verdict(), LiveRead: p.audit.read.Load(), ByFault: p.results, Epochs: p.epochs, Members: p.members}
	for _, f := range p.results {
		r.Faults += f.Count
	}
	if p.moves != nil {
		r.Moves = p.moves.result()
	}
	return r, nil
}

// onDisk stops all brokers and compares the replicas.
func (p *chaosProof) onDisk(r *chaosResult) error {
	stopped := make(chan error, len(p.cluster.members))
	for _, m := range p.cluster.members {
		go func() { stopped <- m.stop() }() // ends within stopLimit
	}
	for range p.cluster.members {
		if err := <-stopped; err != nil {
			p.audit.anomaly(&p.audit.failures, "%v", err)
		}
	}
	p.say("replicas are compared on disk")
	at, err := placedReplicas(p.cluster.members)
	if err != nil {
		return err
	}
	if err := r.Members.countSnapshots(p.dir); err != nil {
		return err
	}
	if r.Compared, err = comparedIn(p.dir, p.corrupted, p.audit.tell); err != nil {
		return err
	}
	if p.f.compare > 0 && r.Compared.Passes == 0 && time.Since(p.begin).Seconds() > comparedWithin {
		p.audit.anomaly(&p.audit.failures, "the brokers compared no partition's replicas in %.0f s", time.Since(p.begin).Seconds())
	}
	r.Replicas, r.Batches, r.Different, err = compareReplicas(p.cluster.members, at, p.audit.tell)
	a := p.audit
	r.StaleEnds, r.Stale = a.staleEnd.Load(), a.stale.Load()
	r.Phantom, r.TwoValues, r.Vanished, r.Holes, r.Failures = a.phantom.Load(), a.twoValues.Load(), a.vanished.Load(), a.holes.Load(), a.failures.Load()
	return err
}

func (p *chaosProof) print(r *chaosResult) error {
	if p.a.json() {
		return p.a.printJSON(r)
	}
	t := newTable("FAULT", "TIMES", "NO ACKS p50", "p90", "p99", "MAX", "n", "A PRODUCER, MAX", "HEALTHY AFTER, MAX", "TARGET")
	var names []string
	for name := range r.ByFault {
		names = append(names, name)
	}
	sort.Strings(names)
	ms := func(d time.Duration) cell { return rightText(fmt.Sprintf("%d ms", d.Milliseconds())) }
	for _, name := range names {
		f := r.ByFault[name]
		t.row(str(name), num(f.Count), ms(f.gaps.percentile(0.5)), ms(f.gaps.percentile(0.9)), ms(f.gaps.percentile(0.99)), ms(f.gaps.max),
			num(f.gaps.total), ms(f.lane), ms(f.settled), rightText(f.target))
	}
	if err := p.a.printTable(t); err != nil {
		return err
	}
	fmt.Fprintln(p.a.stdout)
	e := newTable("CHANGES OF THE TOPIC", "n", "p50", "p99", "MAX", "TARGET")
	r.Epochs.row(e, "between faults", "p99 < 500 ms")
	if err := p.a.printTable(e); err != nil {
		return err
	}
	fmt.Fprintln(p.a.stdout)
	if len(r.Groups) > 0 {
		if err := p.a.printTable(groupsTable(r.Groups)); err != nil {
			return err
		}
		fmt.Fprintln(p.a.stdout)
	}
	v := newTable()
	v.row(str("seed"), rightText(fmt.Sprint(r.Seed)))
	r.verdict.table(v)
	bad := func(what string, n int64) {
		c := num(n)
		if c.style = green; n != 0 {
			c.style = red
		}
		v.row(str(what), c)
	}
	bad("phantom", r.Phantom)
	bad("two values at one offset", r.TwoValues)
	bad("seen and gone", r.Vanished)
	bad("holes", r.Holes)
	bad("ends before what was acked", r.StaleEnds)
	bad("acks of an older epoch", r.Stale)
	bad("failures", r.Failures)
	bad("replicas that differ", r.Different)
	bad("replicas found to differ that don't", r.Compared.False)
	v.row(str("replicas compared"), num(r.Replicas))
	v.row(str("batches on them"), num(r.Batches))
	v.row(str("read live"), num(r.LiveRead))
	v.row(str("faults"), num(r.Faults))
	if r.Moves != nil {
		r.Moves.table(v)
	}
	r.Members.table(v)
	r.Compared.table(v)
	v.row(str("seconds"), rightText(fmt.Sprintf("%.0f", r.Seconds)))
	return p.a.printTable(v)
}

var errStuck = errors.New("the cluster did not recover")
