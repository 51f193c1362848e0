package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// benchFlags are those that the measurements share.
type benchFlags struct {
	records     int64
	size        string
	clients     int
	partitions  int32
	rate        float64
	duration    time.Duration
	compression string
	plain       bool
	outstanding int
	batch       string
	progress    bool
	keys        int
	group       string
	shared      bool
	keyOrdered  bool

	bytes int // of size
}

// Defaults and bounds of a measurement.
const (
	benchDuration = 10 * time.Second // where neither --records nor --duration is given
	benchSeed     = 1                // of the payloads, so that runs compare
	benchPool     = 8 << 20          // random bytes that payloads are cut from; more than any batch
	benchBuffer   = 1 << 16          // records of one client that wait for their ack
	benchQueue    = 4 << 20          // bytes of one client that wait for their ack, a partition
	benchClients  = 1024
	benchKeys     = 1 << 20
	benchRate     = 1e9
	warmRecords   = 10 // one part in so many of --records goes before the measurement
	warmMost      = 100_000
	warmFrom      = 10_000 // fewer records are measured from the first one on
	warmTime      = time.Second
)

func (a *app) benchCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "bench", Short: "Measures publishing and reading",
		Long: `Measures a cluster. A publish counts when it is acked: on disk, fsynced, on a majority.
Payloads are random and can't be compressed. A warm-up goes before and isn't counted.
Without --records and --duration a measurement takes 10 s. A topic that doesn't exist
is created when --partitions says with how many.`,
		Example: "  parley bench pub load --partitions 1 --size 1KiB\n  parley bench sub load\n  parley bench latency load --duration 5s",
		RunE:    needsSubcommand,
	}
	sub := func(use, short, example string, run func(context.Context, *benchFlags, string) (benchResult, error), more func(*cobra.Command, *benchFlags)) {
		f := &benchFlags{}
		cmd := &cobra.Command{
			Use: use + " TOPIC", Short: short, Args: exactly(1, "TOPIC"), Example: example,
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := f.check(cmd.Flags().Changed); err != nil {
					return err
				}
				result, err := run(cmd.Context(), f, args[0])
				if err != nil {
					return err
				}
				return a.printBench(result)
			},
		}
		flags := cmd.Flags()
		flags.SortFlags = false
		flags.Int64Var(&f.records, "records", 0, "measure so `many`")
		flags.DurationVar(&f.duration, "duration", 0, "measure so `long` (default 10s, without --records)")
		flags.IntVar(&f.clients, "clients", 1, "`number` of clients, each with its own connection")
		flags.Int32Var(&f.partitions, "partitions", 0, "use so `many` partitions of the topic (default: all)")
		flags.BoolVar(&f.progress, "progress", false, "show progress also where stderr is no terminal")
		if use != "sub" {
			flags.StringVar(&f.size, "size", "1KiB", "`size` of a record's value")
			flags.Float64Var(&f.rate, "rate", 0, "records a second of all clients together; 0 for as fast as it goes")
		}
		if more != nil {
			more(cmd, f)
		}
		parent.AddCommand(cmd)
	}
	sub("pub", "How fast records are published and acked", "  parley bench pub load --partitions 4 --clients 2 --size 128B\n  parley bench pub load --plain --outstanding 500 --size 128B",
		a.benchPub, func(cmd *cobra.Command, f *benchFlags) {
			cmd.Flags().StringVar(&f.compression, "compression", "none", "`none|zstd|lz4|snappy`")
			cmd.Flags().StringVar(&f.batch, "batch", "512KiB", "`size` at which a batch is full")
			cmd.Flags().IntVar(&f.keys, "keys", 0, "give the records so `many` keys in turn, which then say the partition (default: no keys)")
			cmd.Flags().BoolVar(&f.plain, "plain", false, "publish as a plain NATS client does: one message a record, a reply each")
			cmd.Flags().IntVar(&f.outstanding, "outstanding", 500, "with --plain: publishes of a client that wait for their ack")
		})
	sub("sub", "How fast records are read from the earliest on", "  parley bench sub load --records 1000000\n  parley bench sub load --group g1 --shared --records 1000000",
		a.benchSub, benchGroupFlags)
	sub("e2e", "From publish to read: the latency of both together", "  parley bench e2e load --rate 1000 --size 128B\n  parley bench e2e load --group g2 --rate 1000",
		a.benchE2E, benchGroupFlags)
	sub("latency", "How long a lone publish takes, one after the other", "  parley bench latency load --records 10000", a.benchLatency, nil)
	return parent
}

