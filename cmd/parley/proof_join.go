package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// joinProof measures what it costs that a broker joins, and that one dies.
type joinProof struct {
	partitions int32
	bytes      string
	copyRate   string
	rate       int
	baseline   time.Duration
	deadAfter  time.Duration
	cutBytes   int64
	proofFlags
}

// Targets of the proof, on a machine that does nothing else.
const (
	targetMoved = 1.1 // times the bytes that have to move
	targetCopy  = 0.5 // of the speed of a plain copy with fsync
	targetP99   = 2.0 // times the p99 without a move
	targetHeal  = 10 * time.Second
	joinTopic   = "join"
	joinLook    = 100 * time.Millisecond
	joinLimit   = 20 * time.Minute // for one broker's share
	joinReplica = 3
)

// joinResult is what one run found.
type joinResult struct {
	Bytes int64 `json:"bytes"` // of the topic, of one replica of each partition
	// The fourth broker, nothing else going on.
	Optimum     int64   `json:"optimum_bytes"`
	Moved       int64   `json:"moved_bytes"`
	MovedRatio  float64 `json:"moved_ratio"`
	Seconds     float64 `json:"copy_seconds"` // from the first byte to the last replica's being in its place
	FromStart   float64 `json:"seconds_from_start"`
	Speed       float64 `json:"mb_per_s"`
	CopyBefore  float64 `json:"plain_copy_before_mb_per_s"`
	CopyAfter   float64 `json:"plain_copy_after_mb_per_s"`
	SpeedRatio  float64 `json:"speed_ratio"`
	LoadAverage string  `json:"load_average"`
	// The fifth, throttled and under load.
	Rate         int     `json:"records_per_s"`
	CopyRate     string  `json:"copy_rate"`
	P50Before    float64 `json:"p50_before_ms"`
	P50During    float64 `json:"p50_during_ms"`
	P99Before    float64 `json:"p99_before_ms"`
	P99During    float64 `json:"p99_during_ms"`
	MaxBefore    float64 `json:"max_before_ms"`
	MaxDuring    float64 `json:"max_during_ms"`
	P99Ratio     float64 `json:"p99_ratio"`
	DuringMoved  int64   `json:"during_moved_bytes"`
	DuringTime   float64 `json:"during_seconds"`
	RecordsAcked int64   `json:"records_acked"`
	// How much of the machine's processors was in use, and by whom else than brokers and this process.
	BusyBefore   float64 `json:"cpu_busy_before"`
	OthersBefore float64 `json:"cpu_of_others_before"`
	BusyDuring   float64 `json:"cpu_busy_during"`
	OthersDuring float64 `json:"cpu_of_others_during"`
	// The fifth is killed.
	DeadAfter float64 `json:"dead_after_seconds"`
	Dead      float64 `json:"declared_dead_seconds"` // after the kill
	Whole     float64 `json:"whole_seconds"`         // likewise
	HealCopy  float64 `json:"heal_copy_seconds"`     // from the first byte of its replicas to the last
	HealMoved int64   `json:"heal_moved_bytes"`
	HealSlack float64 `json:"heal_beyond_seconds"` // beyond dead-after and the copy

	Missed []string `json:"missed"` // targets
}

