package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// Figures of the demo.
const (
	demoBrokers    = 3
	demoTopic      = "demo"
	demoPartitions = 6
	demoKillAt     = 0.4 // of the records acked
	demoPoll       = 200 * time.Microsecond
	demoLimit      = 5 * time.Minute
	demoHeal       = time.Minute // how long the cluster may take to be whole again
)

func (a *app) demoCommand() *cobra.Command {
	records, keep := int64(100_000), false
	cmd := &cobra.Command{
		Use: "demo", Short: "Starts three brokers, loads them, kills one in the middle, and counts what is left", Args: cobra.NoArgs,
		Long: `Starts a cluster of three brokers as child processes on free ports and a temporary
directory, publishes numbered records, kills the broker that leads most partitions with SIGKILL in the
middle, starts it again, and reads everything back. Exit 1 if anything acked is lost,
duplicated or out of order. Nothing stays behind.`,
		Example: "  parley demo\n  parley demo --records 1000000 --keep",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if records < 1 {
				return usagef("--records %d: want 1 or more", records)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), demoLimit)
			defer cancel()
			return a.demo(ctx, records, keep)
		},
	}
	cmd.Flags().Int64Var(&records, "records", records, "publish so `many`")
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the data directories and say where they are")
	return cmd
}

// demoResult is what parley demo prints with -o json.
type demoResult struct {
	verdict
	Brokers         []demoBroker `json:"brokers"`
	Killed          string       `json:"killed"`
	KilledAt        int64        `json:"killed_at"`        // records acked when the broker was killed
	FailoverSeconds float64      `json:"failover_seconds"` // the longest that one of its partitions went without an ack
	DownSeconds     float64      `json:"down_seconds"`
	HealedSeconds   float64      `json:"healed_seconds"` // from its restart until all replicas were in sync
	Reapplied       int64        `json:"reapplied"`
	Epoch           uint64       `json:"epoch"`
	Seconds         float64      `json:"seconds"`
	Directory       string       `json:"directory,omitempty"`
}

// demoBroker says how many partitions a broker led, when.
type demoBroker struct {
	Name   string `json:"name"`
	Before int    `json:"leaders_before"`
	After  int    `json:"leaders_after_the_kill"`
	End    int    `json:"leaders_at_the_end"`
}

func (a *app) demo(ctx context.Context, records int64, keep bool) error {
	begin := time.Now()
	dir, err := os.MkdirTemp("", "parley-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demo: %w", err)
	}
	if keep {
		fmt.Fprintf(a.stderr, "data stays in %s\n", dir)
	} else {
		defer func() {
			if err := os.RemoveAll(dir); err != nil {
				fmt.Fprintf(a.stderr, "parley: remove the demo's data: %v\n", err)
			}
		}()
	}
	command, err := ownBroker()
	if err != nil {
		return err
	}
	brokers, err := newBrokerProcesses(command, dir, demoBrokers)
	if err != nil {
		return err
	}
	for _, b := range brokers {
		defer b.kill()
		if err := os.MkdirAll(filepath.Dir(b.dir), 0o755); err != nil {
			return fmt.Errorf("make a directory for the demo: %w", err)
		}
	}
	d := &demo{a: a, brokers: brokers, begin: begin, colour: a.colours(a.stderr)}
	result, err := d.run(ctx, records)
	if err != nil {
		return err
	}
	result.Seconds = time.Since(begin).Seconds()
	if keep {
		result.Directory = dir
	}
	if a.json() {
		err = a.printJSON(result)
	} else {
		err = result.print(a)
	}
	if err == nil && !result.clean() {
		err = errReported
	}
	return err
}