func (f *benchFlags) check(given func(flag string) bool) error {
	if f.size == "" {
		f.size = "1KiB" // sub has no size of its own
	}
	n, err := wire.ParseSize(f.size)
	switch {
	case err != nil || n < 1 || n > wire.MaxRecord:
		return usagef("--size %q: want 1B to %s", f.size, wire.FormatSize(wire.MaxRecord))
	case given("records") && f.records < 1:
		return usagef("--records %d: want 1 or more", f.records)
	case given("duration") && f.duration <= 0:
		return usagef("--duration %s: want a span above zero such as 10s", f.duration)
	case f.clients < 1 || f.clients > benchClients:
		return usagef("--clients %d: want 1 to %d", f.clients, benchClients)
	case given("partitions") && f.partitions < 1 || f.partitions > wire.MaxPartitions:
		return usagef("--partitions %d: want 1 to %d", f.partitions, wire.MaxPartitions)
	case f.group == "" && (f.shared || f.keyOrdered):
		return usagef("--shared and --key-ordered are about a group: give --group")
	case f.keyOrdered && !f.shared:
		return usagef("--key-ordered is a kind of --shared: give both")
	case f.keys < 0 || f.keys > benchKeys:
		return usagef("--keys %d: want 0 to %d", f.keys, benchKeys)
	case f.keys > 0 && f.plain:
		return usagef("--keys and --plain exclude each other: the subject is a plain publish's key")
	case !(f.rate >= 0 && f.rate <= benchRate): // NaN, too
		return usagef("--rate %v: want 0 to %.0f records a second", f.rate, float64(benchRate))
	case given("outstanding") && !f.plain:
		return usagef("--outstanding is about plain publishes: give --plain")
	case f.plain && (f.outstanding < 1 || f.outstanding > benchBuffer):
		return usagef("--outstanding %d: want 1 to %d", f.outstanding, benchBuffer)
	}
	f.bytes = int(n)
	if f.records == 0 && f.duration == 0 {
		f.duration = benchDuration
	}
	return nil
}

// benchTopic returns how many partitions are used, creating the topic where the
// flags ask for that.
func (a *app) benchTopic(ctx context.Context, f *benchFlags, topic string) (partitions int32, err error) {
	err = a.request(ctx, func(ctx context.Context, c *client.Client) error {
		d, err := c.DescribeTopic(ctx, topic)
		if errors.Is(err, client.ErrTopicNotFound) && f.partitions > 0 {
			if _, err = c.CreateTopic(ctx, client.TopicSpec{Name: topic, Partitions: f.partitions}); err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "topic %s created with %d partitions\n", topic, f.partitions)
			partitions = f.partitions
			return nil
		}
		if err != nil {
			return err
		}
		partitions = int32(len(d.Partitions))
		if f.partitions > partitions {
			return usagef("--partitions %d: topic %s has %d", f.partitions, topic, partitions)
		}
		if f.partitions > 0 {
			partitions = f.partitions
		}
		return nil
	})
	return partitions, err
}

// payloads cuts values from a pool of random bytes, one after the other: no
// codec finds a repeat within a batch.
type payloads struct {
	pool []byte
	at   int
	size int
}

func newPayloads(size int, seed uint64) *payloads {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := &payloads{pool: make([]byte, benchPool), size: size}
	_, _ = rand.NewChaCha8(key).Read(p.pool) // never fails
	return p
}

func (p *payloads) next() []byte {
	if p.at+p.size > len(p.pool) {
		p.at = 0
	}
	v := p.pool[p.at : p.at+p.size]
	p.at += p.size
	return v
}

