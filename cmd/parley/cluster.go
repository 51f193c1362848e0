package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

func (a *app) brokerCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "broker", Short: "Lists and describes brokers, drains and removes them",
		Example: "  parley broker list\n  parley broker drain b3 --wait", RunE: needsSubcommand,
	}
	parent.AddCommand(
		&cobra.Command{
			Use: "list", Short: "Lists brokers", Args: cobra.NoArgs, Example: "  parley broker list -o json",
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
					brokers, err := c.Brokers(ctx)
					if err != nil {
						return err
					}
					if !a.json() {
						return a.printBrokers(brokers)
					}
					for _, b := range brokers {
						if err := a.printJSON(b); err != nil {
							return err
						}
					}
					return nil
				})
			},
		},
		&cobra.Command{
			Use: "describe NAME", Short: "Describes one broker", Args: exactly(1, "NAME"), Example: "  parley broker describe b1",
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
					b, err := c.DescribeBroker(ctx, args[0])
					if err != nil {
						return err
					}
					if a.json() {
						return a.printJSON(b)
					}
					t := newTable()
					t.row(str("name"), str(b.Name))
					t.row(str("id"), str(b.ID))
					t.row(str("incarnation"), str(b.Incarnation))
					t.row(str("state"), brokerState(b.State))
					t.row(str("reachable"), reachable(b.BrokerDescription))
					if b.Problem != "" {
						t.row(str("problem"), styled(b.Problem, red))
					}
					if b.RTTMicros > 0 {
						t.row(str("round trip"), str((time.Duration(b.RTTMicros) * time.Microsecond).String()))
					}
					t.row(str("version"), str(b.Version))
					t.row(str("clients"), str(b.Address))
					t.row(str("peers"), str(b.PeerAddress))
					t.row(str("raft"), str(b.RaftAddress))
					t.row(str("rack"), str(b.Rack))
					t.row(str("weight"), str(fmt.Sprint(b.Weight)))
					t.row(str("replicas"), str(fmt.Sprint(b.Replicas)))
					t.row(str("leaders"), str(fmt.Sprint(b.Leaders)))
					t.row(str("epoch"), str(fmt.Sprint(b.Epoch)))
					if err := a.printTable(t); err != nil || len(b.Partitions) == 0 {
						return err
					}
					fmt.Fprintln(a.stdout)
					return a.printPartitions(b.Partitions, true)
				})
			},
		},
		a.brokerDrain(), a.brokerResume(), a.brokerRemove(),
	)
	return parent
}

func brokerState(state string) cell {
	switch state {
	case "active":
		return styled(state, green)
	case "dead":
		return styled(state, red)
	}
	return styled(state, yellow)
}

func reachable(b client.BrokerDescription) cell {
	if b.Reachable {
		return str("yes")
	}
	return styled("no", red)
}

func (a *app) printBrokers(brokers []client.BrokerDescription) error {
	t := newTable("NAME", "STATE", "REACHABLE", "ADDRESS", "RACK", "WEIGHT", "REPLICAS", "LEADERS", "VERSION", "ID")
	for _, b := range brokers {
		t.row(str(b.Name), brokerState(b.State), reachable(b), str(b.Address), str(b.Rack), num(b.Weight), num(b.Replicas), num(b.Leaders), str(b.Version), str(b.ID))
	}
	return a.printTable(t)
}

func (a *app) clusterCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "cluster", Short: "The cluster at a glance, what is wrong with it, and balance",
		Example: "  parley cluster status\n  parley cluster health\n  parley cluster balance --dry-run", RunE: needsSubcommand,
	}
	parent.AddCommand(
		&cobra.Command{
			Use: "status", Short: "The cluster at a glance", Args: cobra.NoArgs, Example: "  parley cluster status -o json",
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
					s, err := c.Status(ctx)
					if err != nil {
						return err
					}
					if a.json() {
						return a.printJSON(s)
					}
					uneven := ""
					if s.Uneven {
						uneven = ", replicas are being evened out"
					}
					fmt.Fprintf(a.stdout, "cluster           %s\nepoch             %d\nfeature level     %d\ncouncil           %s\ntopics            %d\n"+
						"partitions        %d\nleaderless        %d\nunder-replicated  %d\nmoving            %d%s\n\n",
						s.ClusterID, s.Epoch, s.FeatureLevel, strings.Join(s.Council, ", "), s.Topics, s.Partitions, s.Leaderless, s.UnderReplicated, s.Moving, uneven)
					return a.printBrokers(s.Brokers)
				})
			},
		},
		&cobra.Command{
			Use: "health", Short: "Exit 0 when every partition has its leader and all its replicas in sync", Args: cobra.NoArgs,
			Example: "  parley cluster health || page-someone",
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
					h, err := c.Health(ctx)
					if err != nil {
						return err
					}
					if h.Problems == nil {
						h.Problems = []string{}
					}
					if a.json() {
						err = a.printJSON(h)
					} else {
						err = a.printHealth(h)
					}
					if err == nil && !h.Healthy {
						err = errReported
					}
					return err
				})
			},
		},
		a.clusterBalance(), a.clusterRaiseLevel(), a.clusterRecover(),
	)
	return parent
}

func (a *app) printHealth(h client.ClusterHealth) error {
	t := newTable()
	if h.Healthy {
		t.row(styled("healthy", green))
	} else {
		t.row(styled("not healthy", red))
	}
	for _, p := range h.Problems {
		t.row(styled("problem: "+p, red))
	}
	for _, w := range h.Warnings {
		t.row(styled("warning: "+w, yellow))
	}
	return a.printTable(t)
}
