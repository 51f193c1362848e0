package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// exportAtOnce is how many partitions are read or written at the same time.
const exportAtOnce = 4

func (a *app) topicExport() *cobra.Command {
	return &cobra.Command{
		Use: "export NAME DIR", Short: "Writes a topic's records to files", Args: exactly(2, "NAME and DIR"),
		Long: `Writes all records that a topic has now to a directory: its batches as they are stored, one file
for each partition, and a manifest with checksums. What is published meanwhile is not in it. Ended in the
middle, by whatever, the same command goes on where it was.`,
		Example: "  parley topic export orders ./orders.export\n  parley topic import ./orders.export orders-copy",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer closeClient(c)
			m, resumed, err := a.beginExport(cmd.Context(), c, args[0], args[1])
			if err != nil {
				return err
			}
			return a.copyPartitions(cmd.Context(), "exported", args[1], &m, resumed, func(ctx context.Context, n int, done *copied) error {
				return exportPartition(ctx, c, args[1], &m, n, done)
			}, func() error {
				m.Complete = true
				return m.save(args[1])
			})
		},
	}
}

// beginExport makes or finds the manifest. resumed says that there was one.
func (a *app) beginExport(ctx context.Context, c *client.Client, topic, dir string) (m manifest, resumed bool, err error) {
	d, err := within(ctx, a, func(ctx context.Context) (client.TopicDescription, error) { return c.DescribeTopic(ctx, topic) })
	if err != nil {
		return m, false, err
	}
	s, err := within(ctx, a, func(ctx context.Context) (client.ClusterStatus, error) { return c.Status(ctx) })
	if err != nil {
		return m, false, err
	}
	m, err = readManifest(dir)
	switch {
	case err == nil && m.Complete:
		return m, false, fmt.Errorf("%s holds a complete export of topic %s already: give another directory", dir, m.Topic)
	case err == nil && (m.Topic != topic || m.Cluster != s.ClusterID || len(m.Partitions) != len(d.Partitions)):
		return m, false, fmt.Errorf("%s holds an export of topic %s of cluster %s with %d partitions, which was not finished: give another directory", dir, m.Topic, m.Cluster, len(m.Partitions))
	case err == nil:
		return m, true, nil
	case !errors.Is(err, os.ErrNotExist):
		return m, false, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return m, false, err
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		return m, false, errors.Join(fmt.Errorf("%s is not an empty directory, and holds no export", dir), err)
	}
	m = manifest{Format: exportFormat, Cluster: s.ClusterID, Topic: topic, Subjects: d.Subjects, Config: d.Config, At: time.Now().UTC().Format(time.RFC3339)}
	for n := range d.Partitions {
		b, err := within(ctx, a, func(ctx context.Context) (client.Bounds, error) { return c.Bounds(ctx, topic, int32(n)) })
		if err != nil {
			return m, false, err
		}
		m.Partitions = append(m.Partitions, exportedPartition{File: partitionFile(n), Start: b.Start, Until: b.Next, First: -1})
	}
	return m, false, m.save(dir)
}

// copied counts what has been copied, for the progress line.
type copied struct{ records, bytes atomic.Int64 }

// copyPartitions copies all partitions, some at a time, then finishes and says what was done.
func (a *app) copyPartitions(ctx context.Context, verb, dir string, m *manifest, resumed bool, one func(context.Context, int, *copied) error, finish func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var done copied
	all := int64(0)
	for _, p := range m.Partitions {
		all += p.Until - p.Start
	}
	end := a.watch(false, func() status {
		s := status{done: done.records.Load(), bytes: done.bytes.Load(), unit: "records", share: -1}
		if all > 0 {
			s.share = min(1, float64(s.done)/float64(all))
		}
		return s
	})
	began := time.Now()
	room := make(chan struct{}, exportAtOnce)
	errs := make([]error, len(m.Partitions))
	var wg sync.WaitGroup
	for n := range m.Partitions {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			if ctx.Err() == nil {
				if errs[n] = one(ctx, n, &done); errs[n] != nil {
					cancel() // what one can't, the others needn't
				}
			}
		})
	}
	wg.Wait()
	end()
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("%w; the same command goes on from here", err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w; the same command goes on from here", err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w; the same command goes on from here", err)
	}
	if err := finish(); err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(map[string]any{"topic": m.Topic, "directory": dir, "partitions": len(m.Partitions), "records": done.records.Load(), "bytes": done.bytes.Load(),
			"seconds": time.Since(began).Seconds(), "resumed": resumed})
	}
	_, err := fmt.Fprintf(a.stdout, "topic %s %s: %s records, %s, %d partitions, %s\n", m.Topic, verb, grouped(fmt.Sprint(done.records.Load())),
		wire.FormatSize(done.bytes.Load()), len(m.Partitions), time.Since(began).Round(time.Millisecond))
	return err
}

// exportPartition brings one partition's file to its end, and notes in the manifest what it holds.
func exportPartition(ctx context.Context, c *client.Client, dir string, m *manifest, n int, done *copied) (err error) {
	p := &m.Partitions[n]
	path := filepath.Join(dir, p.File)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// What is there counts as far as it is whole.
	have := newBatchFile(path, f)
	for {
		b, err := have.batch()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("%w: delete the directory and export anew", err)
			}
			break
		}
		done.records.Add(int64(b.LastOffsetDelta()) + 1)
		done.bytes.Add(int64(len(b)))
	}
	if err := f.Truncate(have.bytes); err != nil {
		return fmt.Errorf("cut %s: %w", path, err)
	}
	if _, err := f.Seek(have.bytes, io.SeekStart); err != nil {
		return err
	}
	at := max(p.Start, have.next)
	for at < p.Until {
		got, err := c.FetchBatches(ctx, m.Topic, int32(n), at)
		if err != nil {
			if errors.Is(err, client.ErrOffsetOutOfRange) {
				return fmt.Errorf("partition %s/%d: records from offset %d on were deleted by retention before they were exported: delete the directory and export anew: %w", m.Topic, n, at, err)
			}
			return err
		}
		if len(got.Data) == 0 {
			return fmt.Errorf("partition %s/%d ends at offset %d, it had records up to %d when the export began", m.Topic, n, got.Bounds.Next, p.Until)
		}
		for rest := got.Data; len(rest) > 0 && at < p.Until; {
			var b record.Batch
			if b, rest, err = record.Split(rest); err != nil {
				return fmt.Errorf("partition %s/%d at offset %d: %w", m.Topic, n, at, err)
			}
			if err := have.follows(b); err != nil {
				return err
			}
			if _, err := f.Write(b); err != nil {
				return fmt.Errorf("write %s: %w", path, err)
			}
			have.note(b)
			at = have.next
			done.records.Add(int64(b.LastOffsetDelta()) + 1)
			done.bytes.Add(int64(len(b)))
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	p.First, p.Records, p.Bytes, p.SHA256 = have.first, have.records, have.bytes, have.sha()
	return nil
}
