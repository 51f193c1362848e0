package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// compareLook is how often a comparison's progress is asked for.
const compareLook = 250 * time.Millisecond

// comparedPartition is what partition compare prints with -o json.
type comparedPartition struct {
	Topic      string                      `json:"topic"`
	Partition  int32                       `json:"partition"`
	Begun      bool                        `json:"begun"`
	Comparison *client.PartitionComparison `json:"comparison,omitempty"`
}

func (a *app) partitionCompare() *cobra.Command {
	wait := true
	cmd := &cobra.Command{
		Use: "compare TOPIC/N", Short: "Reads a partition's replicas back from disk and compares them", Args: exactly(1, "TOPIC/N"),
		Long: `Has each replica of a partition read its log back from disk and verify it, and compares what they
have, and the state of producers and groups. The brokers do so by themselves, each partition once per compare_every;
this does it now, at the same rate (compare_rate), and waits for the result. Exit 1 when something is
different. A replica that differs from a majority is replaced by a fresh one; without a majority nothing is replaced.`,
		Example: "  parley partition compare orders/0\n  parley partition compare orders/0 --wait=false",
		RunE: func(cmd *cobra.Command, args []string) error {
			topic, n, err := topicPartition(args[0])
			if err != nil {
				return err
			}
			var passes uint64
			if err := a.request(cmd.Context(), func(ctx context.Context, c *client.Client) (err error) {
				passes, err = c.ComparePartition(ctx, topic, n)
				return err
			}); err != nil {
				return err
			}
			if !wait {
				if a.json() {
					return a.printJSON(comparedPartition{Topic: topic, Partition: n, Begun: true})
				}
				fmt.Fprintf(a.stdout, "the replicas of partition %s/%d are being compared: parley partition describe tells how far they are\n", topic, n)
				return nil
			}
			return a.awaitComparison(cmd.Context(), topic, n, passes)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", wait, "wait for the result")
	return cmd
}

// awaitComparison asks until one more comparison is through. A broker that can't be asked for a moment is asked again.
func (a *app) awaitComparison(ctx context.Context, topic string, n int32, passes uint64) error {
	tick := time.NewTicker(compareLook)
	defer tick.Stop()
	for {
		var d client.PartitionDescription
		err := a.request(ctx, func(ctx context.Context, c *client.Client) (err error) {
			d, err = c.DescribePartition(ctx, topic, n)
			return err
		})
		var e *client.Error
		switch {
		case err != nil && !(errors.As(err, &e) && e.Retriable):
			return err
		case err == nil && d.Comparison != nil && d.Comparison.Passes > passes:
			if a.json() {
				err = a.printJSON(comparedPartition{Topic: topic, Partition: n, Begun: true, Comparison: d.Comparison})
			} else {
				err = a.printComparison(d.Comparison)
			}
			if err == nil && d.Comparison.Result == "different" {
				err = errReported
			}
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// printComparison tells how the comparison of a partition's replicas stands.
func (a *app) printComparison(c *client.PartitionComparison) error {
	if c == nil {
		return nil
	}
	last := styled("never", yellow)
	switch c.Result {
	case "same":
		last = styled("all the same", green)
	case "incomplete":
		last = styled("the same, but in a part of the log at least not compared: "+strings.Join(c.Missing, ", "), yellow)
	case "different":
		last = styled("different", red)
	}
	t := newTable()
	t.row(str("replicas compared"), last)
	if c.Ended != "" {
		t.row(str("when"), str(c.Ended))
		what := fmt.Sprintf("offsets %d to %d, %s", c.From, c.UpTo-1, wire.FormatSize(c.Bytes))
		if c.UpTo <= c.From {
			what = "no records"
		}
		if c.State {
			what += ", and the state of producers and groups"
		}
		t.row(str("what"), str(what))
	}
	if c.Running {
		t.row(str("under way"), str(fmt.Sprintf("at offset %d", c.At)))
	}
	for _, d := range c.Differences {
		what := "state"
		if d.What == "records" {
			what = fmt.Sprintf("offsets %d to %d", d.From, d.To-1)
		}
		t.row(str(what), styled(d.Verdict, red))
		t.row(str("  found"), str(d.Found))
		for _, r := range d.Replicas {
			text := r.Digest
			if r.Odd != "" {
				text += "; " + r.Odd
			}
			one := str(text)
			if r.Bad {
				one.style = red
			}
			t.row(str("  "+r.Broker), one)
		}
		t.row(str("  to do"), str(d.Detail))
	}
	if c.More > 0 {
		t.row(str("more"), str(fmt.Sprintf("%d differences that are not listed", c.More)))
	}
	if c.Event != "" {
		t.row(str("last event"), str(c.EventAt+"  "+c.Event))
	}
	fmt.Fprintln(a.stdout)
	return a.printTable(t)
}
