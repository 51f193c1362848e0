package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

func (a *app) groupCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "group", Short: "Lists, describes, resets and deletes consumer groups, and redrives dead letters",
		Example: "  parley group list\n  parley group describe orders billing",
		RunE:    needsSubcommand,
	}
	parent.AddCommand(a.groupList(), a.groupDescribe(), a.groupReset(), a.groupDelete(), a.groupRedrive())
	return parent
}

func (a *app) groupList() *cobra.Command {
	return &cobra.Command{
		Use: "list [TOPIC]", Short: "Lists groups, of one topic or of all", Args: between(0, 1, "at most one TOPIC"),
		Example: "  parley group list\n  parley group list orders -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			topic := strings.Join(args, "")
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.Groups(ctx, topic)
				if err != nil {
					return err
				}
				for _, p := range list.Problems {
					fmt.Fprintf(a.stderr, "parley: incomplete: %s\n", p)
				}
				if a.json() {
					for _, g := range list.Groups {
						if err := a.printJSON(g); err != nil {
							return err
						}
					}
					return nil
				}
				if len(list.Groups) == 0 {
					fmt.Fprintln(a.stderr, "no groups; parley sub TOPIC --group NAME makes one")
					return nil
				}
				t := newTable("TOPIC", "GROUP", "MODE", "MEMBERS", "LAG", "BEHIND", "PROBLEM")
				for _, g := range list.Groups {
					t.row(str(g.Topic), str(g.Group), str(g.Mode), known(g.Members), known(g.Lag), rightText(behind(g.Lag, g.LagMS)), alarm(g.Problem))
				}
				return a.printTable(t)
			})
		},
	}
}

// known is a number, or ? for one that nobody tells.
func known[N int | int64](n N) cell {
	if n < 0 {
		return rightText("?")
	}
	return num(n)
}

func alarm(problem string) cell {
	c := str(problem)
	if problem != "" {
		c.style = red
	}
	return c
}

// behind is how old the oldest record is that wasn't handled.
func behind(lag, ms int64) string {
	if lag < 0 {
		return "?"
	}
	if lag == 0 {
		return "-"
	}
	d := time.Duration(ms) * time.Millisecond
	if d >= time.Minute {
		return d.Round(time.Second).String()
	}
	return d.Round(time.Millisecond).String()
}

func (a *app) groupDescribe() *cobra.Command {
	return &cobra.Command{
		Use: "describe TOPIC GROUP", Short: "Describes a group: its members, and where it is in each partition", Args: exactly(2, "TOPIC GROUP"),
		Example: "  parley group describe orders billing -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				d, err := c.DescribeGroup(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(d)
				}
				return a.printGroup(&d)
			})
		},
	}
}

func (a *app) printGroup(d *client.GroupDescription) error {
	o := &d.Options
	lag := "?"
	if d.Lag >= 0 {
		lag = strconv.FormatInt(d.Lag, 10)
	}
	fmt.Fprintf(a.stdout, "topic       %s\ngroup       %s\nmode        %s\ngeneration  %d\nlag         %s\nbehind      %s\nsession     %s\n",
		d.Topic, d.Group, d.Mode, d.Generation, lag, behind(d.Lag, d.LagMS), time.Duration(o.SessionMS)*time.Millisecond)
	if o.AckWaitMS > 0 {
		fmt.Fprintf(a.stdout, "ack wait    %s\n", time.Duration(o.AckWaitMS)*time.Millisecond)
	}
	if o.MaxDeliveries > 0 {
		fmt.Fprintf(a.stdout, "deliveries  at most %d, then to %s\n", o.MaxDeliveries, o.DeadLetter)
	}
	if d.Problem != "" {
		fmt.Fprintf(a.stdout, "problem     %s\n", d.Problem)
	}
	fmt.Fprintln(a.stdout)
	t := newTable("MEMBER", "NAME", "HOST", "VERSION", "PARTITIONS")
	for _, m := range d.Members {
		t.row(str(m.ID), str(m.Name), str(m.Host), str(m.Version), str(partitionList(m.Partitions)))
	}
	if len(d.Members) == 0 && d.Problem != "" {
		fmt.Fprintln(a.stdout, "members unknown")
	} else if len(d.Members) == 0 {
		fmt.Fprintln(a.stdout, "no members")
	} else if err := a.printTable(t); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	t = newTable("PARTITION", "MEMBER", "COMMITTED", "NEXT", "LAG", "BEHIND", "PENDING", "REDELIVERING", "DEAD", "PROBLEM")
	for _, p := range d.Partitions {
		committed := num(p.Committed)
		if p.Committed < 0 {
			committed = rightText("-")
		}
		t.row(num(p.Partition), str(p.Member), committed, known(p.NextOffset), known(p.Lag), rightText(behind(p.Lag, p.LagMS)),
			known(p.Pending), known(p.Redelivering), num(p.DeadLetters), alarm(p.Problem))
	}
	return a.printTable(t)
}

