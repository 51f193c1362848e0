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
		Use: "partition", Short: "Lists and describes partitions",
		Example: "  parley partition list orders", RunE: needsSubcommand,
	}
	parent.AddCommand(
		&cobra.Command{
			Use: "list [TOPIC]", Short: "Lists the partitions of one topic, or of all", Args: between(0, 1, "at most one TOPIC"),
			Example: "  parley partition list\n  parley partition list orders -o json",
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
					names := args
					if len(names) == 0 {
						for t, err := range c.ListTopics(ctx) {
							if err != nil {
								return err
							}
							names = append(names, t.Name)
						}
					}
					var all []client.PartitionDescription
					for _, name := range names {
						d, err := c.DescribeTopic(ctx, name)
						if err != nil {
							return err
						}
						for _, p := range d.Partitions {
							p.Topic = name
							all = append(all, p)
						}
					}
					if !a.json() {
						return a.printPartitions(all, true)
					}
					for _, p := range all {
						if err := a.printJSON(p); err != nil {
							return err
						}
					}
					return nil
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
					d, err := c.DescribeTopic(ctx, topic)
					if err != nil {
						return err
					}
					for _, p := range d.Partitions {
						if p.Partition != n {
							continue
						}
						p.Topic = topic
						if a.json() {
							return a.printJSON(p)
						}
						return a.printPartitions([]client.PartitionDescription{p}, true)
					}
					return &wire.Error{Code: 404, Reason: wire.ReasonPartNotFound,
						Description: fmt.Sprintf("topic %s has %d partitions: there is no partition %d", topic, len(d.Partitions), n)}
				})
			},
		},
	)
	return parent
}

func (a *app) printPartitions(all []client.PartitionDescription, withTopic bool) error {
	head := []string{"PARTITION", "LEADER", "TERM", "REPLICAS", "IN SYNC", "START", "NEXT", "SIZE", "PROBLEM"}
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