func (a *app) joinCommand() *cobra.Command {
	f := joinProof{partitions: 64, bytes: "4GiB", copyRate: "16MiB", rate: 250, baseline: 30 * time.Second, deadAfter: 20 * time.Second}
	cmd := &cobra.Command{
		Use: "join", Short: "Measures what it costs that a broker joins, and that one dies", Args: cobra.NoArgs,
		Long: `Starts three brokers as processes and fills a topic with three replicas. Then
 1. a fourth broker joins, with copies unthrottled and nothing else going on: bytes moved against those
    that have to, and their speed against a plain copy of as many bytes of the store's files with fsync,
    made before and after;
 2. the brokers are restarted with --copy-rate, records are published at a steady rate, and a fifth broker
    joins: the latencies of publishes before and meanwhile;
 3. the fifth is killed: how long until all partitions have their replicas again, against dead-after and the
    time of the copies.
It needs about six times --bytes of disk. The targets of the last column are for a machine that does nothing else: one that is
missed makes the exit status 1. The rate is to leave the processors mostly idle, or latencies tell how long records queue for
them, not what a move does: each lone record costs about 1 ms of processor time, all brokers and the client together, and
copying 1 MB about 7 ms. What was in use, and by whom else, is told.`,
		Example: "  go run ./cmd/parley proof join\n  go run ./cmd/parley proof join --bytes 1GiB --partitions 16 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := wire.ParseSize(f.bytes)
			rate, rateErr := wire.ParseSize(f.copyRate)
			if err != nil || rateErr != nil || rate < 1 || f.partitions < 1 || n < int64(f.partitions)*joinRecord || f.rate < 1 || f.baseline < time.Second || f.deadAfter < time.Second {
				return usagef("--bytes %s --copy-rate %s --partitions %d --rate %d --baseline %s --dead-after %s: want sizes, at least a record of %d bytes for each of 1 or more partitions, 1 record a second, 1s and 1s or more",
					f.bytes, f.copyRate, f.partitions, f.rate, f.baseline, f.deadAfter, joinRecord)
			}
			return a.proveJoin(cmd.Context(), &f, n)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Int32Var(&f.partitions, "partitions", f.partitions, "so `many` partitions, each with three replicas")
	flags.StringVar(&f.bytes, "bytes", f.bytes, "`size` of the records, of all partitions together")
	flags.StringVar(&f.copyRate, "copy-rate", f.copyRate, "of each broker, while there is load: `bytes` a second")
	flags.IntVar(&f.rate, "rate", f.rate, "so `many` records of 1 KiB a second are published then")
	flags.DurationVar(&f.baseline, "baseline", f.baseline, "how `long` before the move")
	flags.DurationVar(&f.deadAfter, "dead-after", f.deadAfter, "how `long` until a broker counts as dead")
	flags.Int64Var(&f.cutBytes, "cut-bytes", 0, "a replica's Raft log is cut whenever it has applied so many `bytes`, for a small topic whose replicas are to be copied as those of a large one; 0 for what brokers do by themselves")
	flags.StringVar(&f.parleyd, "parleyd", "", "the parleyd `binary` (default: built from this source tree)")
	flags.BoolVar(&f.keep, "keep", false, "keep the working directory; it stays after a failure in any case")
	return cmd
}

// joinRun is one run.
type joinRun struct {
	a       *app
	f       *joinProof
	dir     string
	command []string
	begin   time.Time
	brokers []*brokerProcess
	c       *client.Client
	result  joinResult
}

func (r *joinRun) say(format string, args ...any) {
	fmt.Fprintf(r.a.stderr, "%6.1f s  load %s  %s\n", time.Since(r.begin).Seconds(), loadAverage(), fmt.Sprintf(format, args...))
}

func (a *app) proveJoin(ctx context.Context, f *joinProof, bytes int64) (err error) {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("this proof needs Linux: it reads /proc; this is %s", runtime.GOOS)
	}
	dir, done, err := a.workingDirectory(f.keep)
	if err != nil {
		return err
	}
	defer func() { done(err) }()
	command, err := a.parleyd(ctx, &f.proofFlags, dir)
	if err != nil {
		return err
	}
	r := &joinRun{a: a, f: f, dir: dir, command: command, begin: time.Now()}
	r.result.Rate, r.result.CopyRate, r.result.DeadAfter = f.rate, f.copyRate, f.deadAfter.Seconds()
	defer func() {
		for _, b := range r.brokers {
			b.kill()
		}
	}()
	if r.brokers, err = newBrokerProcesses(command, dir, 3); err != nil {
		return err
	}
	for _, b := range r.brokers {
		r.configure(b, "0")
	}
	if err := startTogether(ctx, r.brokers); err != nil {
		return err
	}
	if r.c, err = dial(ctx, connection{Server: r.urls()}, a.timeout); err != nil {
		return err
	}
	defer closeClient(r.c)
	if _, err := r.c.CreateTopic(ctx, client.TopicSpec{Name: joinTopic, Partitions: f.partitions, Replicas: joinReplica}); err != nil {
		return err
	}
	r.say("three brokers have formed a cluster, %s are published", wire.FormatSize(bytes))
	if err := r.fill(ctx, bytes); err != nil {
		return err
	}
	for _, phase := range []func(context.Context) error{r.unthrottled, r.throttled, r.death} {
		if err := phase(ctx); err != nil {
			return err
		}
	}
	return r.result.print(a)
}