// partitionList writes ascending numbers with ranges: 0-3,7.
func partitionList(ps []int32) string {
	var b strings.Builder
	for i := 0; i < len(ps); {
		j := i
		for j+1 < len(ps) && ps[j+1] == ps[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, ps[i])
		if j > i {
			fmt.Fprintf(&b, "-%d", ps[j])
		}
		i = j + 1
	}
	return b.String()
}

func (a *app) groupReset() *cobra.Command {
	var to string
	var partition int32
	cmd := &cobra.Command{
		Use: "reset TOPIC GROUP", Short: "Moves a group to another position", Args: exactly(2, "TOPIC GROUP"),
		Long: `Moves a group to another position, in all partitions or in one. Members may run meanwhile:
what they hold is void, and they go on from there. An offset belongs to one partition, unless the topic has
only one.`,
		Example: "  parley group reset orders billing --to earliest\n  parley group reset orders billing --to -1h\n  parley group reset orders billing --to 4711 --partition 2",
		RunE: func(cmd *cobra.Command, args []string) error {
			if to == "" {
				return usagef("--to is missing: want earliest, latest, an offset, a time such as 2026-01-31T12:00:00Z, or a span back such as -1h")
			}
			at, err := start("to", to, time.Now())
			if err != nil {
				return err
			}
			one := cmd.Flags().Changed("partition")
			if one && partition < 0 {
				return usagef("--partition %d: want 0 or more", partition)
			}
			return a.groupChange(cmd.Context(), func(ctx context.Context, c *client.Client) (client.GroupChange, error) {
				if one {
					return c.ResetGroupPartition(ctx, args[0], args[1], partition, at)
				}
				return c.ResetGroup(ctx, args[0], args[1], at)
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "`earliest|latest|OFFSET|RFC3339|-1h`")
	cmd.Flags().Int32Var(&partition, "partition", 0, "this partition `number` only")
	_ = cmd.RegisterFlagCompletionFunc("to", cobra.FixedCompletions([]string{"earliest", "latest"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// groupChange runs a change of a group and says what it changed.
func (a *app) groupChange(ctx context.Context, do func(context.Context, *client.Client) (client.GroupChange, error)) error {
	return a.request(ctx, func(ctx context.Context, c *client.Client) error {
		change, err := do(ctx, c)
		if err != nil {
			return err
		}
		if a.json() {
			return a.printJSON(change)
		}
		line := fmt.Sprintf("group %s of %s %s", change.Group, change.Topic, change.Change)
		if change.Detail != "" {
			line += ": " + change.Detail
		}
		_, err = fmt.Fprintln(a.stdout, line)
		return err
	})
}

func (a *app) groupDelete() *cobra.Command {
	yes := false
	cmd := &cobra.Command{
		Use: "delete TOPIC GROUP", Short: "Forgets a group and its positions", Args: exactly(2, "TOPIC GROUP"),
		Long:    "Forgets a group and its positions. Members that still run make it anew: stop them first.",
		Example: "  parley group delete orders billing --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := a.confirm(cmd.Context(), confirmation{
					fmt.Sprintf("delete group %s of %s", args[1], args[0]),
					fmt.Sprintf("Delete group %s of topic %s with its positions? Type its name:", args[1], args[0]), args[1], "nothing was deleted",
				}); err != nil {
					return err
				}
			}
			return a.groupChange(cmd.Context(), func(ctx context.Context, c *client.Client) (client.GroupChange, error) {
				// To the brokers deleting what isn't there is no error, so that it can be repeated. To a person it is a typing error.
				if _, err := c.DescribeGroup(ctx, args[0], args[1]); errors.Is(err, client.ErrGroupNotFound) {
					return client.GroupChange{}, err
				}
				return c.DeleteGroup(ctx, args[0], args[1])
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

func (a *app) groupRedrive() *cobra.Command {
	limit := 0
	cmd := &cobra.Command{
		Use: "redrive TOPIC GROUP", Short: "Puts dead letters back into the topic", Args: exactly(2, "TOPIC GROUP"),
		Long: `Puts the dead letters of a group back into its topic, under the key and headers that they had. They
come to the group, and to all others, as new records. It goes on where the last redrive ended; --timeout holds for
each request, not for the whole.`,
		Example: "  parley group redrive orders billing\n  parley group redrive orders billing --limit 100",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("limit") && limit < 1 {
				return usagef("--limit %d: want 1 or more", limit)
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer closeClient(c)
			n, err := c.RedriveGroup(cmd.Context(), args[0], args[1], limit)
			if err != nil {
				if n > 0 {
					fmt.Fprintf(a.stderr, "parley: %d dead letters were put back before that\n", n)
				}
				return err
			}
			if a.json() {
				return a.printJSON(struct {
					Topic    string `json:"topic"`
					Group    string `json:"group"`
					Redriven int    `json:"redriven"`
				}{args[0], args[1], n})
			}
			_, err = fmt.Fprintf(a.stdout, "%d dead letters of group %s put back into %s\n", n, args[1], args[0])
			return err
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so `many` (default: all)")
	return cmd
}
