package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// pubFlags are those of parley pub.
type pubFlags struct {
	key, keySep, keyField, msgID, file, compression string
	headers                                         []string
	partition                                       int32
	progress                                        bool
	giveUp                                          time.Duration
}

func (a *app) pubCommand() *cobra.Command {
	var f pubFlags
	cmd := &cobra.Command{
		Use: "pub TOPIC [VALUE]", Short: "Publishes one record, or one per line of stdin", Args: between(1, 2, "TOPIC and perhaps a VALUE"),
		Long: `Publishes VALUE as one record or, without VALUE, each line of stdin or of --file.

A record counts as acked once it is on disk, fsynced, on a majority of its replicas.
A broker that restarts meanwhile costs nothing: records are tried again for --give-up,
and land once, in the order of the lines of a partition. After a record that was
given up the rest isn't sent. Lines keep their carriage returns.`,
		Example: `  parley pub orders 'hello'
  parley pub orders --key 4711 --header source=shop '{"total":12}'
  parley pub clicks --file clicks.jsonl --key-field user.id --progress --compression zstd
  tail -F app.log | parley pub logs`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.pub(cmd, args, &f) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.key, "key", "", "`key` of every record")
	flags.StringVar(&f.keySep, "key-sep", "", "each line is key, this `separator`, value")
	flags.StringVar(&f.keyField, "key-field", "", "each line is JSON, its key the `field` such as user.id")
	flags.StringArrayVar(&f.headers, "header", nil, "header `k=v`, may be repeated")
	flags.StringVar(&f.msgID, "msg-id", "", "message `id`: a second record with it is recognised as a duplicate (needs VALUE)")
	flags.Int32Var(&f.partition, "partition", 0, "partition `number` for every record, whatever its key")
	flags.StringVar(&f.file, "file", "", "read lines from this `file`")
	flags.BoolVar(&f.progress, "progress", false, "show progress also where stderr is no terminal")
	flags.StringVar(&f.compression, "compression", "none", "`none|zstd|lz4|snappy`")
	flags.DurationVar(&f.giveUp, "give-up", client.DefaultGiveUp, "how long a record is retried")
	_ = cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions([]string{"none", "zstd", "lz4", "snappy"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func codec(name string) (client.Codec, error) {
	for _, c := range []client.Codec{client.None, client.Zstd, client.LZ4, client.Snappy} {
		if c.String() == name {
			return c, nil
		}
	}
	return client.None, usagef("--compression %q: want none, zstd, lz4 or snappy", name)
}

// check says what doesn't go together and returns the producer's options.
func (f *pubFlags) check(cmd *cobra.Command, args []string) ([]client.ProducerOption, error) {
	given := cmd.Flags().Changed
	keys := 0
	for _, flag := range []string{"key", "key-sep", "key-field"} {
		if given(flag) {
			keys++
		}
	}
	switch {
	case keys > 1:
		return nil, usagef("--key, --key-sep and --key-field exclude each other: give one")
	case given("key-sep") && f.keySep == "":
		return nil, usagef("--key-sep is empty: want a separator such as ':'")
	case len(args) == 2 && f.file != "":
		return nil, usagef("VALUE and --file exclude each other: give one")
	case given("msg-id") && len(args) != 2:
		return nil, usagef("--msg-id needs a VALUE: lines would all have the same id")
	case given("msg-id") && (f.msgID == "" || len(f.msgID) > wire.MaxMsgID):
		return nil, usagef("--msg-id: want 1 to %d bytes", wire.MaxMsgID)
	case given("partition") && f.partition < 0:
		return nil, usagef("--partition %d: want 0 or more", f.partition)
	case f.giveUp <= 0:
		return nil, usagef("--give-up %s: want a span above zero such as 2m", f.giveUp)
	}
	codec, err := codec(f.compression)
	if err != nil {
		return nil, err
	}
	opts := []client.ProducerOption{client.Compression(codec), client.GiveUp(f.giveUp)}
	if given("partition") {
		opts = append(opts, client.PartitionBy(client.ToPartition(f.partition)))
	}
	return opts, nil
}

func (a *app) pub(cmd *cobra.Command, args []string, f *pubFlags) error {
	ctx := cmd.Context()
	opts, err := f.check(cmd, args)
	if err != nil {
		return err
	}
	shape, err := f.shape(cmd)
	if err != nil {
		return err
	}
	if f.msgID != "" {
		return a.pubWithID(ctx, args[0], args[1], shape, f, cmd.Flags().Changed("partition"))
	}
	source, size, err := a.source(ctx, args, f)
	if err != nil {
		return err
	}
	defer source.Close()

	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer closeClient(c)
	made, cancel := context.WithTimeout(ctx, a.timeout)
	p, err := c.NewProducer(made, args[0], opts...)
	cancel()
	if err != nil {
		return err
	}
	r := &pubRun{a: a, producer: p, shape: shape, begin: time.Now()}
	end := a.watch(f.progress, func() status { return r.status(size) })
	if len(args) == 2 {
		err = r.one(ctx, []byte(args[1]))
	} else {
		err = r.lines(ctx, source)
	}
	// What was taken is waited for, as long as it is being tried; an interrupt
	// cuts that short, and what is left then fails.
	err = errors.Join(err, p.Close(ctx))
	end()
	if ctx.Err() != nil {
		err = errInterrupted
	}
	return r.report(len(args) == 2, err)
}

// source opens what is published, and its size where that is known.
func (a *app) source(ctx context.Context, args []string, f *pubFlags) (io.ReadCloser, int64, error) {
	switch {
	case len(args) == 2:
		return io.NopCloser(nil), 0, nil
	case f.file != "":
		file, err := os.Open(f.file)
		if err != nil {
			return nil, 0, fmt.Errorf("read lines: %w", err)
		}
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			return file, info.Size(), nil
		}
		return struct {
			io.Reader
			io.Closer
		}{interruptible(ctx, file), file}, 0, nil
	}
	if file, ok := a.stdin.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			return io.NopCloser(file), info.Size(), nil
		}
	}
	return io.NopCloser(interruptible(ctx, a.stdin)), 0, nil
}

// shape makes a record of a line.
type shape struct {
	key     []byte
	sep     []byte
	field   *keyField
	headers []client.Header
}

func (f *pubFlags) shape(cmd *cobra.Command) (*shape, error) {
	s := &shape{}
	if cmd.Flags().Changed("key") {
		s.key = []byte(f.key)
	}
	if f.keySep != "" {
		s.sep = []byte(f.keySep)
	}
	var err error
	if cmd.Flags().Changed("key-field") {
		if s.field, err = newKeyField(f.keyField); err != nil {
			return nil, err
		}
	}
	given, err := pairs("header", f.headers)
	if err != nil {
		return nil, err
	}
	for _, kv := range given {
		s.headers = append(s.headers, client.Text(kv[0], kv[1]))
	}
	return s, nil
}

func (s *shape) record(line []byte) (client.Record, error) {
	r := client.Record{Key: s.key, Value: line, Headers: s.headers}
	switch {
	case s.sep != nil:
		key, value, ok := bytes.Cut(line, s.sep)
		if !ok {
			return r, fmt.Errorf("no %q that ends a key", s.sep)
		}
		r.Key, r.Value = key, value
	case s.field != nil:
		key, err := s.field.find(line)
		if err != nil {
			return r, err
		}
		r.Key = key
	}
	return r, nil
}