func (r *demoResult) print(a *app) error {
	fmt.Fprintln(a.stderr)
	t := newTable()
	r.table(t)
	seconds := func(s float64) cell { return rightText(fmt.Sprintf("%.2f s", s)) }
	t.row(str("longest time without an ack"), seconds(r.FailoverSeconds))
	t.row(str("broker away"), seconds(r.DownSeconds))
	t.row(str("all replicas in sync after its return"), seconds(r.HealedSeconds))
	t.row(str("entries applied again"), num(r.Reapplied))
	t.row(str("epoch"), num(r.Epoch))
	if err := a.printTable(t); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	t = newTable("BROKER", "LED BEFORE", "AFTER THE KILL", "AT THE END")
	for _, b := range r.Brokers {
		name := str(b.Name)
		if b.Name == r.Killed {
			name = styled(b.Name+" (killed)", red)
		}
		t.row(name, num(b.Before), num(b.After), num(b.End))
	}
	return a.printTable(t)
}

// demo tells its steps on stderr as they happen.
type demo struct {
	a       *app
	brokers []*brokerProcess
	begin   time.Time
	colour  bool
}

func (d *demo) say(mark, style, text string) {
	if d.colour {
		mark = style + mark + reset
	}
	fmt.Fprintf(d.a.stderr, "%6.2f s  %s  %s\n", time.Since(d.begin).Seconds(), mark, text)
}

