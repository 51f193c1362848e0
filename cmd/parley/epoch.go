package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

func (a *app) epochCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "epoch", Short: "The history of the cluster's configuration",
		Long: `An epoch is one decided configuration of the cluster: brokers, topics, replicas.
Every change makes a new one; the history stays.`,
		Example: "  parley epoch list\n  parley epoch show 7\n  parley epoch diff 5 9", RunE: needsSubcommand,
	}
	parent.AddCommand(a.epochShow(), a.epochList(), a.epochDiff(), a.epochWatch())
	return parent
}

func epochNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, usagef("epoch %q: want a number", s)
	}
	return n, nil
}

func (a *app) epochShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [N]", Short: "Shows an epoch, or the newest", Args: between(0, 1, "at most one epoch N"),
		Example: "  parley epoch show\n  parley epoch show 3 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			var which *uint64
			if len(args) == 1 {
				n, err := epochNumber(args[0])
				if err != nil {
					return err
				}
				which = &n
			}
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				e, err := c.Epoch(ctx, which)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(e)
				}
				fmt.Fprintf(a.stdout, "epoch     %d\nchange    %s\nby        %s\nat        %s\nhash      %s\nprevious  %s\ncouncil   %s\n",
					e.Epoch, str(e.Change).text, str(e.By).text, e.At, e.Hash, str(e.Previous).text, strings.Join(e.Council, ", "))
				if len(e.Brokers) > 0 {
					fmt.Fprintln(a.stdout)
					t := newTable("BROKER", "STATE", "ADDRESS", "RACK", "WEIGHT", "ID")
					for _, b := range e.Brokers {
						t.row(str(b.Name), brokerState(b.State), str(b.Address), str(b.Rack), num(b.Weight), str(b.ID))
					}
					if err := a.printTable(t); err != nil {
						return err
					}
				}
				if len(e.Topics) > 0 {
					fmt.Fprintln(a.stdout)
					t := newTable("TOPIC", "PARTITIONS", "REPLICAS", "SUBJECTS", "CONFIG")
					for _, topic := range e.Topics {
						t.row(str(topic.Name), num(topic.Partitions), num(topic.Replicas), str(strings.Join(topic.Subjects, " ")), str(configText(topic.Config)))
					}
					return a.printTable(t)
				}
				return nil
			})
		},
	}
}

func (a *app) epochList() *cobra.Command {
	limit := 20
	cmd := &cobra.Command{
		Use: "list", Short: "Lists epochs, newest first", Args: cobra.NoArgs, Example: "  parley epoch list --limit 100",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usagef("--limit %d: want 1 or more", limit)
			}
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				t := newTable("EPOCH", "AT", "CHANGE", "BY", "HASH")
				n := 0
				for e, err := range c.Epochs(ctx) {
					if err != nil {
						return err
					}
					if a.json() {
						if err := a.printJSON(e); err != nil {
							return err
						}
					}
					t.row(epochRow(e)...)
					if n++; n == limit {
						break
					}
				}
				if a.json() {
					return nil
				}
				return a.printTable(t)
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", limit, "at most this `many`")
	return cmd
}

func epochRow(e client.EpochDescription) []cell {
	hash := e.Hash
	if len(hash) > 12 {
		hash = hash[:12]
	}
	return []cell{num(e.Epoch), str(e.At), str(e.Change), str(e.By), str(hash)}
}

// difference is one thing that two epochs have otherwise.
type difference struct {
	Kind   string `json:"kind"` // broker, topic, council
	Name   string `json:"name,omitempty"`
	Change string `json:"change"` // added, removed, altered
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

func (a *app) epochDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff N [M]", Short: "What epoch N changed, or what differs from N to M", Args: between(1, 2, "N, or N and M"),
		Example: "  parley epoch diff 7       what epoch 7 changed\n  parley epoch diff 3 7     what changed from 3 to 7",
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := epochNumber(args[0])
			if err != nil {
				return err
			}
			to := from
			if len(args) == 2 {
				if to, err = epochNumber(args[1]); err != nil {
					return err
				}
			} else if from == 0 {
				return usagef("epoch 0 is the first: there is none before it")
			} else {
				from--
			}
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				before, err := c.Epoch(ctx, &from)
				if err != nil {
					return err
				}
				after, err := c.Epoch(ctx, &to)
				if err != nil {
					return err
				}
				return a.printDifferences(from, to, differences(before, after))
			})
		},
	}
}

