package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

func (a *app) clusterRaiseLevel() *cobra.Command {
	dryRun, yes, to := false, false, uint32(0)
	cmd := &cobra.Command{
		Use: "raise-level [--dry-run]", Short: "Ends an upgrade: the cluster uses what only newer versions understand", Args: cobra.NoArgs,
		Long: `Raises the cluster's feature level to the newest that all brokers know. Until then brokers of a newer
version write nothing that the version before can't read: each of them can be stopped and started
again with the older program. Afterwards there is no way back: an older program refuses to start on what
it can't read, and must not be used again in this cluster.

So do it once the new version has proven itself, and before you go on to the next one. Dead brokers
aren't waited for; they have to come back with a version that knows the level.

With --dry-run it only says which level each broker knows, and what the new one brings.`,
		Example: "  parley cluster raise-level --dry-run\n  parley cluster raise-level --yes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := a.raiseLevel(cmd.Context(), to, true)
			if err != nil {
				return err
			}
			if dryRun || plan.Change == "unchanged" {
				return a.printLevel(plan)
			}
			if plan.Blocked != "" {
				return errors.New(plan.Blocked)
			}
			if !yes {
				if isTerminal(a.stdin) {
					if err := a.printLevel(plan); err != nil {
						return err
					}
				}
				if err := a.confirm(cmd.Context(), confirmation{
					fmt.Sprintf("raise the feature level to %d", plan.To),
					"Raise it, with no way back? Type the new level:", fmt.Sprint(plan.To), "the level stays",
				}); err != nil {
					return err
				}
			}
			change, err := a.raiseLevel(cmd.Context(), plan.To, false)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(change)
			}
			_, err = fmt.Fprintf(a.stdout, "feature level %d, it was %d (epoch %d)\n", change.To, plan.From, change.Epoch)
			return err
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would change")
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	cmd.Flags().Uint32Var(&to, "to", 0, "the `level` to rise to (default: the newest that all brokers know)")
	return cmd
}

func (a *app) raiseLevel(ctx context.Context, to uint32, dryRun bool) (change client.LevelChange, err error) {
	err = a.request(ctx, func(ctx context.Context, c *client.Client) error {
		change, err = c.RaiseLevel(ctx, to, dryRun)
		return err
	})
	return change, err
}

// printLevel prints what a change of the level means.
func (a *app) printLevel(l client.LevelChange) error {
	if a.json() {
		return a.printJSON(l)
	}
	t := newTable("BROKER", "STATE", "KNOWS LEVEL")
	for _, b := range l.Brokers {
		knows := str(fmt.Sprint(b.Knows))
		if !b.Told {
			knows = styled("no answer", yellow)
		}
		t.row(str(b.Name), brokerState(b.State), knows)
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	text := ""
	switch {
	case l.Blocked != "":
		text = fmt.Sprintf("the feature level is %d and can't rise now: %s", l.From, l.Blocked)
	case l.To == l.From:
		text = fmt.Sprintf("the feature level is %d: all brokers know that, and nothing newer", l.From)
	default:
		text = fmt.Sprintf("the feature level is %d and can rise to %d, which brings\n  %s\n"+
			"Until it rises each broker can be taken back to a version that knows level %d. Afterwards there is no way back.",
			l.From, l.To, strings.Join(l.Brings, "\n  "), l.From)
	}
	_, err := fmt.Fprintf(a.stdout, "\n%s\n", text)
	return err
}
