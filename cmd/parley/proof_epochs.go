package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// epochResult sums changes of the cluster up: how long a client waited for one.
type epochResult struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`

	waits histogram
}

func (r *epochResult) record(d time.Duration) {
	r.waits.record(d)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	r.Count = int64(r.waits.total)
	r.P50, r.P99, r.Max = ms(r.waits.percentile(0.5)), ms(r.waits.percentile(0.99)), ms(r.waits.max)
}

func (r *epochResult) row(t *table, what, target string) {
	ms := func(v float64) cell { return rightText(fmt.Sprintf("%.0f ms", v)) }
	t.row(str(what), num(r.Count), ms(r.P50), ms(r.P99), ms(r.Max), rightText(target))
}

// alter changes a topic's config to a value that it doesn't have: an epoch.
func alter(ctx context.Context, c *client.Client, topic string, n int) (client.TopicChange, time.Duration, error) {
	begin := time.Now()
	change, err := c.AlterTopic(ctx, client.TopicAlter{Name: topic, Config: map[string]string{"retention": fmt.Sprintf("%dh", 1000+n)}})
	return change, time.Since(begin), err
}

// stampLimit is how long after a change of a topic its partitions' acks may name an older epoch.
const stampLimit = 15 * time.Second

// change makes an epoch while all is well, and waits until every partition's acks name it. From then
// on none may name an older one, whoever leads.
func (p *chaosProof) change(ctx context.Context) error {
	if p.audit.stale.Load() > 0 {
		return nil // it was found, and waiting for it again takes long
	}
	p.changes++
	change, took, err := alter(ctx, p.c, chaosTopic, p.changes)
	if err != nil {
		p.audit.anomaly(&p.audit.failures, "change the topic in a healthy cluster: %v", err)
		return ctx.Err()
	}
	p.epochs.record(took)
	limit := time.NewTimer(stampLimit)
	defer limit.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		behind, at := -1, uint64(0)
		for part := range p.audit.epochs {
			if at = p.audit.epochs[part].Load(); at < change.Epoch {
				behind = part
				break
			}
		}
		if behind < 0 {
			break
		}
		select {
		case <-tick.C:
		case <-limit.C:
			p.audit.anomaly(&p.audit.stale, "%s after epoch %d changed the topic, acks of partition %d still name epoch %d", stampLimit, change.Epoch, behind, at)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for part := range p.audit.floors {
		raise(&p.audit.floors[part], change.Epoch)
	}
	return nil
}

func (a *app) epochsCommand() *cobra.Command {
	f := chaosFlags{brokers: 3, partitions: 8, producers: 1, recovery: settleLimit}
	f.rounds = 200
	kills := 5
	cmd := &cobra.Command{
		Use: "epochs", Short: "Measures how long a change of the cluster takes, also when the broker that proposes was killed", Args: cobra.NoArgs,
		Long: `Starts a cluster of real processes and changes a topic's config, one change after the other: each is
an epoch, decided by the council and carried out by all brokers before it is reported. Then, several
times, the broker that proposes epochs is killed with SIGKILL, and the first change after that
is timed.`,
		Example: "  go run ./cmd/parley proof epochs --rounds 1000 --kills 10",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.rounds < 1 || kills < 0 {
				return usagef("--rounds %d --kills %d: want 1 and 0 or more", f.rounds, kills)
			}
			if err := f.check(cmd); err != nil {
				return err
			}
			return a.proveEpochs(cmd.Context(), &f, kills)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&f.rounds, "rounds", f.rounds, "so `many` changes")
	flags.IntVar(&kills, "kills", kills, "so `many` kills of the broker that proposes")
	flags.IntVar(&f.brokers, "brokers", f.brokers, "so `many` brokers, 3 or more")
	flags.Int32Var(&f.partitions, "partitions", f.partitions, "partitions of the topic that is changed")
	flags.StringVar(&f.parleyd, "parleyd", "", "the parleyd `binary` (default: built from this source tree)")
	flags.BoolVar(&f.keep, "keep", false, "keep the working directory; it stays after a failure in any case")
	return cmd
}

func (a *app) proveEpochs(ctx context.Context, f *chaosFlags, kills int) (err error) {
	dir, done, err := a.workingDirectory(f.keep)
	if err != nil {
		return err
	}
	defer func() { done(err) }()
	command, err := a.parleyd(ctx, &f.proofFlags, dir)
	if err != nil {
		return err
	}
	cluster, err := newProcessCluster(command, dir, clusterPlan{brokers: f.brokers})
	if err != nil {
		return err
	}
	defer cluster.close()
	if err := cluster.start(ctx); err != nil {
		return err
	}
	c, err := dial(ctx, connection{Server: cluster.urls()}, a.timeout)
	if err != nil {
		return err
	}
	defer closeClient(c)
	const topic = "epochs"
	if _, err := c.CreateTopic(ctx, client.TopicSpec{Name: topic, Partitions: f.partitions, Replicas: 3}); err != nil {
		return err
	}
	var steady, killed epochResult
	for n := range f.rounds {
		_, took, err := alter(ctx, c, topic, n)
		if err != nil {
			return fmt.Errorf("change %d: %w", n+1, err)
		}
		steady.record(took)
	}
	// Epochs are proposed by the lowest broker id that lives: the first one, once it is back.
	first := cluster.members[0]
	for n := range kills {
		if err := settleEpochs(ctx, c); err != nil {
			return err
		}
		first.kill()
		_, took, err := alter(ctx, c, topic, f.rounds+n)
		if err != nil {
			return fmt.Errorf("change after kill %d: %w", n+1, err)
		}
		killed.record(took)
		if err := first.launch(); err != nil {
			return err
		}
		if err := first.awaitReady(ctx); err != nil {
			return err
		}
	}
	if a.json() {
		return a.printJSON(struct {
			Steady *epochResult `json:"steady"`
			Killed *epochResult `json:"proposer_killed"`
		}{&steady, &killed})
	}
	t := newTable("CHANGE", "n", "p50", "p99", "MAX", "TARGET")
	steady.row(t, "all brokers there", "p99 < 500 ms")
	killed.row(t, "first one after the proposer was killed", "< 3 s")
	return a.printTable(t)
}

// settleEpochs waits until the cluster is healthy.
func settleEpochs(ctx context.Context, c *client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		h, err := health(ctx, c)
		if err == nil && h.Healthy {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w within %s: %v, %v", errStuck, settleLimit, h.Problems, err)
		}
	}
}
