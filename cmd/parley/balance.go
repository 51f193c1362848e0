package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

func (a *app) clusterBalance() *cobra.Command {
	dryRun := false
	cmd := &cobra.Command{
		Use: "balance [--dry-run]", Short: "Evens out what brokers hold: the plan, and then its carrying out", Args: cobra.NoArgs,
		Long: `Plans what has to move until each broker holds its share by weight, and prints it: the moves
and why, replicas and bytes before and after. Then, unless it is a dry run, it is carried out in the
background, some partitions at a time; parley cluster status and parley partition list tell how far it is.

After a broker has joined or come back this happens by itself. It is needed after partitions were
moved by hand, or weights were changed.`,
		Example: "  parley cluster balance --dry-run\n  parley cluster balance",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				plan, err := c.Balance(ctx, dryRun)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(plan)
				}
				return a.printPlan(plan)
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show the plan")
	return cmd
}

func (a *app) printPlan(plan client.BalancePlan) error {
	none := func(name string) cell {
		if name == "" {
			return str("")
		}
		return str(name)
	}
	if len(plan.Moves) > 0 {
		t := newTable("PARTITION", "FROM", "TO", "SIZE", "WHY")
		for _, m := range plan.Moves {
			t.row(str(fmt.Sprintf("%s/%d", m.Topic, m.Partition)), none(m.From), none(m.To), rightText(wire.FormatSize(m.Bytes)), str(m.Why))
		}
		if err := a.printTable(t); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout)
	}
	if len(plan.Leaders) > 0 {
		t := newTable("PREFERRED LEADER OF", "FROM", "TO", "WHY")
		for _, m := range plan.Leaders {
			t.row(str(fmt.Sprintf("%s/%d", m.Topic, m.Partition)), none(m.From), none(m.To), str(m.Why))
		}
		if err := a.printTable(t); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout)
	}
	if plan.More > 0 {
		fmt.Fprintf(a.stdout, "and %d more\n\n", plan.More)
	}
	t := newTable("BROKER", "REPLICAS", "AFTER", "BYTES", "AFTER", "LEADERS", "AFTER")
	for _, b := range plan.Brokers {
		t.row(str(b.Name), num(b.ReplicasBefore), num(b.ReplicasAfter), rightText(wire.FormatSize(b.BytesBefore)), rightText(wire.FormatSize(b.BytesAfter)),
			num(b.LeadersBefore), num(b.LeadersAfter))
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	for _, h := range plan.Held {
		fmt.Fprintf(a.stdout, "not now: %s/%d: %s\n", h.Topic, h.Partition, h.Why)
	}
	what := map[string]string{
		"planned":   "nothing was changed: %d replicas would move, %s to copy (epoch %d)",
		"begun":     "begun: %d replicas move, %s to copy (epoch %d)",
		"unchanged": "nothing to do: %d replicas to move, %s to copy (epoch %d)",
	}[plan.Change]
	moves := len(plan.Moves)
	if plan.More > 0 && len(plan.Leaders) == 0 {
		moves += plan.More
	}
	_, err := fmt.Fprintf(a.stdout, "\n"+what+"\n", moves, wire.FormatSize(plan.Bytes), plan.Epoch)
	return err
}

func (a *app) partitionMove() *cobra.Command {
	to := ""
	cmd := &cobra.Command{
		Use: "move TOPIC/N --to BROKER,…", Short: "Moves a partition's replicas to other brokers", Args: exactly(1, "TOPIC/N"),
		Long: `Moves the replicas of a partition to the brokers that are named, the preferred leader
first. The move is decided as an epoch; the brokers carry it out in the background: new replicas are copied
and take part before any old one goes. A move that is under way is replaced; naming the brokers that
the partition is on takes it back. parley partition describe tells how far it is.`,
		Example: "  parley partition move orders/0 --to b1,b2,b4",
		RunE: func(cmd *cobra.Command, args []string) error {
			topic, n, err := topicPartition(args[0])
			if err != nil {
				return err
			}
			if to == "" {
				return usagef("--to is missing: name as many brokers as the partition has replicas, separated by commas")
			}
			var names []string
			for name := range strings.SplitSeq(to, ",") {
				names = append(names, strings.TrimSpace(name))
			}
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				change, err := c.MovePartition(ctx, topic, n, names)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(change)
				}
				what := map[string]string{
					"moving": "moves to %s", "reordered": "stays on %s, the first of which is to lead", "unchanged": "is on, or on its way to, %s",
				}[change.Change]
				line := fmt.Sprintf("partition %s/%d "+what, topic, n, strings.Join(change.Replicas, ","))
				if change.Detail != "" {
					line += ": " + change.Detail
				}
				_, err = fmt.Fprintf(a.stdout, "%s (epoch %d)\n", line, change.Epoch)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the `brokers` that are to have it, separated by commas")
	return cmd
}

// moveText says in a few words how far a move is.
func moveText(m *wire.PartitionMove) string {
	if m == nil {
		return ""
	}
	text := m.Phase + " to " + strings.Join(m.Target, ",")
	var have, of int64
	for _, c := range m.Adding {
		have += c.Bytes
		of += c.OfBytes
	}
	if of > 0 && m.Phase == "copying" {
		text += fmt.Sprintf(" %d%%", min(have*100/of, 100))
	}
	if m.Detail != "" {
		text += " (" + m.Detail + ")"
	}
	return text
}
