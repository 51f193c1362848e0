package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// checkRecords is how many records are written where no number is given.
const checkRecords = 100_000

func (a *app) checkCommand() *cobra.Command {
	var f struct {
		records  int64
		duration time.Duration
		giveUp   time.Duration
		progress bool
	}
	cmd := &cobra.Command{
		Use: "check TOPIC", Short: "Writes numbered records and reads all back: lost, duplicated, reordered", Args: exactly(1, "TOPIC"),
		Long: `Writes numbered records to every partition of a topic, reads all back and compares.
Kill and restart brokers meanwhile: nothing that was acked may be lost, duplicated
or out of order. Other records of the topic are left out of the count. A record that is
given up ends the writing. Exit 1 if anything is wrong.`,
		Example: "  parley check orders\n  parley check orders --duration 10m -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			changed := cmd.Flags().Changed
			switch {
			case changed("records") && f.records < 1:
				return usagef("--records %d: want 1 or more", f.records)
			case changed("duration") && f.duration <= 0:
				return usagef("--duration %s: want a span above zero such as 10m", f.duration)
			case f.giveUp <= 0:
				return usagef("--give-up %s: want a span above zero such as 2m", f.giveUp)
			}
			if f.records == 0 && f.duration == 0 {
				f.records = checkRecords
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer closeClient(c)
			k, err := newCheck(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			end := a.watch(f.progress, func() status { return k.status(f.records) })
			v, failed, err := k.run(cmd.Context(), f.records, f.duration, f.giveUp)
			end()
			if errors.Is(interrupted(cmd.Context(), err), errInterrupted) {
				return fmt.Errorf("%w: %d records were acked, and not all of them read back", errInterrupted, k.acked.Load())
			}
			if err != nil {
				return err
			}
			if failed > 0 {
				fmt.Fprintf(a.stderr, "%d records failed: they count neither as acked nor as lost; the first: %v\n", failed, k.failure())
			}
			if a.json() {
				err = a.printJSON(v)
			} else {
				t := newTable()
				v.table(t)
				err = a.printTable(t)
			}
			if err == nil && (!v.clean() || failed > 0) {
				err = errReported
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Int64Var(&f.records, "records", 0, "write so `many` (default 100000, without --duration)")
	flags.DurationVar(&f.duration, "duration", 0, "write for so `long`")
	flags.DurationVar(&f.giveUp, "give-up", client.DefaultGiveUp, "how long a record is retried")
	flags.BoolVar(&f.progress, "progress", false, "show progress also where stderr is no terminal")
	return cmd
}

// check is one run of numbered records.
type check struct {
	c      *client.Client
	topic  string
	prefix string // of each value: this run's, so that others' records are told apart

	ledgers []*ledger // by partition
	starts  map[int32]int64

	onAck func(partition int) // nil: nobody wants to know

	acked, failed, read atomic.Int64
	first               atomic.Pointer[error]
}

// checkBlock records in turn go to one partition, so that batches fill.
const checkBlock = 500

func newCheck(ctx context.Context, c *client.Client, topic string) (*check, error) {
	d, err := c.DescribeTopic(ctx, topic)
	if err != nil {
		return nil, err
	}
	k := &check{c: c, topic: topic, prefix: fmt.Sprintf("check %016x ", rand.Uint64()), starts: map[int32]int64{}}
	for _, p := range d.Partitions {
		b, err := c.Bounds(ctx, topic, p.Partition)
		if err != nil {
			return nil, err
		}
		k.starts[p.Partition] = b.Next
		k.ledgers = append(k.ledgers, newLedger())
	}
	return k, nil
}

func (k *check) failure() error {
	if err := k.first.Load(); err != nil {
		return *err
	}
	return nil
}

func (k *check) status(records int64) status {
	s := status{done: k.acked.Load(), unit: "records acked", share: -1}
	if records > 0 {
		s.share = float64(s.done) / float64(records)
	}
	if n := k.read.Load(); n > 0 {
		s.note = grouped(strconv.FormatInt(n, 10)) + " read back"
	}
	return s
}

// run writes and reads back. failed records are those that were given up.
func (k *check) run(ctx context.Context, records int64, duration, giveUp time.Duration) (v verdict, failed int64, err error) {
	if err := k.write(ctx, records, duration, giveUp); err != nil {
		return v, 0, err
	}
	if err := k.readBack(ctx); err != nil {
		return v, 0, err
	}
	v.Acked = k.acked.Load()
	for _, l := range k.ledgers {
		v.Read += l.read
		v.Lost += l.lost()
		v.Duplicated += l.duplicated
		v.Reordered += l.reordered
	}
	return v, k.failed.Load(), nil
}

func (k *check) write(ctx context.Context, records int64, duration, giveUp time.Duration) error {
	p, err := k.c.NewProducer(ctx, k.topic, client.PartitionBy(client.ByRecord), client.GiveUp(giveUp))
	if err != nil {
		return err
	}
	next := make([]int64, len(k.ledgers))    // number of the next record, by partition
	settled := make([]int64, len(k.ledgers)) // number of the next ack, by partition: they come in order
	settle := make([]func(client.Ack, error), len(k.ledgers))
	for i, l := range k.ledgers {
		settle[i] = func(_ client.Ack, err error) {
			n := settled[i]
			settled[i]++
			if err != nil {
				k.failed.Add(1)
				k.first.CompareAndSwap(nil, &err)
				return
			}
			l.acked.set(n)
			k.acked.Add(1)
			if k.onAck != nil {
				k.onAck(i)
			}
		}
	}
	begin := time.Now()
	var value []byte
	for n := int64(0); records == 0 || n < records; n++ {
		if n%checkBlock == 0 && (duration > 0 && time.Since(begin) >= duration || k.failed.Load() > 0) {
			break // what follows a record that was given up would fare no better
		}
		partition := n / checkBlock % int64(len(k.ledgers))
		value = strconv.AppendInt(append(value[:0], k.prefix...), next[partition], 10)
		if err := p.SendFunc(ctx, client.Record{Value: value, Partition: int32(partition)}, settle[partition]); err != nil {
			closed, cancel := context.WithCancel(ctx)
			cancel() // nothing more is worth waiting for
			_ = p.Close(closed)
			return err
		}
		next[partition]++
	}
	return p.Close(ctx)
}

func (k *check) readBack(ctx context.Context) error {
	r, err := k.c.NewReader(ctx, k.topic, client.FromOffsets(k.starts), client.UntilEnd())
	if err != nil {
		return err
	}
	defer func() { _ = r.Close(context.Background()) }() // never fails
	prefix := []byte(k.prefix)
	for {
		batch, err := r.NextBatch(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range batch {
			m := &batch[i]
			rest, ours := bytes.CutPrefix(m.Value, prefix)
			if !ours || int(m.Partition) >= len(k.ledgers) {
				continue
			}
			n, err := strconv.ParseInt(string(rest), 10, 64)
			if err != nil || n < 0 {
				return fmt.Errorf("record %d of %s/%d was changed: %q", m.Offset, m.Topic, m.Partition, m.Value)
			}
			k.ledgers[m.Partition].observe(n)
			k.read.Add(1)
		}
	}
}
