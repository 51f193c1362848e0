package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// drainLook is how often a broker that drains is looked at.
const drainLook = 500 * time.Millisecond

func (a *app) brokerDrain() *cobra.Command {
	wait := false
	cmd := &cobra.Command{
		Use: "drain NAME [--wait]", Short: "Has a broker give all its replicas to others", Args: exactly(1, "NAME"),
		Long: `Has a broker give all its replicas to others, in the background, while it goes on serving
what it still has. With --wait the command ends when the broker is empty; Ctrl-C ends the waiting, not
the draining. An empty broker can be stopped and removed (parley broker remove), or resumed.

It is refused for the last active broker, and for one that has the only live copy of a partition.`,
		Example: "  parley broker drain b3 --wait && parley broker remove b3",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer closeClient(c)
			change, err := within(cmd.Context(), a, func(ctx context.Context) (client.BrokerChange, error) { return c.DrainBroker(ctx, args[0]) })
			if err != nil {
				return err
			}
			if !wait {
				return a.printMember(change)
			}
			if !a.json() {
				if err := a.printMember(change); err != nil {
					return err
				}
			}
			left, err := a.awaitEmpty(cmd.Context(), c, args[0], change.Replicas)
			if err != nil {
				return err
			}
			change.Replicas, change.Epoch = left.Replicas, left.Epoch
			if a.json() {
				return a.printJSON(change)
			}
			_, err = fmt.Fprintf(a.stdout, "broker %s is empty (epoch %d)\n", args[0], left.Epoch)
			return err
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "until the broker is empty")
	return cmd
}

// within runs one request within --timeout.
func within[T any](ctx context.Context, a *app, do func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return do(ctx)
}

// awaitEmpty waits until a broker holds nothing.
func (a *app) awaitEmpty(ctx context.Context, c *client.Client, name string, had int) (client.BrokerDetails, error) {
	left := had
	states := make(chan int, 1) // the newest number of replicas, for the progress line
	states <- left
	end := a.watch(true, func() status {
		select {
		case left = <-states:
		default:
		}
		s := status{unit: "replicas given away", done: int64(max(0, had-left)), share: -1, note: fmt.Sprintf("%d left", left)}
		if had > 0 {
			s.share = float64(max(0, had-left)) / float64(had)
		}
		return s
	})
	defer end()
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for {
		d, err := within(ctx, a, func(ctx context.Context) (client.BrokerDetails, error) { return c.DescribeBroker(ctx, name) })
		switch {
		case err != nil:
			return d, err
		case d.Replicas == 0:
			return d, nil
		case d.State != "draining":
			return d, fmt.Errorf("broker %s is %s, somebody resumed it: it still holds %d replicas", name, d.State, d.Replicas)
		}
		select {
		case <-states:
		default:
		}
		states <- d.Replicas
		select {
		case <-tick.C:
		case <-ctx.Done():
			return d, fmt.Errorf("wait for broker %s: %w; it goes on draining", name, ctx.Err())
		}
	}
}

func (a *app) brokerResume() *cobra.Command {
	return &cobra.Command{
		Use: "resume NAME", Short: "Gives a broker that drains its share again", Args: exactly(1, "NAME"), Example: "  parley broker resume b3",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.member(cmd.Context(), func(ctx context.Context, c *client.Client) (client.BrokerChange, error) {
				return c.ResumeBroker(ctx, args[0])
			})
		},
	}
}

func (a *app) brokerRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Takes an empty or a dead broker out of the cluster, for good", Args: exactly(1, "NAME"),
		Long: `Takes a broker out of the cluster, for good: its id is never given out again, and it is
refused with the data directory that it has. The machine may join with an empty one.

The broker must be empty (parley broker drain) or dead. A dead one's replicas are taken over by others
first; those that no other broker can take are given up, unless that costs a partition its majority.`,
		Example: "  parley broker drain b3 --wait && parley broker remove b3",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.member(cmd.Context(), func(ctx context.Context, c *client.Client) (client.BrokerChange, error) {
				return c.RemoveBroker(ctx, args[0])
			})
		},
	}
}

// member runs one change of a broker and says what it changed.
func (a *app) member(ctx context.Context, do func(context.Context, *client.Client) (client.BrokerChange, error)) error {
	return a.request(ctx, func(ctx context.Context, c *client.Client) error {
		change, err := do(ctx, c)
		if err != nil {
			return err
		}
		return a.printMember(change)
	})
}

func (a *app) printMember(change client.BrokerChange) error {
	if a.json() {
		return a.printJSON(change)
	}
	line := fmt.Sprintf("broker %s %s", change.Name, change.Change)
	switch {
	case change.Change == "draining" || change.Change == "unchanged" && change.Replicas > 0:
		line += fmt.Sprintf(", it holds %d replicas", change.Replicas)
	case change.Change == "removing":
		line += ", ask again"
	}
	if change.Detail != "" {
		line += ": " + change.Detail
	}
	if change.Epoch != 0 {
		line += fmt.Sprintf(" (epoch %d)", change.Epoch)
	}
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}
