package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

type subFlags struct {
	from      string
	partition int32
	count     int64
	untilEnd  bool
	group     groupFlags
}

func (a *app) subCommand() *cobra.Command {
	var f subFlags
	cmd := &cobra.Command{
		Use: "sub TOPIC", Short: "Reads records, one value a line", Args: exactly(1, "TOPIC"),
		Long: `Reads a topic's records: the values as they are, each followed by a line feed, or with
-o json one object a line. Each partition is read in order. A value that is not UTF-8
is in value_base64 instead of value, a key in key_base64.

With --group it is a member of a consumer group: it gets its share of the partitions, or with --shared of the
records, and a record is acked when it is written. The group is made when it isn't there; --from says
where it then begins.`,
		Example: `  parley sub orders
  parley sub orders --from earliest --until-end > orders.txt
  parley sub orders --from -1h -o json
  parley sub orders --partition 2 --from 4711 --count 10
  parley sub orders --group billing
  parley sub orders --group workers --shared --count 1 -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("count") && f.count < 1 {
				return usagef("--count %d: want 1 or more", f.count)
			}
			if f.group.name != "" {
				opts, err := f.groupOptions(cmd, time.Now())
				if err != nil {
					return err
				}
				return a.subGroup(cmd.Context(), args[0], &f, opts)
			}
			if err := f.group.withoutGroup(cmd); err != nil {
				return err
			}
			opts, err := f.options(cmd.Flags().Changed("partition"), time.Now())
			if err != nil {
				return err
			}
			return a.sub(cmd.Context(), args[0], &f, opts)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.from, "from", "earliest", "`earliest|latest|OFFSET|RFC3339|-1h` (-1h: what was stored in the last hour)")
	flags.Int32Var(&f.partition, "partition", 0, "read this partition `number` only")
	flags.Int64Var(&f.count, "count", 0, "stop after so `many` records")
	flags.BoolVar(&f.untilEnd, "until-end", false, "stop at what was the end when the reading began")
	f.group.register(flags)
	_ = cmd.RegisterFlagCompletionFunc("from", cobra.FixedCompletions([]string{"earliest", "latest"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// options turns the flags into a reader's options.
func (f *subFlags) options(onePartition bool, now time.Time) ([]client.ReaderOption, error) {
	from, err := start("from", f.from, now)
	if err != nil {
		return nil, err
	}
	opts := []client.ReaderOption{from}
	if onePartition {
		if f.partition < 0 {
			return nil, usagef("--partition %d: want 0 or more", f.partition)
		}
		opts = append(opts, client.Partitions(f.partition))
	}
	if f.untilEnd {
		opts = append(opts, client.UntilEnd())
	}
	return opts, nil
}

// start reads the flag that says where to begin.
func start(flag, from string, now time.Time) (client.Start, error) {
	switch from {
	case "earliest":
		return client.FromEarliest(), nil
	case "latest":
		return client.FromLatest(), nil
	}
	if ago, ok := strings.CutPrefix(from, "-"); ok {
		if d, err := wire.ParseAge(ago); err == nil {
			return client.FromTime(now.Add(-d)), nil
		}
	}
	if offset, err := strconv.ParseInt(from, 10, 64); err == nil && offset >= 0 {
		return client.FromOffset(offset), nil
	}
	if t, err := time.Parse(time.RFC3339, from); err == nil {
		return client.FromTime(t), nil
	}
	return client.Start{}, usagef("--%s %q: want earliest, latest, an offset, a time such as 2026-01-31T12:00:00Z, or a span back such as -1h", flag, from)
}

// idleAfter is how long output waits for more records before it is flushed.
const idleAfter = 2 * time.Millisecond

func (a *app) sub(ctx context.Context, topic string, f *subFlags, opts []client.ReaderOption) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer closeClient(c)
	made, cancel := context.WithTimeout(ctx, a.timeout)
	r, err := c.NewReader(made, topic, opts...)
	cancel()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close(context.Background()) }() // never fails

	out := &recordWriter{out: bufio.NewWriterSize(a.stdout, 256<<10), json: a.json()}
	if !isTerminal(a.stdout) && f.untilEnd {
		defer a.watch(false, out.status)()
	}
	err = copyRecords(ctx, r, out, f.count)
	if flushed := out.out.Flush(); err == nil {
		err = flushed
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		if f.count > 0 || f.untilEnd {
			return errInterrupted
		}
		return nil // there is no other end
	}
	return err
}

// copyRecords writes records until the reader's end or count of them; 0 for no
// limit. What is written is flushed before it waits for more.
func copyRecords(ctx context.Context, r *client.Reader, out *recordWriter, count int64) error {
	for {
		soon, cancel := context.WithTimeout(ctx, idleAfter)
		batch, err := r.NextBatch(soon)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			if err := out.out.Flush(); err != nil {
				return err
			}
			batch, err = r.NextBatch(ctx)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range batch {
			if err := out.write(&batch[i]); err != nil {
				return err
			}
			if count > 0 && out.records.Load() == count {
				return nil
			}
		}
	}
}

// recordWriter prints records.
type recordWriter struct {
	out     *bufio.Writer
	json    bool
	line    []byte
	records atomic.Int64
	bytes   atomic.Int64
}

func (w *recordWriter) status() status {
	return status{done: w.records.Load(), unit: "records", share: -1, bytes: w.bytes.Load()}
}

func (w *recordWriter) write(m *client.Message) error {
	w.records.Add(1)
	w.bytes.Add(int64(len(m.Value)))
	if w.json {
		w.line = append(appendRecord(w.line[:0], m), '\n')
		_, err := w.out.Write(w.line)
		return err
	}
	if _, err := w.out.Write(m.Value); err != nil {
		return err
	}
	return w.out.WriteByte('\n')
}

// appendRecord appends a record as JSON, without an allocation.
func appendRecord(b []byte, m *client.Message) []byte {
	b = append(b, `{"topic":`...)
	b = appendJSONString(b, m.Topic)
	b = append(b, `,"partition":`...)
	b = strconv.AppendInt(b, int64(m.Partition), 10)
	b = append(b, `,"offset":`...)
	b = strconv.AppendInt(b, m.Offset, 10)
	if m.Key == nil {
		b = append(b, `,"key":null`...)
	} else {
		b = appendBytes(b, "key", m.Key)
	}
	b = appendBytes(b, "value", m.Value)
	b = append(b, `,"headers":{`...)
	for i := range m.Headers {
		b = appendHeader(b, m.Headers, i)
	}
	b = append(b, `},"time":"`...)
	b = m.Timestamp.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, `","deliveries":`...)
	b = strconv.AppendInt(b, int64(m.Deliveries), 10)
	if m.Token != 0 {
		b = append(b, `,"token":`...)
		b = strconv.AppendUint(b, m.Token, 10)
	}
	return append(b, '}')
}

// appendHeader appends header i with all values of its key, unless an earlier one
// has done so.
func appendHeader(b []byte, headers []client.Header, i int) []byte {
	key := string(headers[i].Key)
	for _, h := range headers[:i] {
		if string(h.Key) == key {
			return b
		}
	}
	if i > 0 {
		b = append(b, ',')
	}
	b = append(appendJSONString(b, key), ':', '[')
	for j, h := range headers[i:] {
		if string(h.Key) != key {
			continue
		}
		if j > 0 {
			b = append(b, ',')
		}
		b = appendJSONString(b, h.Value)
	}
	return append(b, ']')
}

func appendBytes(b []byte, name string, v []byte) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	if utf8.Valid(v) {
		return appendJSONString(append(b, '"', ':'), v)
	}
	b = append(b, `_base64":"`...)
	b = base64.StdEncoding.AppendEncode(b, v)
	return append(b, '"')
}

const hexDigits = "0123456789abcdef"

// appendJSONString quotes s. Bytes that are not UTF-8 become U+FFFD.
func appendJSONString[T string | []byte](b []byte, s T) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c >= utf8.RuneSelf:
			r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			b = utf8.AppendRune(b, r)
			i += n
			continue
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c == '\t':
			b = append(b, '\\', 't')
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
		i++
	}
	return append(b, '"')
}