func (r *joinRun) urls() string {
	var urls []string
	for _, b := range r.brokers {
		urls = append(urls, b.url())
	}
	return strings.Join(urls, ",")
}

// configure sets what differs between the phases; the rest of a broker's settings begins with its peer port.
func (r *joinRun) configure(b *brokerProcess, copyRate string) {
	b.logPath = filepath.Join(r.dir, b.name+".log")
	if r.f.cutBytes > 0 {
		b.env = []string{fmt.Sprintf("PARLEY_TEST_CUT_BYTES=%d", r.f.cutBytes)}
	}
	if i := indexOf(b.settings, "--copy-rate"); i >= 0 {
		b.settings = b.settings[:i]
	}
	// What moved away goes soon: the disk is to hold five brokers' data once.
	b.settings = append(b.settings, "--copy-rate", copyRate, "--dead-after", r.f.deadAfter.String(), "--trash-grace", "1s", "--log-level", "info")
}

func indexOf(all []string, s string) int {
	for i := range all {
		if all[i] == s {
			return i
		}
	}
	return -1
}

// join starts one more broker.
func (r *joinRun) join(ctx context.Context, copyRate string) (*brokerProcess, error) {
	b, err := newBrokerProcess(r.command, "")
	if err != nil {
		return nil, err
	}
	var peers []string
	for _, o := range r.brokers {
		peers = append(peers, o.peer)
	}
	b.name = fmt.Sprintf("b%d", len(r.brokers)+1)
	b.dir = filepath.Join(r.dir, b.name)
	b.settings = []string{"--peer-listen", b.peer, "--join", strings.Join(peers, ",")}
	r.configure(b, copyRate)
	r.brokers = append(r.brokers, b)
	return b, b.start(ctx)
}

// unthrottled is the first phase.
func (r *joinRun) unthrottled(ctx context.Context) error {
	sum, err := r.stored(ctx)
	if err != nil {
		return err
	}
	res := &r.result
	res.Bytes, res.Optimum = sum, sum*joinReplica/int64(len(r.brokers)+1)
	if res.CopyBefore, err = r.plainCopy(res.Optimum); err != nil {
		return err
	}
	r.say("a plain copy of %s with fsync: %.0f MB/s", wire.FormatSize(res.Optimum), res.CopyBefore)
	begin := time.Now()
	m, err := r.measureMove(ctx, func() error { _, err := r.join(ctx, "0"); return err }, r.even)
	if err != nil {
		return err
	}
	res.Moved, res.Seconds, res.FromStart, res.LoadAverage = m.bytes, m.took.Seconds(), time.Since(begin).Seconds(), loadAverage()
	res.MovedRatio, res.Speed = ratio(m.bytes, res.Optimum), float64(m.bytes)/1e6/m.took.Seconds()
	r.say("b4 has its share: %s moved in %.1f s, %.0f MB/s", wire.FormatSize(m.bytes), res.Seconds, res.Speed)
	if res.CopyAfter, err = r.plainCopy(res.Optimum); err != nil {
		return err
	}
	res.SpeedRatio = res.Speed * 2 / (res.CopyBefore + res.CopyAfter)
	r.say("a plain copy again: %.0f MB/s", res.CopyAfter)
	return nil
}

func ratio(a, b int64) float64 { return float64(a) / float64(max(b, 1)) }

