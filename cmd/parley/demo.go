package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// Figures of the demo.
const (
	demoTopic      = "demo"
	demoPartitions = 3
	demoKillAt     = 0.4 // of the records acked
	demoPoll       = 200 * time.Microsecond
	demoLimit      = 5 * time.Minute
)

func (a *app) demoCommand() *cobra.Command {
	records, keep := int64(100_000), false
	cmd := &cobra.Command{
		Use: "demo", Short: "Starts a broker, loads it, kills it in the middle, and counts what is left", Args: cobra.NoArgs,
		Long: `Starts a broker as a child process on free ports and a temporary directory, publishes
numbered records, kills the broker with SIGKILL in the middle, starts it again, and
reads everything back. Exit 1 if anything acked is lost, duplicated or out of order.
Nothing stays behind.`,
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
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the data directory and say where it is")
	return cmd
}

// demoResult is what parley demo prints with -o json.
type demoResult struct {
	verdict
	KilledAt    int64   `json:"killed_at"` // records acked when the broker was killed
	DownSeconds float64 `json:"down_seconds"`
	Reapplied   int64   `json:"reapplied"`
	Seconds     float64 `json:"seconds"`
	Directory   string  `json:"directory,omitempty"`
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
	b, err := newBrokerProcess(command, dir)
	if err != nil {
		return err
	}
	defer b.kill()
	d := &demo{a: a, broker: b, begin: begin, colour: a.colours(a.stderr)}
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
		fmt.Fprintln(a.stderr)
		t := newTable()
		result.table(t)
		t.row(str("entries applied again"), num(result.Reapplied))
		t.row(str("broker away"), rightText(fmt.Sprintf("%.2f s", result.DownSeconds)))
		err = a.printTable(t)
	}
	if err == nil && !result.clean() {
		err = errReported
	}
	return err
}

// demo tells its steps on stderr as they happen.
type demo struct {
	a      *app
	broker *brokerProcess
	begin  time.Time
	colour bool
}

func (d *demo) say(mark, style, text string) {
	if d.colour {
		mark = style + mark + reset
	}
	fmt.Fprintf(d.a.stderr, "%6.2f s  %s  %s\n", time.Since(d.begin).Seconds(), mark, text)
}

func (d *demo) run(ctx context.Context, records int64) (result demoResult, err error) {
	if err := d.broker.start(ctx); err != nil {
		return result, err
	}
	d.say("✔", green, fmt.Sprintf("a broker runs as process %d, clients at %s", d.broker.cmd.Process.Pid, d.broker.url()))

	c, err := dial(ctx, connection{Server: d.broker.url()}, d.a.timeout)
	if err != nil {
		return result, err
	}
	defer closeClient(c)
	if _, err := c.CreateTopic(ctx, client.TopicSpec{Name: demoTopic, Partitions: demoPartitions}); err != nil {
		return result, err
	}
	d.say("✔", green, fmt.Sprintf("topic %s with %d partitions", demoTopic, demoPartitions))

	k, err := newCheck(ctx, c, demoTopic)
	if err != nil {
		return result, err
	}
	d.say("✔", green, fmt.Sprintf("publishing %s numbered records; an ack means: on disk, fsynced", grouped(fmt.Sprint(records))))
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
	killed := time.Now()
	pid := d.broker.cmd.Process.Pid
	d.broker.kill()
	result.KilledAt = k.acked.Load()
	d.say("✖", red, fmt.Sprintf("kill -9 %d, with %s records acked", pid, grouped(fmt.Sprint(result.KilledAt))))
	if err := d.broker.start(ctx); err != nil {
		return result, err
	}
	result.DownSeconds = time.Since(killed).Seconds()
	if result.Reapplied, err = d.broker.metric(ctx, metricReapplied, ""); err != nil {
		return result, err
	}
	d.say("✔", green, fmt.Sprintf("the broker is back; it applied %s log entries again", grouped(fmt.Sprint(result.Reapplied))))

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
	mark, style, text := "✔", green, "everything acked is there, once, in order"
	if !o.v.clean() {
		mark, style, text = "✖", red, strings.ToUpper("something is wrong")
	}
	d.say(mark, style, text)
	return result, nil
}

// await polls a condition of this process.
func (d *demo) await(ctx context.Context, holds func() bool) error {
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-d.broker.ended:
			return fmt.Errorf("the broker ended by itself: %s", d.broker.log.lastLine())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
