package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/parleymq/parley/broker"
)

func (a *app) clusterRecover() *cobra.Command {
	dir, accept, yes := "", false, false
	cmd := &cobra.Command{
		Use: "recover --data-dir DIR --accept-data-loss", Short: "Makes a cluster of one broker's data, when a majority is gone for good", Args: cobra.NoArgs,
		Long: `For the day on which a majority of the council, or of a partition's replicas, is gone for good and
no copy of their disks is left. Makes a new cluster of one broker from the data directory of one that is
left, offline. It keeps its epochs and the partitions that it has a replica of, to the end of their Raft logs:
with all that it has on disk, acked or not; partitions that it has nothing of begin anew, empty. Everything
else is lost: records that only others had, deleted topics, and all other brokers. Those that are left must not be
started with their data again: empty them and let them join (parleyd --join).

Without --accept-data-loss it prints what would be lost, and changes nothing. Give it so on each
broker that is left, and choose the one whose logs end highest: by term, then by index. Make a copy of its directory first. Ended in the middle it is given again.`,
		Example: "  parley cluster recover --data-dir /var/lib/parley\n  parley cluster recover --data-dir /var/lib/parley --accept-data-loss",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usagef("--data-dir is missing: name the data directory of a broker that is left, and is stopped")
			}
			plan, err := broker.PlanRecovery(dir)
			if err != nil {
				return err
			}
			out := recovery(plan)
			if !a.json() {
				a.printRecovery(plan)
			}
			if !accept {
				if a.json() {
					if err := a.printJSON(out); err != nil {
						return err
					}
				}
				return errors.New("nothing was changed: give --accept-data-loss to do it")
			}
			// Where there is nobody to ask --accept-data-loss is what was said.
			if !yes && isTerminal(a.stdin) {
				if err := a.confirm(cmd.Context(), confirmation{
					"recover " + dir,
					fmt.Sprintf("Go on with what broker %s has, and lose the rest for good? Type the broker's name:", plan.Name), plan.Name, "nothing was changed",
				}); err != nil {
					return err
				}
			}
			log := zerolog.New(zerolog.ConsoleWriter{Out: a.stderr, NoColor: !a.colours(a.stderr), TimeFormat: "15:04:05"}).Level(zerolog.ErrorLevel).With().Timestamp().Logger()
			cur, err := broker.Recover(cmd.Context(), broker.Config{DataDir: dir, Logger: log, OnFatal: func(error) { os.Exit(exitFailed) }})
			if err != nil {
				return err
			}
			out.Epoch, out.Recovered = cur.Epoch, true
			if a.json() {
				return a.printJSON(out)
			}
			_, err = fmt.Fprintf(a.stdout, "\nbroker %s is a cluster of its own (epoch %d): start it, let others join, then give topics their replicas back\n", plan.Name, cur.Epoch)
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "data-dir", "", "`directory` of a broker that is left, and is stopped")
	cmd.Flags().BoolVar(&accept, "accept-data-loss", false, "do it: what the others had is lost for good")
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// recovered is a recovery as JSON.
type recovered struct {
	Name       string               `json:"name"`
	ClusterID  string               `json:"cluster_id"`
	Epoch      uint64               `json:"epoch"`
	Recovered  bool                 `json:"recovered"`
	Committed  bool                 `json:"committed_only"` // the log's end, beyond what was known to be committed, is left out
	Lost       []string             `json:"lost_brokers"`
	Partitions []recoveredPartition `json:"partitions"`
	Deleted    []string             `json:"lost_deleted_topics"`
}

type recoveredPartition struct {
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	Kept      bool   `json:"kept"`   // false: it begins anew, empty
	Copied    bool   `json:"copied"` // it was a copy in the making: more is missing than of others
	Others    int    `json:"other_replicas"`
	// Term and Index are of the last entry of its log: of two brokers that are left, the one whose are greater has more.
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
}

func recovery(plan broker.Recovery) recovered {
	out := recovered{Name: plan.Name, ClusterID: plan.Cluster, Epoch: plan.Epoch, Committed: plan.Committed, Lost: append([]string{}, plan.Lost...), Deleted: append([]string{}, plan.Deleted...)}
	for _, p := range plan.Partitions {
		out.Partitions = append(out.Partitions, recoveredPartition{Topic: p.Topic, Partition: p.Number, Kept: p.Replica != 0, Copied: p.Replica != 0 && !p.Voter, Others: len(p.Others), Term: p.Term, Index: p.Index})
	}
	return out
}

func (a *app) printRecovery(plan broker.Recovery) {
	fmt.Fprintf(a.stdout, "broker   %s\ncluster  %s\nepoch    %d\nlost     %s\n\n", plan.Name, plan.Cluster, plan.Epoch, strings.Join(plan.Lost, ", "))
	if plan.Begun {
		fmt.Fprintln(a.stdout, "A recovery of this directory was begun and not finished: it has to be gone on with.")
		fmt.Fprintln(a.stdout)
	}
	if plan.Committed {
		fmt.Fprintln(a.stdout, "This broker's Raft log has the store of earlier versions (Pebble), which can't be read beyond its commit indexes: what was")
		fmt.Fprintln(a.stdout, "acked in the last moments before the broker ended may be lost, too. How many entries are left out is said for each partition.")
		fmt.Fprintln(a.stdout)
	}
	t := newTable("PARTITION", "WHAT IS LEFT", "LOG ENDS (TERM/INDEX)")
	for _, p := range plan.Partitions {
		left := str("as this broker has it, to the end of its log; what only others had is lost")
		if plan.Committed {
			left = styled("as this broker knows it to be committed; what only others had is lost", yellow)
		}
		switch {
		case p.Replica == 0:
			left = styled("nothing: it begins anew, empty", red)
		case !p.Voter:
			left = styled("a copy that was being made: its end is probably missing", yellow)
		case len(p.Others) == 0:
			left = str("everything")
		}
		end := str("")
		if p.Index > 0 {
			end = str(fmt.Sprintf("%d/%d", p.Term, p.Index))
		}
		t.row(str(fmt.Sprintf("%s/%d", p.Topic, p.Number)), left, end)
	}
	_ = a.printTable(t)
	if len(plan.Deleted) > 0 {
		fmt.Fprintf(a.stdout, "\ndeleted topics that can't be restored any more: %s\n", strings.Join(plan.Deleted, ", "))
	}
}