// throttled is the second phase.
func (r *joinRun) throttled(ctx context.Context) error {
	for _, b := range r.brokers {
		if err := b.stop(); err != nil {
			return err
		}
		r.configure(b, r.f.copyRate)
		if err := b.start(ctx); err != nil {
			return err
		}
		if err := r.await(ctx, "all is well after a restart", r.healthy); err != nil {
			return err
		}
	}
	load, err := r.startLoad(ctx)
	if err != nil {
		return err
	}
	defer load.stop()
	if err := sleep(ctx, r.f.baseline/4); err != nil { // connections, leaders that return
		return err
	}
	load.next()
	cpu, err := r.cpu()
	if err != nil {
		return err
	}
	if err := sleep(ctx, r.f.baseline); err != nil {
		return err
	}
	before := load.next()
	res := &r.result
	if res.BusyBefore, res.OthersBefore, err = r.busySince(cpu); err != nil {
		return err
	}
	r.say("%d records a second: p50 %.1f, p99 %.1f, max %.1f ms", r.f.rate, ms(before.percentile(0.5)), ms(before.percentile(0.99)), ms(before.max))
	m, err := r.measureMove(ctx, func() (err error) {
		if _, err = r.join(ctx, r.f.copyRate); err == nil {
			load.next()
			cpu, err = r.cpu()
		}
		return err
	}, r.even)
	if err != nil {
		return err
	}
	during := load.next()
	if res.BusyDuring, res.OthersDuring, err = r.busySince(cpu); err != nil {
		return err
	}
	res.P50Before, res.P99Before, res.MaxBefore = ms(before.percentile(0.5)), ms(before.percentile(0.99)), ms(before.max)
	res.P50During, res.P99During, res.MaxDuring = ms(during.percentile(0.5)), ms(during.percentile(0.99)), ms(during.max)
	res.P99Ratio = res.P99During / max(res.P99Before, 0.001)
	res.DuringMoved, res.DuringTime = m.bytes, m.took.Seconds()
	r.say("while %s moved to b5 in %.1f s: p50 %.1f, p99 %.1f, max %.1f ms", wire.FormatSize(m.bytes), m.took.Seconds(), res.P50During, res.P99During, res.MaxDuring)
	res.RecordsAcked, err = load.finish()
	return err
}

// death is the third phase.
func (r *joinRun) death(ctx context.Context) error {
	victim := r.brokers[len(r.brokers)-1]
	r.brokers = r.brokers[:len(r.brokers)-1]
	begin := time.Now()
	victim.kill()
	r.say("%s is killed", victim.name)
	res := &r.result
	m, err := r.measureMove(ctx, func() error {
		return r.await(ctx, victim.name+" is dead", func(ctx context.Context) string {
			all, err := r.c.Brokers(ctx)
			if err != nil {
				return err.Error()
			}
			for _, b := range all {
				if b.Name == victim.name && b.State != "dead" {
					return "it is " + b.State
				}
			}
			res.Dead = time.Since(begin).Seconds()
			return ""
		})
	}, func(ctx context.Context) string {
		all, err := r.c.Brokers(ctx)
		if err != nil {
			return err.Error()
		}
		for _, b := range all {
			if b.Name == victim.name && b.Replicas > 0 {
				return fmt.Sprintf("it has %d replicas", b.Replicas)
			}
		}
		return r.placed(ctx)
	})
	if err != nil {
		return err
	}
	res.Whole, res.HealCopy, res.HealMoved = time.Since(begin).Seconds(), m.copied.Seconds(), m.bytes
	res.HealSlack = res.Whole - r.f.deadAfter.Seconds() - res.HealCopy
	r.say("all partitions have their replicas again: %s moved", wire.FormatSize(m.bytes))
	return nil
}

// even says why a broker that joined hasn't its share yet.
func (r *joinRun) even(ctx context.Context) string {
	all, err := r.c.Brokers(ctx)
	if err != nil {
		return err.Error()
	}
	least := int(r.f.partitions) * joinReplica / len(all) // rounded down, as shares are
	for _, b := range all {
		if b.Replicas < least*19/20 {
			return fmt.Sprintf("%s has %d replicas, its share is %d", b.Name, b.Replicas, least)
		}
	}
	return r.placed(ctx)
}

// placed says why not every partition has its replicas where it is to have them.
func (r *joinRun) placed(ctx context.Context) string {
	for p, err := range r.c.Partitions(ctx, joinTopic) {
		switch {
		case err != nil:
			return err.Error()
		case p.Move != nil:
			return fmt.Sprintf("partition %d moves: %s", p.Partition, p.Move.Phase)
		case len(p.InSync) < joinReplica:
			return fmt.Sprintf("partition %d has %d replicas in sync", p.Partition, len(p.InSync))
		}
	}
	return ""
}