func (a *app) printDifferences(from, to uint64, found []difference) error {
	if a.json() {
		return a.printJSON(struct {
			From    uint64       `json:"from"`
			To      uint64       `json:"to"`
			Changes []difference `json:"changes"`
		}{from, to, found})
	}
	if len(found) == 0 {
		fmt.Fprintf(a.stderr, "epochs %d and %d say the same\n", from, to)
		return nil
	}
	t := newTable("", "KIND", "NAME", "BEFORE", "AFTER")
	for _, d := range found {
		mark := map[string]cell{"added": styled("+", green), "removed": styled("-", red)}[d.Change]
		if mark.text == "" {
			mark = styled("~", yellow)
		}
		t.row(mark, str(d.Kind), str(d.Name), str(d.Before), str(d.After))
	}
	return a.printTable(t)
}

func differences(before, after client.EpochDescription) []difference {
	found := []difference{}
	if !slices.Equal(before.Council, after.Council) {
		found = append(found, difference{Kind: "council", Change: "altered", Before: strings.Join(before.Council, ", "), After: strings.Join(after.Council, ", ")})
	}
	describe := func(e client.EpochDescription) (brokers, topics map[string]string) {
		brokers, topics = map[string]string{}, map[string]string{}
		for _, b := range e.Brokers {
			brokers[b.Name] = fmt.Sprintf("%s %s weight=%d rack=%s id=%s", b.State, b.Address, b.Weight, b.Rack, b.ID)
		}
		for _, t := range e.Topics {
			topics[t.Name] = strings.TrimRight(fmt.Sprintf("partitions=%d replicas=%d subjects=%s %s", t.Partitions, t.Replicas, strings.Join(t.Subjects, ","), configText(t.Config)), " ")
			if t.DeletedAt != 0 {
				topics[t.Name] += " deleted"
			}
		}
		return brokers, topics
	}
	oldBrokers, oldTopics := describe(before)
	newBrokers, newTopics := describe(after)
	for _, side := range []struct {
		kind     string
		old, new map[string]string
	}{{"broker", oldBrokers, newBrokers}, {"topic", oldTopics, newTopics}} {
		names := []string{}
		for name := range side.old {
			names = append(names, name)
		}
		for name := range side.new {
			if _, both := side.old[name]; !both {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			was, is := side.old[name], side.new[name]
			switch {
			case was == is:
			case was == "":
				found = append(found, difference{Kind: side.kind, Name: name, Change: "added", After: is})
			case is == "":
				found = append(found, difference{Kind: side.kind, Name: name, Change: "removed", Before: was})
			default:
				found = append(found, difference{Kind: side.kind, Name: name, Change: "altered", Before: was, After: is})
			}
		}
	}
	return found
}

// watchEvery is how often a watch asks for the newest epoch.
const watchEvery = 500 * time.Millisecond

func (a *app) epochWatch() *cobra.Command {
	return &cobra.Command{
		Use: "watch", Short: "Shows the newest epoch, then each new one, until interrupted", Args: cobra.NoArgs,
		Example: "  parley epoch watch -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer closeClient(c)
			tick := time.NewTicker(watchEvery)
			defer tick.Stop()
			next, first := uint64(0), true
			for {
				newest, err := c.Epoch(cmd.Context(), nil)
				if err != nil {
					if errors.Is(err, context.Canceled) {
						return nil
					}
					return err
				}
				if first {
					next, first = newest.Epoch, false
				}
				for ; next <= newest.Epoch; next++ {
					e, err := c.Epoch(cmd.Context(), &next)
					if err != nil {
						return err
					}
					e.Brokers, e.Topics = nil, nil
					if a.json() {
						err = a.printJSON(e)
					} else {
						_, err = fmt.Fprintf(a.stdout, "epoch %d  %s  %s  by %s\n", e.Epoch, e.At, e.Change, e.By)
					}
					if err != nil {
						return err
					}
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-tick.C:
				}
			}
		},
	}
}