// pacer spreads a client's records over time.
type pacer struct {
	every time.Duration // 0: as fast as it goes
	begin time.Time
	n     int64
}

func newPacer(rate float64, clients, index int) *pacer {
	if rate == 0 {
		return &pacer{}
	}
	every := time.Duration(float64(clients) / rate * float64(time.Second))
	// Clients take turns rather than to send all at once.
	return &pacer{every: max(every, 1), begin: time.Now().Add(every * time.Duration(index) / time.Duration(clients))}
}

// wait returns the moment at which the next record was due. Latency counts from
// then, not from when a late sender got round to it.
func (p *pacer) wait(stop <-chan struct{}) time.Time {
	if p.every == 0 {
		return time.Now()
	}
	due := p.begin.Add(time.Duration(p.n) * p.every)
	p.n++
	if ahead := time.Until(due); ahead > 0 {
		t := time.NewTimer(ahead)
		defer t.Stop()
		select {
		case <-t.C:
		case <-stop:
		}
	}
	return due
}

// meter counts what is done and measures between the end of the warm-up and the
// end.
type meter struct {
	warm    int64 // records of the warm-up, or 0 when it is timed
	total   int64 // records with the warm-up, or 0 when the end is timed
	done    atomic.Int64
	errors  atomic.Int64
	failure atomic.Pointer[error] // the first one
	bytes   atomic.Int64
	measure atomic.Bool

	claimed atomic.Int64
	stop    chan struct{} // closed when sending is to end
	stopped sync.Once
	opened  sync.Once

	mu         sync.Mutex
	begin, end time.Time     // guarded by mu
	first      tally         // guarded by mu; when the measurement began
	last       tally         // guarded by mu; when it ended, if timed
	latencies  []*histogram  // guarded by mu; of each client, merged at the end
	timed      chan struct{} // closed when the clock of a timed measurement has ended
}

// tally is what is done at a moment.
type tally struct{ records, bytes int64 }

func (m *meter) tally() tally { return tally{m.done.Load(), m.bytes.Load()} }

func newMeter(f *benchFlags) *meter {
	m := &meter{stop: make(chan struct{}), timed: make(chan struct{})}
	if f.records > 0 {
		// Few records are all under way before the first of a warm-up is done.
		if f.records >= warmFrom {
			m.warm = min(f.records/warmRecords, warmMost)
		}
		m.total = m.warm + f.records
	}
	return m
}

// start begins to measure; ctx ends the measurement early.
func (m *meter) start(ctx context.Context, f *benchFlags) {
	go m.clock(ctx, f) // ends with timed, for which result waits
}

func (m *meter) clock(ctx context.Context, f *benchFlags) {
	defer close(m.timed)
	wait := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-m.stop:
			return false
		case <-ctx.Done():
			return false
		}
	}
	if m.total == 0 {
		if !wait(min(warmTime, f.duration/warmRecords)) {
			m.halt()
			return
		}
		m.open()
	}
	limit := f.duration
	if limit == 0 {
		limit = 1 << 62
	}
	wait(limit)
	if m.total == 0 || f.duration > 0 {
		m.mu.Lock()
		m.end, m.last = time.Now(), m.tally()
		m.mu.Unlock()
	}
	m.halt()
}

func (m *meter) open() {
	m.mu.Lock()
	m.begin, m.first = time.Now(), m.tally()
	m.mu.Unlock()
	m.measure.Store(true)
}

// cold begins the measurement of few records: as the first one is about to be sent, or asked for.
func (m *meter) cold() {
	if m.total > 0 && m.warm == 0 {
		m.opened.Do(m.open)
	}
}

func (m *meter) halt() { m.stopped.Do(func() { close(m.stop) }) }

// claim asks whether one more record is to be sent.
func (m *meter) claim() bool {
	select {
	case <-m.stop:
		return false
	default:
	}
	m.cold()
	return m.total == 0 || m.claimed.Add(1) <= m.total
}

