package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
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
	source, size, err := a.source(args, f)
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
	closeErr := p.Close(ctx)
	end()
	return r.report(len(args) == 2, errors.Join(err, closeErr))
}

// source opens what is published, and its size where that is known.
func (a *app) source(args []string, f *pubFlags) (io.ReadCloser, int64, error) {
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
		return file, 0, nil
	}
	if file, ok := a.stdin.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			return io.NopCloser(file), info.Size(), nil
		}
	}
	return io.NopCloser(a.stdin), 0, nil
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

// pubRun is one publishing of many lines. Counters are written by the
// producer's callbacks.
type pubRun struct {
	a        *app
	producer *client.Producer
	shape    *shape
	begin    time.Time

	sent, acked, failed, bytes, read atomic.Int64
	gaveUp                           atomic.Bool

	mu       sync.Mutex
	first    error      // guarded by mu; the first failure
	told     int        // guarded by mu
	last     client.Ack // guarded by mu
	stopLine int64      // lines after this one were not sent; 0: all were
}

// maxTold bounds how many failures are printed one by one.
const maxTold = 5

// one publishes a VALUE, which may hold line feeds.
func (r *pubRun) one(ctx context.Context, value []byte) error {
	rec, err := r.shape.record(value)
	if err != nil {
		return err
	}
	r.sent.Add(1)
	r.bytes.Add(int64(len(rec.Key) + len(rec.Value)))
	return r.producer.SendFunc(ctx, rec, r.settled)
}

func (r *pubRun) lines(ctx context.Context, source io.Reader) error {
	in := newLines(source, wire.MaxRecord)
	settled := r.settled // one closure for all records
	for {
		line, err := in.next()
		switch tooLong := (*lineTooLong)(nil); {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &tooLong):
			r.refuse(err)
			continue
		case err != nil:
			return err
		}
		r.read.Add(int64(len(line)) + 1)
		rec, err := r.shape.record(line)
		if err == nil {
			r.sent.Add(1)
			r.bytes.Add(int64(len(rec.Key) + len(rec.Value)))
			err = r.producer.SendFunc(ctx, rec, settled)
			if err == nil {
				if r.gaveUp.Load() {
					r.stopLine = in.number
					return nil
				}
				continue
			}
			r.sent.Add(-1)
			if ctx.Err() != nil {
				r.stopLine = in.number
				return errors.New("interrupted")
			}
			if !ofThisRecord(err) {
				r.refuse(fmt.Errorf("line %d: %w", in.number, err))
				r.stopLine = in.number
				return nil
			}
		}
		r.refuse(fmt.Errorf("line %d: %w", in.number, err))
	}
}

// ofThisRecord says whether a failure is due to the record itself, so that the
// next one may fare better.
func ofThisRecord(err error) bool {
	for _, own := range []error{client.ErrTooLarge, client.ErrInvalidBatch, client.ErrPartNotFound} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}

// refuse counts a record that was never sent.
func (r *pubRun) refuse(err error) {
	r.failed.Add(1)
	r.tell(err)
}

func (r *pubRun) tell(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == nil {
		r.first = err
	}
	if r.told++; r.told <= maxTold {
		fmt.Fprintf(r.a.stderr, "parley: %v\n", err)
	} else if r.told == maxTold+1 {
		fmt.Fprintln(r.a.stderr, "parley: further failures are only counted")
	}
}

// settled is called by the producer for each record.
func (r *pubRun) settled(ack client.Ack, err error) {
	if err == nil {
		if r.acked.Add(1) == 1 {
			r.mu.Lock()
			r.last = ack
			r.mu.Unlock()
		}
		return
	}
	r.failed.Add(1)
	if !ofThisRecord(err) {
		r.gaveUp.Store(true)
	}
	r.tell(err)
}

func (r *pubRun) status(size int64) status {
	s := status{done: r.acked.Load(), unit: "records acked", share: -1, bytes: r.bytes.Load()}
	if size > 0 {
		// Of what was read, the part that is acked.
		if sent := r.sent.Load(); sent > 0 {
			s.share = float64(r.read.Load()) / float64(size) * float64(s.done) / float64(sent)
		} else {
			s.share = 0
		}
	}
	if failed := r.failed.Load(); failed > 0 {
		s.note = fmt.Sprintf("%d failed", failed)
	}
	return s
}

// pubResult is what parley pub prints with -o json.
type pubResult struct {
	Acked         int64   `json:"acked"`
	Failed        int64   `json:"failed"`
	Bytes         int64   `json:"bytes"`
	Seconds       float64 `json:"seconds"`
	RecordsPerSec float64 `json:"records_per_s"`
	Partition     *int32  `json:"partition,omitempty"` // of a single record
	Offset        *int64  `json:"offset,omitempty"`
	Duplicate     bool    `json:"duplicate,omitempty"`
}

func (r *pubRun) report(single bool, err error) error {
	result := pubResult{Acked: r.acked.Load(), Failed: r.failed.Load(), Bytes: r.bytes.Load(), Seconds: time.Since(r.begin).Seconds()}
	result.RecordsPerSec = float64(result.Acked) / result.Seconds
	r.mu.Lock()
	first, ack := r.first, r.last
	r.mu.Unlock()
	if single && result.Acked == 1 {
		result.Partition, result.Offset, result.Duplicate = &ack.Partition, &ack.Offset, ack.Duplicate
	}
	return r.a.reportPub(result, r.stopLine, first, err)
}

func (a *app) reportPub(result pubResult, stopLine int64, first, err error) error {
	text := "1 record"
	if result.Acked != 1 {
		text = grouped(fmt.Sprint(result.Acked)) + " records"
	}
	text += fmt.Sprintf(" acked, %s, %.2f s", wire.FormatSize(result.Bytes), result.Seconds)
	if result.Acked > 1 {
		text += fmt.Sprintf(", %s/s", grouped(fmt.Sprintf("%.0f", result.RecordsPerSec)))
	}
	if result.Offset != nil {
		text += fmt.Sprintf(", partition %d offset %d", *result.Partition, *result.Offset)
		if result.Duplicate {
			text += ", a duplicate"
		}
	}
	if result.Failed > 0 {
		text += fmt.Sprintf("; %s FAILED", grouped(fmt.Sprint(result.Failed)))
	}
	if stopLine > 0 {
		text += fmt.Sprintf("; lines after %d were not sent", stopLine)
	}
	fmt.Fprintln(a.stderr, text)
	if a.json() && err == nil {
		if result.Acked == 0 && result.Failed > 0 && first != nil {
			// Nothing came through: the reason is the result.
			printError(a.stdout, describe(first, false))
			return errReported
		}
		if e := a.printJSON(result); e != nil {
			return e
		}
	}
	switch {
	case err != nil:
		return err
	case result.Failed > 0 || stopLine > 0:
		return errReported // each was told
	}
	return nil
}
