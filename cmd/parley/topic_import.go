package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/partition/record"
)

func (a *app) topicImport() *cobra.Command {
	replicas := int32(0)
	cmd := &cobra.Command{
		Use: "import DIR [NAME]", Short: "Makes a topic of exported files", Args: between(1, 2, "DIR, and NAME for another name"),
		Long: `Makes a topic of an export (parley topic export): with its settings, its partitions and its
records, in their order, with their keys, headers and timestamps. Files are compared with the
manifest's checksums first. Ended in the middle, by whatever, the same command goes on where it was.

Offsets begin with 0 in each partition: a record has its old offset less the manifest's first_offset.
Retention by age counts from the import. Nobody else may publish to the topic before it is through.`,
		Example: "  parley topic import ./orders.export\n  parley topic import ./orders.export orders-copy --replicas 3",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[0]
			m, err := readManifest(dir)
			if err != nil {
				return err
			}
			if !m.Complete {
				return fmt.Errorf("the export in %s was not finished: the same parley topic export goes on with it", dir)
			}
			if err := verifyExport(dir, &m); err != nil {
				return err
			}
			exported := m.Topic
			if len(args) == 2 {
				m.Topic = args[1]
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer closeClient(c)
			resumed, err := a.beginImport(cmd.Context(), c, &m, exported, replicas)
			if err != nil {
				return err
			}
			return a.copyPartitions(cmd.Context(), "imported", dir, &m, resumed, func(ctx context.Context, n int, done *copied) error {
				return importPartition(ctx, c, dir, &m, n, done)
			}, func() error { return nil })
		},
	}
	cmd.Flags().Int32Var(&replicas, "replicas", 0, "`copies` of each partition (default 3, or 1 on fewer than three brokers)")
	return cmd
}

// verifyExport compares the files with the manifest, before anything is sent.
func verifyExport(dir string, m *manifest) error {
	for n := range m.Partitions {
		p := &m.Partitions[n]
		f, err := os.Open(filepath.Join(dir, p.File))
		if err != nil {
			return err
		}
		have := newBatchFile(f.Name(), f)
		for err == nil {
			_, err = have.batch()
		}
		f.Close()
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%s ends within a batch", f.Name())
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if have.first != p.First || have.records != p.Records || have.bytes != p.Bytes || have.sha() != p.SHA256 {
			return fmt.Errorf("%s is not the file that was exported: %d records in %d bytes from offset %d, SHA-256 %s; the manifest says %d, %d, %d, %s",
				f.Name(), have.records, have.bytes, have.first, have.sha(), p.Records, p.Bytes, p.First, p.SHA256)
		}
	}
	return nil
}

// beginImport makes the topic, or finds that it is there and could be this import's.
func (a *app) beginImport(ctx context.Context, c *client.Client, m *manifest, exported string, replicas int32) (resumed bool, err error) {
	subjects := m.Subjects
	if m.Topic != exported {
		// Those of the original can't be bound twice; what is its own name becomes the new one's.
		subjects = nil
		for _, s := range m.Subjects {
			if s == exported || strings.HasPrefix(s, exported+".") {
				subjects = append(subjects, m.Topic+s[len(exported):])
			}
		}
	}
	d, err := within(ctx, a, func(ctx context.Context) (client.TopicDescription, error) { return c.DescribeTopic(ctx, m.Topic) })
	switch {
	case errors.Is(err, client.ErrTopicNotFound):
		_, err = within(ctx, a, func(ctx context.Context) (client.TopicChange, error) {
			return c.CreateTopic(ctx, client.TopicSpec{Name: m.Topic, Partitions: int32(len(m.Partitions)), Replicas: replicas, Subjects: subjects, Config: m.Config})
		})
		return false, err
	case err != nil:
		return false, err
	case len(d.Partitions) != len(m.Partitions):
		return false, fmt.Errorf("topic %s exists with %d partitions, the export has %d: give another name", m.Topic, len(d.Partitions), len(m.Partitions))
	}
	return true, nil
}

// importPartition appends one partition's batches, each where the one before it ended.
func importPartition(ctx context.Context, c *client.Client, dir string, m *manifest, n int, done *copied) error {
	p := &m.Partitions[n]
	bounds, err := c.Bounds(ctx, m.Topic, int32(n))
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, p.File))
	if err != nil {
		return err
	}
	defer f.Close()
	have := newBatchFile(f.Name(), f)
	strange := fmt.Errorf("partition %s/%d holds %d records that are not this export's first ones: give another name for the topic", m.Topic, n, bounds.Next)
	var last record.Batch // the last one that is there already
	for at := int64(0); ; {
		b, err := have.batch()
		if errors.Is(err, io.EOF) {
			if at < bounds.Next {
				return strange
			}
			return nil
		}
		if err != nil {
			return err
		}
		count := int64(b.LastOffsetDelta()) + 1
		if err := b.SetProducer(record.NoProducer); err != nil {
			return fmt.Errorf("%s: batch at offset %d: %w", f.Name(), b.BaseOffset(), err)
		}
		switch {
		case at+count <= bounds.Next:
			last = append(last[:0], b...)
		case at < bounds.Next:
			return strange
		default:
			if err := c.AppendBatch(ctx, m.Topic, int32(n), b, int(count), at); err != nil {
				return err
			}
		}
		at += count
		done.records.Add(count)
		done.bytes.Add(int64(len(b)))
		if at == bounds.Next && last != nil {
			if err := there(ctx, c, m.Topic, n, at-1, last); err != nil {
				return errors.Join(strange, err)
			}
			last = nil
		}
	}
}

// there checks that the batch that holds an offset is the one that is expected, but for what the
// leader stamps into it.
func there(ctx context.Context, c *client.Client, topic string, n int, offset int64, want record.Batch) error {
	got, err := c.FetchBatches(ctx, topic, int32(n), offset)
	if err != nil {
		return err
	}
	b, _, err := record.Split(got.Data)
	if err != nil {
		return err
	}
	plain := record.Batch(slices.Clone(b))
	plain.Stamp(0, 0)
	same := record.Batch(slices.Clone(want))
	same.Stamp(0, 0)
	if !bytes.Equal(plain, same) {
		return fmt.Errorf("the batch at offset %d is another one", offset)
	}
	return nil
}