// settle counts one record as done, and its latency.
func (m *meter) settle(h *histogram, since time.Time, bytes int) {
	if m.measure.Load() && !since.IsZero() {
		h.record(time.Since(since))
	}
	m.count(1, int64(bytes))
}

// lose counts a record that the SDK gave up. It was tried for minutes: what
// follows would fare no better, so the measurement ends.
func (m *meter) lose(err error) {
	m.errors.Add(1)
	m.failure.CompareAndSwap(nil, &err)
	m.halt()
}

// count adds what is done.
func (m *meter) count(records, bytes int64) {
	m.bytes.Add(bytes)
	if now := m.done.Add(records); now >= m.warm && now-records < m.warm {
		m.open()
	}
}

func (m *meter) histogram() *histogram {
	h := &histogram{}
	m.mu.Lock()
	m.latencies = append(m.latencies, h)
	m.mu.Unlock()
	return h
}

func (m *meter) status() status {
	s := status{done: m.done.Load(), unit: "records", share: -1}
	s.bytes = m.bytes.Load()
	if m.total > 0 {
		s.share = float64(s.done) / float64(m.total)
	}
	if n := m.errors.Load(); n > 0 {
		s.note = fmt.Sprintf("%d errors", n)
	}
	return s
}

// benchResult is what a measurement prints.
type benchResult struct {
	Records int64   `json:"records"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"records_per_s"`
	MB      float64 `json:"mb_per_s"`
	Errors  int64   `json:"errors"`
	P50     float64 `json:"p50_us"`
	P90     float64 `json:"p90_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
	Max     float64 `json:"max_us"`
}

// result ends the measurement; all clients have ended.
func (m *meter) result() benchResult {
	m.halt()
	<-m.timed
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.begin.IsZero() {
		return benchResult{Errors: m.errors.Load()} // it ended within the warm-up
	}
	if m.total > 0 && m.done.Load() >= m.total || m.end.IsZero() {
		m.end, m.last = time.Now(), m.tally()
	}
	r := benchResult{Records: m.last.records - m.first.records, Bytes: m.last.bytes - m.first.bytes,
		Errors: m.errors.Load(), Seconds: m.end.Sub(m.begin).Seconds()}
	if r.Seconds > 0 {
		r.Rate, r.MB = float64(r.Records)/r.Seconds, float64(r.Bytes)/r.Seconds/1e6
	}
	var all histogram
	for _, h := range m.latencies {
		all.merge(h)
	}
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	r.P50, r.P90, r.P99, r.P999, r.Max = us(all.percentile(0.5)), us(all.percentile(0.9)), us(all.percentile(0.99)), us(all.percentile(0.999)), us(all.max)
	return r
}

func (a *app) printBench(r benchResult) error {
	if a.json() {
		if err := a.printJSON(r); err != nil {
			return err
		}
	} else {
		t := newTable("RECORDS", "SECONDS", "RECORDS/S", "MB/S", "ERRORS", "P50", "P90", "P99", "P99.9", "MAX")
		errorCount := num(r.Errors)
		if r.Errors > 0 {
			errorCount.style = red
		}
		row := []cell{num(r.Records), rightText(fmt.Sprintf("%.2f", r.Seconds)), rightText(grouped(fmt.Sprintf("%.0f", r.Rate))),
			rightText(fmt.Sprintf("%.1f", r.MB)), errorCount}
		for _, us := range []float64{r.P50, r.P90, r.P99, r.P999, r.Max} {
			text := "-"
			if us > 0 {
				text = latencyText(us)
			}
			row = append(row, rightText(text))
		}
		t.row(row...)
		if err := a.printTable(t); err != nil {
			return err
		}
	}
	if r.Errors > 0 {
		fmt.Fprintf(a.stderr, "parley: %d records failed\n", r.Errors)
		return errReported
	}
	return nil
}

func latencyText(us float64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%.0fµs", us)
	case us < 1e6:
		return fmt.Sprintf("%.2fms", us/1000)
	}
	return fmt.Sprintf("%.2fs", us/1e6)
}