func (r *joinRun) healthy(ctx context.Context) string {
	h, err := r.c.Health(ctx)
	switch {
	case err != nil:
		return err.Error()
	case !h.Healthy:
		return strings.Join(h.Problems, "; ")
	}
	return ""
}

// await polls until why says nothing more.
func (r *joinRun) await(ctx context.Context, what string, why func(context.Context) string) error {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	last := ""
	for {
		try, stop := context.WithTimeout(ctx, 5*time.Second)
		now := why(try)
		stop()
		if now == "" {
			return nil
		}
		last = now
		if err := sleep(ctx, joinLook); err != nil {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("not within %s: %s: %s", joinLimit, what, last)
			}
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// print says what was found, and fails when a target was missed.
func (res *joinResult) print(a *app) error {
	type line struct {
		what                     string
		measured, beside, target string
		met                      bool
	}
	lines := []line{
		{"a fourth broker joins: bytes moved", wire.FormatSize(res.Moved), fmt.Sprintf("%s have to, %.2f times", wire.FormatSize(res.Optimum), res.MovedRatio),
			fmt.Sprintf("<= %.1f times", targetMoved), res.MovedRatio <= targetMoved},
		{"speed, from the first byte to the last", fmt.Sprintf("%.0f MB/s in %.1f s", res.Speed, res.Seconds),
			fmt.Sprintf("plain copy %.0f and %.0f MB/s, %.2f times", res.CopyBefore, res.CopyAfter, res.SpeedRatio),
			fmt.Sprintf(">= %.1f times", targetCopy), res.SpeedRatio >= targetCopy},
		{"from its start to all in its place", fmt.Sprintf("%.1f s", res.FromStart), "load " + res.LoadAverage, "-", true},
		{fmt.Sprintf("a fifth, at %s a second: publish p99", res.CopyRate), fmt.Sprintf("%.1f ms", res.P99During),
			fmt.Sprintf("%.1f ms without, %.2f times", res.P99Before, res.P99Ratio), fmt.Sprintf("<= %.0f times", targetP99), res.P99Ratio <= targetP99},
		{"p50, max", fmt.Sprintf("%.1f, %.1f ms", res.P50During, res.MaxDuring), fmt.Sprintf("%.1f, %.1f ms without", res.P50Before, res.MaxBefore), "-", true},
		{"moved meanwhile", fmt.Sprintf("%s in %.1f s", wire.FormatSize(res.DuringMoved), res.DuringTime), fmt.Sprintf("%d records a second", res.Rate), "-", true},
		{"processors in use", fmt.Sprintf("%.0f %%, %.0f %% by others", 100*res.BusyDuring, 100*res.OthersDuring),
			fmt.Sprintf("%.0f %%, %.0f %% by others, without", 100*res.BusyBefore, 100*res.OthersBefore), "-", true},
		{"it dies: declared dead after", fmt.Sprintf("%.1f s", res.Dead), fmt.Sprintf("dead-after %.0f s", res.DeadAfter), "-", true},
		{"whole again, beyond dead-after and the copy", fmt.Sprintf("%.1f s", res.HealSlack),
			fmt.Sprintf("%.1f s, of these copying %s %.1f s", res.Whole, wire.FormatSize(res.HealMoved), res.HealCopy),
			fmt.Sprintf("<= %.0f s", targetHeal.Seconds()), res.HealSlack <= targetHeal.Seconds()},
	}
	res.Missed = []string{}
	t := newTable("WHAT", "MEASURED", "BESIDE", "TARGET")
	for _, l := range lines {
		if !l.met {
			res.Missed = append(res.Missed, l.what)
			l.target += ", missed"
		}
		t.row(str(l.what), rightText(l.measured), rightText(l.beside), rightText(l.target))
	}
	var err error
	if a.json() {
		err = a.printJSON(res)
	} else {
		err = a.printTable(t)
	}
	if err == nil && len(res.Missed) > 0 {
		err = errReported
	}
	return err
}