// start starts all brokers at once.
func (d *demo) start(ctx context.Context) error {
	errs := make([]error, len(d.brokers))
	var wg sync.WaitGroup
	for i, b := range d.brokers {
		wg.Go(func() { errs[i] = b.start(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (d *demo) urls() string {
	urls := make([]string, len(d.brokers))
	for i, b := range d.brokers {
		urls[i] = b.url()
	}
	return strings.Join(urls, ",")
}

// acks watches how long each partition goes without one.
type acks struct {
	begin time.Time
	last  [demoPartitions]atomic.Int64 // nanoseconds since begin
	gap   [demoPartitions]atomic.Int64 // the longest since reset
}

func (k *acks) note(partition int) {
	now := int64(time.Since(k.begin))
	if gap := now - k.last[partition].Swap(now); gap > k.gap[partition].Load() {
		k.gap[partition].Store(gap) // one callback at a time and partition
	}
}

func (k *acks) reset() {
	for i := range k.gap {
		k.gap[i].Store(0)
	}
}

func (d *demo) run(ctx context.Context, records int64) (result demoResult, err error) {
	if err := d.start(ctx); err != nil {
		return result, err
	}
	var pids []string
	for _, b := range d.brokers {
		pids = append(pids, fmt.Sprint(b.cmd.Process.Pid))
	}
	d.say("✔", green, fmt.Sprintf("three brokers run as processes %s and form a cluster", strings.Join(pids, ", ")))

	c, err := dial(ctx, connection{Server: d.urls()}, d.a.timeout)
	if err != nil {
		return result, err
	}
	defer closeClient(c)
	change, err := c.CreateTopic(ctx, client.TopicSpec{Name: demoTopic, Partitions: demoPartitions, Replicas: demoBrokers})
	if err != nil {
		return result, err
	}
	d.say("✔", green, fmt.Sprintf("topic %s: %d partitions, %d replicas each (epoch %d)", demoTopic, demoPartitions, demoBrokers, change.Epoch))

	k, err := newCheck(ctx, c, demoTopic)
	if err != nil {
		return result, err
	}
	before, err := d.leaders(ctx, c)
	if err != nil {
		return result, err
	}
	victim := d.brokers[0]
	for _, b := range d.brokers {
		if count(before, b.name) > count(before, victim.name) {
			victim = b
		}
	}
	watched := &acks{begin: time.Now()}
	k.onAck = watched.note
	d.say("✔", green, fmt.Sprintf("publishing %s numbered records; an ack means: on the disks of two brokers, fsynced", grouped(fmt.Sprint(records))))
	type outcome struct {
		v      verdict
		failed int64
		err    error
	}
	done := make(chan outcome, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with ctx at the latest
		v, failed, err := k.run(ctx, records, 0, demoLimit)
		done <- outcome{v, failed, err}
	}()

	if err := d.await(ctx, func() bool { return k.acked.Load() >= int64(demoKillAt*float64(records)) }); err != nil {
		return result, err
	}
	pid, killed := victim.cmd.Process.Pid, time.Now()
	watched.reset()
	victim.kill()
	result.Killed, result.KilledAt = victim.name, k.acked.Load()
	d.say("✖", red, fmt.Sprintf("kill -9 %d: broker %s, which led %d partitions, with %s records acked", pid, victim.name,
		count(before, victim.name), grouped(fmt.Sprint(result.KilledAt))))

	var after []string
	err = d.await(ctx, func() bool {
		now, err := d.leaders(ctx, c)
		after = now
		return err == nil && count(now, victim.name) == 0 && count(now, "") == 0
	})
	if err != nil {
		return result, err
	}
	d.say("✔", green, fmt.Sprintf("the other two lead everything after %.2f s", time.Since(killed).Seconds()))
	if err := victim.start(ctx); err != nil {
		return result, err
	}
	back := time.Now()
	result.DownSeconds = back.Sub(killed).Seconds()
	if result.Reapplied, err = victim.metric(ctx, metricReapplied, ""); err != nil {
		return result, err
	}
	d.say("✔", green, fmt.Sprintf("broker %s is back", victim.name))

	o := <-done
	if o.err != nil {
		return result, o.err
	}
	result.verdict = o.v
	if o.failed > 0 {
		return result, fmt.Errorf("%d records failed: %w", o.failed, k.failure())
	}
	if o.v.Acked != records {
		return result, fmt.Errorf("%d of %d records were acked", o.v.Acked, records)
	}
	for i, name := range before {
		if name == victim.name {
			result.FailoverSeconds = max(result.FailoverSeconds, time.Duration(watched.gap[i].Load()).Seconds())
		}
	}
	mark, style, text := "✔", green, "everything acked is there, once, in order"
	if !o.v.clean() {
		mark, style, text = "✖", red, strings.ToUpper("something is wrong")
	}
	d.say(mark, style, text)

	healing, stop := context.WithTimeout(ctx, demoHeal)
	defer stop()
	if err := d.await(healing, func() bool {
		h, err := c.Health(healing)
		return err == nil && h.Healthy
	}); err != nil {
		return result, fmt.Errorf("the cluster is not whole %s after the broker's return: %w", demoHeal, err)
	}
	result.HealedSeconds = time.Since(back).Seconds()
	d.say("✔", green, "all replicas are in sync")
	end, err := d.leaders(ctx, c)
	if err != nil {
		return result, err
	}
	for _, b := range d.brokers {
		result.Brokers = append(result.Brokers, demoBroker{b.name, count(before, b.name), count(after, b.name), count(end, b.name)})
	}
	status, err := c.Status(ctx)
	result.Epoch = status.Epoch
	return result, err
}

// leaders of the topic's partitions.
func (d *demo) leaders(ctx context.Context, c *client.Client) ([]string, error) {
	md, err := c.Metadata(ctx, demoTopic)
	if err != nil {
		return nil, err
	}
	if len(md.Topics) != 1 || len(md.Topics[0].Leaders) != demoPartitions {
		return nil, fmt.Errorf("the metadata of topic %s has no leaders", demoTopic)
	}
	return md.Topics[0].Leaders, nil
}

func count(names []string, name string) (n int) {
	for _, other := range names {
		if other == name {
			n++
		}
	}
	return n
}

// await polls a condition. Only the broker that the demo has killed may be gone.
func (d *demo) await(ctx context.Context, holds func() bool) error {
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	for !holds() {
		for _, b := range d.brokers {
			if b.cmd == nil {
				continue
			}
			select {
			case <-b.ended:
				return fmt.Errorf("broker %s ended by itself: %s", b.name, b.lastLog())
			default:
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
