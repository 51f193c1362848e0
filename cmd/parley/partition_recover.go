package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

func (a *app) partitionRecover() *cobra.Command {
	q := client.RecoverRequest{}
	yes := false
	cmd := &cobra.Command{
		Use: "recover TOPIC/N --accept-data-loss", Short: "Gives a partition that has lost its majority for good a new beginning", Args: exactly(1, "TOPIC/N"),
		Long: `For a partition whose brokers, or their disks, are gone for good, so that it has no majority and no leader
any more, in a cluster that is well otherwise. It asks the brokers that are left what they have of it, and
chooses the replica whose log reaches furthest. The partition goes on with all that this one has on disk, acked or
not, as a new Raft group, and gets its other replicas back; what only others had is lost. Where nothing is left it begins anew, empty,
at an offset above all that can ever have been given out, so that no offset stands for two records: readers of older
ones are told that they are out of range, and groups go on from there.

Replicas that are not gone on with are given up: should their brokers come back, what they have of the partition
is deleted after the grace (trash-grace). As long as one of them may come back, wait, or copy its data directory first.

Without --accept-data-loss it prints what is left and what may be lost, and changes nothing. When a majority of the
council is gone, too, see parley cluster recover.`,
		Example: "  parley partition recover orders/3\n  parley partition recover orders/3 --accept-data-loss\n  parley partition recover orders/3 --from b2 --accept-data-loss",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if q.Topic, q.Partition, err = topicPartition(args[0]); err != nil {
				return err
			}
			if q.Empty && q.From != "" {
				return usagef("--from and --empty: give one of them")
			}
			accept := q.Accept
			q.Accept = false
			var plan client.PartitionRecovery
			ask := func(ctx context.Context, c *client.Client) (err error) {
				plan, err = c.RecoverPartition(ctx, q)
				return err
			}
			if err := a.request(cmd.Context(), ask); err != nil {
				return err
			}
			if !accept || !a.json() {
				if err := a.printPartitionRecovery(plan); err != nil {
					return err
				}
			}
			if !accept {
				return errors.New("nothing was changed: give --accept-data-loss to do it")
			}
			if !yes {
				if err := a.confirm(cmd.Context(), confirmation{
					"recover partition " + args[0],
					"Go on with that, and lose the rest for good? Type the partition's name:", args[0], "nothing was changed",
				}); err != nil {
					return err
				}
			}
			// What was shown is what is done.
			if q.Accept = true; plan.From != "" {
				q.From = plan.From
			} else {
				q.Empty = true
			}
			if err := a.request(cmd.Context(), ask); err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(plan)
			}
			_, err = fmt.Fprintf(a.stdout, "\npartition %s %s (epoch %d)\n", args[0], recoveryText(plan), plan.Epoch)
			return err
		},
	}
	cmd.Flags().StringVar(&q.From, "from", "", "go on with this `broker`'s replica, instead of the one whose log reaches furthest")
	cmd.Flags().BoolVar(&q.Empty, "empty", false, "begin anew, whatever is left")
	cmd.Flags().BoolVar(&q.Accept, "accept-data-loss", false, "do it: what is not gone on with is lost for good")
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

func recoveryText(r client.PartitionRecovery) string {
	if r.From != "" {
		return fmt.Sprintf("goes on with the replica of %s, and gets others as far as there are brokers", r.From)
	}
	return fmt.Sprintf("begins anew, empty, at offset %s on %s", grouped(fmt.Sprint(r.NextOffset)), strings.Join(r.To, ","))
}

func (a *app) printPartitionRecovery(r client.PartitionRecovery) error {
	if a.json() {
		return a.printJSON(r)
	}
	t := newTable("BROKER", "REACHABLE", "LOG ENDS (TERM/INDEX)", "NEXT OFFSET", "SIZE", "PROBLEM")
	for _, s := range r.Replicas {
		reach, end, next, size := str("yes"), str(fmt.Sprintf("%d/%d", s.Term, s.Index)), num(s.NextOffset), rightText(wire.FormatSize(s.Bytes))
		if !s.Reachable {
			reach, end, next, size = styled("no", red), str(""), str(""), str("")
		}
		t.row(str(s.Broker), reach, end, next, size, styled(s.Problem, yellow))
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	what := "begins anew, empty"
	if r.From != "" {
		what = "goes on with the replica of " + r.From
	} else if r.NextOffset > 0 {
		what += fmt.Sprintf(", at offset %s on %s", grouped(fmt.Sprint(r.NextOffset)), strings.Join(r.To, ","))
	}
	_, err := fmt.Fprintf(a.stdout, "\npartition %s/%d %s\nmay be lost: %s\n\n", r.Topic, r.Partition, what, r.Loss)
	return err
}
