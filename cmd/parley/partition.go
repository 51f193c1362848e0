package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

func (a *app) partitionCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "partition", Short: "Lists, describes and compares partitions, moves them and their leaders, recovers lost ones",
		Example: "  parley partition list orders\n  parley partition transfer orders/0 --to b2", RunE: needsSubcommand,
	}
	parent.AddCommand(
		&cobra.Command{
			Use: "list [TOPIC]", Short: "Lists the partitions of one topic, or of all", Args: between(0, 1, "at most one TOPIC"),
			Example: "  parley partition list\n  parley partition list orders -o json",
			RunE: func(cmd *cobra.Command, args []string) error {
				topic := ""
				if len(args) == 1 {
					topic = args[0]
				}
				return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
					var all []client.PartitionDescription
					for p, err := range c.Partitions(ctx, topic) {
						if err != nil {
							return err
						}
						if !a.json() {
							all = append(all, p)
						} else if err := a.printJSON(p); err != nil {
							return err
						}
					}
					if a.json() {
						return nil
					}
					return a.printPartitions(all, true)
				})
			},
		},
		&cobra.Command{
			Use: "describe TOPIC/N", Short: "Describes one partition", Args: exactly(1, "TOPIC/N"),
			Example: "  parley partition describe orders/0",
			RunE: func(cmd *cobra.Command, args []string) error {
				topic, n, err := topicPartition(args[0])
				if err != nil {
					return err
				}
				return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
					p, err := c.DescribePartition(ctx, topic, n)
					if err != nil {
						return err
					}
					if a.json() {
						return a.printJSON(p)
					}
					if err := a.printPartitions([]client.PartitionDescription{p}, true); err != nil {
						return err
					}
					return a.printComparison(p.Comparison)
				})
			},
		},
		a.partitionTransfer(), a.partitionMove(), a.partitionCompare(), a.partitionRecover(),
	)
	return parent
}

func (a *app) partitionTransfer() *cobra.Command {
	to := ""
	cmd := &cobra.Command{
		Use: "transfer TOPIC/N --to BROKER", Short: "Moves a partition's leadership to a broker that has a replica", Args: exactly(1, "TOPIC/N"),
		Long: `Moves the leadership of a partition to a broker that has a replica of it. The broker
becomes the partition's preferred leader, by an epoch: the leadership stays there, and comes back
after a restart of the broker.`,
		Example: "  parley partition transfer orders/0 --to b2",
		RunE: func(cmd *cobra.Command, args []string) error {
			topic, n, err := topicPartition(args[0])
			if err != nil {
				return err
			}
			if to == "" {
				return usagef("--to is missing: name the broker that is to lead")
			}
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				change, err := c.TransferPartition(ctx, topic, n, to)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(change)
				}
				what := fmt.Sprintf("partition %s/%d is led by %s", topic, n, change.Leader)
				if change.Change == "unchanged" {
					what += " already"
				}
				if change.Detail != "" {
					what += ": " + change.Detail
				}
				fmt.Fprintf(a.stdout, "%s (epoch %d)\n", what, change.Epoch)
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the `broker` that is to lead")
	return cmd
}

func (a *app) printPartitions(all []client.PartitionDescription, withTopic bool) error {
	moving := slices.ContainsFunc(all, func(p client.PartitionDescription) bool { return p.Move != nil })
	head := []string{"PARTITION", "LEADER", "TERM", "REPLICAS", "IN SYNC", "START", "NEXT", "SIZE", "PROBLEM"}
	if moving {
		head = slices.Insert(head, 5, "MOVE")
	}
	if withTopic {
		head = append([]string{"TOPIC"}, head...)
	}
	t := newTable(head...)
	trouble := false
	for _, p := range all {
		leader := str(p.Leader)
		if p.Leader == "" {
			leader = styled("none", red)
		}
		sync := str(strings.Join(p.InSync, ","))
		if len(p.InSync) < len(p.Replicas) {
			sync.style = yellow
		}
		problem := styled(p.Problem, red)
		trouble = trouble || p.Problem != ""
		row := []cell{num(p.Partition), leader, num(p.Term), str(strings.Join(p.Replicas, ",")), sync,
			num(p.StartOffset), num(p.NextOffset), rightText(wire.FormatSize(p.Bytes)), problem}
		if moving {
			row = slices.Insert(row, 5, str(moveText(p.Move)))
		}
		if withTopic {
			row = slices.Insert(row, 0, str(p.Topic))
		}
		t.row(row...)
	}
	if !trouble {
		t.head = t.head[:len(t.head)-1]
		for i, r := range t.rows {
			t.rows[i] = r[:len(r)-1]
		}
	}
	return a.printTable(t)
}
