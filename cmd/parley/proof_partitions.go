package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// partitionsProof measures what many partitions cost.
type partitionsProof struct {
	partitions int32
	settle     time.Duration
	idle       time.Duration
	kills      int
	proofFlags
}

// Targets of the proof, on two cores with all three brokers.
const (
	targetCreated = 60.0 // seconds
	targetRSS     = 1.6  // GiB a broker
	targetIdle    = 25.0 // per cent of a core a broker
	targetElected = 10.0 // seconds
	createdLimit  = 5 * time.Minute
	electedLimit  = 2 * time.Minute
	clockTick     = 100 // of /proc: USER_HZ, the same on every Linux that Go runs on
	gib           = 1 << 30
	leadingMetric = "parley_partition_leading"
	ledPoll       = 200 * time.Millisecond
)

// partitionsResult is what one run found. Figures of brokers are the largest one's, but for CPU seconds,
// which are of all of them together.
type partitionsResult struct {
	Partitions int32      `json:"partitions"`
	Created    float64    `json:"created_seconds"`
	CreatedCPU float64    `json:"created_cpu_seconds"`
	IdleCPU    float64    `json:"idle_cpu_percent"`
	IdleMinute float64    `json:"idle_cpu_seconds_a_minute"`
	IdleTerms  int64      `json:"leader_changes_while_idle"`
	RSS        float64    `json:"rss_gib"`
	PeakRSS    float64    `json:"peak_rss_gib"`
	Elections  []election `json:"elections"`
}

type election struct {
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu_seconds"`
	Led     int     `json:"led_by_the_killed_broker"`
}

func (r *partitionsResult) worstElection() (worst election) {
	for _, e := range r.Elections {
		if e.Seconds > worst.Seconds {
			worst = e
		}
	}
	return worst
}

func (a *app) partitionsCommand() *cobra.Command {
	f := partitionsProof{partitions: 1000, settle: 20 * time.Second, idle: time.Minute, kills: 3}
	cmd := &cobra.Command{
		Use: "partitions", Short: "Measures what many partitions cost: creating, idling, memory, electing", Args: cobra.NoArgs,
		Long: `Starts three brokers as processes, creates a topic of so many partitions with three replicas, waits until all are
led, leaves them alone, then kills a broker with SIGKILL and waits until all are led again, several times. CPU is
what the processes used (user and system, of /proc), so a busy machine falsifies times but hardly CPU. On a
quiet machine with two cores the targets are those of the last column.`,
		Example: "  go run ./cmd/parley proof partitions --partitions 1000",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.partitions < 1 || f.kills < 0 || f.idle < time.Second {
				return usagef("--partitions %d --kills %d --idle %s: want 1, 0 and 1s or more", f.partitions, f.kills, f.idle)
			}
			return a.provePartitions(cmd.Context(), &f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Int32Var(&f.partitions, "partitions", f.partitions, "so `many` partitions")
	flags.DurationVar(&f.settle, "settle", f.settle, "how `long` they are left alone before idling is measured")
	flags.DurationVar(&f.idle, "idle", f.idle, "how `long` idling is measured")
	flags.IntVar(&f.kills, "kills", f.kills, "so `many` kills")
	flags.StringVar(&f.parleyd, "parleyd", "", "the parleyd `binary` (default: built from this source tree)")
	flags.BoolVar(&f.keep, "keep", false, "keep the working directory; it stays after a failure in any case")
	return cmd
}

func (a *app) provePartitions(ctx context.Context, f *partitionsProof) (err error) {
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
	brokers, server, stop, err := threeBrokers(ctx, command, dir)
	if err != nil {
		return err
	}
	defer stop()
	c, err := dial(ctx, connection{Server: server}, createdLimit)
	if err != nil {
		return err
	}
	defer closeClient(c)
	r := partitionsResult{Partitions: f.partitions}
	if err := r.create(ctx, c, brokers); err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "%d partitions are led after %.1f s and %.1f s of CPU; measuring %s of idling\n", r.Partitions, r.Created, r.CreatedCPU, f.idle)
	if err := r.idle(ctx, brokers, f); err != nil {
		return err
	}
	for n := range f.kills {
		e, err := r.elect(ctx, c, brokers, n%len(brokers))
		if err != nil {
			return err
		}
		r.Elections = append(r.Elections, e)
		fmt.Fprintf(a.stderr, "kill %d: the broker led %d, all are led again after %.2f s and %.2f s of CPU\n", n+1, e.Led, e.Seconds, e.CPU)
	}
	if a.json() {
		return a.printJSON(&r)
	}
	return r.print(a)
}

// threeBrokers starts a cluster of three processes. stop kills them, and is called whatever becomes of the proof.
func threeBrokers(ctx context.Context, command []string, dir string) (brokers []*brokerProcess, server string, stop func(), err error) {
	if brokers, err = newBrokerProcesses(command, dir, 3); err != nil {
		return nil, "", nil, err
	}
	stop = func() {
		for _, b := range brokers {
			b.kill()
		}
	}
	if err := startTogether(ctx, brokers); err != nil {
		stop()
		return nil, "", nil, err
	}
	urls := make([]string, len(brokers))
	for i, b := range brokers {
		urls[i] = b.url()
	}
	return brokers, strings.Join(urls, ","), stop, nil
}

func startTogether(ctx context.Context, brokers []*brokerProcess) error {
	errs := make([]error, len(brokers))
	var wg sync.WaitGroup
	for i, b := range brokers {
		wg.Go(func() { errs[i] = b.start(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *partitionsResult) print(a *app) error {
	t := newTable("WHAT", "MEASURED", "CPU OF ALL BROKERS", "TARGET")
	s := func(format string, v ...any) cell { return rightText(fmt.Sprintf(format, v...)) }
	t.row(str(fmt.Sprintf("%d partitions created and led", r.Partitions)), s("%.1f s", r.Created), s("%.1f s", r.CreatedCPU), s("< %.0f s", targetCreated))
	t.row(str("idle, of a core, the busiest broker"), s("%.1f %%", r.IdleCPU), s("%.1f s a minute", r.IdleMinute), s("< %.0f %%", targetIdle))
	t.row(str("memory, the largest broker"), s("%.2f GiB (peak %.2f)", r.RSS, r.PeakRSS), s("-"), s("< %.1f GiB", targetRSS))
	w := r.worstElection()
	t.row(str("all led again after a kill, the slowest"), s("%.2f s", w.Seconds), s("%.1f s", w.CPU), s("< %.0f s", targetElected))
	if err := a.printTable(t); err != nil {
		return err
	}
	if r.IdleTerms > 0 {
		fmt.Fprintf(a.stderr, "leadership changed %d times while nothing happened: the machine was too busy, or had not settled, for the figure of idling\n", r.IdleTerms)
	}
	return nil
}

// create makes the topic and waits until all its partitions are led.
func (r *partitionsResult) create(ctx context.Context, c *client.Client, brokers []*brokerProcess) error {
	ctx, cancel := context.WithTimeout(ctx, createdLimit)
	defer cancel()
	before, begin := cpuSeconds(brokers...), time.Now()
	made := make(chan error, 1)
	go func() { // ends with ctx, and is waited for below
		_, err := c.CreateTopic(ctx, client.TopicSpec{Name: "many", Partitions: r.Partitions, Replicas: 3})
		made <- err
	}()
	err := awaitLed(ctx, c, int(r.Partitions), brokers...)
	r.Created, r.CreatedCPU = time.Since(begin).Seconds(), cpuSeconds(brokers...)-before
	if err != nil {
		cancel()
		return errors.Join(err, <-made)
	}
	return <-made
}

// awaitLed waits until the brokers lead so many partitions together. What leads is asked of the
// cluster, which costs next to nothing, and then counted in the brokers' metrics.
func awaitLed(ctx context.Context, c *client.Client, want int, brokers ...*brokerProcess) error {
	poll := time.NewTicker(ledPoll)
	defer poll.Stop()
	for {
		told, led := 0, 0
		all, err := c.Brokers(ctx)
		for _, known := range all {
			for _, b := range brokers {
				if b.name == known.Name {
					told += known.Leaders
				}
			}
		}
		if told >= want {
			for _, b := range brokers {
				led += b.leads(ctx)
			}
		}
		if led >= want {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d partitions are led: %w", told, want, errors.Join(ctx.Err(), err))
		}
	}
}

// leads counts the partitions that a broker leads.
func (p *brokerProcess) leads(ctx context.Context) (n int) {
	var body bytes.Buffer
	if p.get(ctx, "/metrics", &body) != nil {
		return 0 // it is busy: asked again
	}
	for line := range strings.Lines(body.String()) {
		if strings.HasPrefix(line, leadingMetric+"{") && strings.HasSuffix(strings.TrimSpace(line), "} 1") {
			n++
		}
	}
	return n
}

func (r *partitionsResult) idle(ctx context.Context, brokers []*brokerProcess, f *partitionsProof) error {
	if err := sleep(ctx, f.settle); err != nil {
		return err
	}
	terms := func() (n int64) {
		for _, b := range brokers {
			if v, err := b.metric(ctx, "parley_raft_leader_changes", ""); err == nil {
				n += v
			}
		}
		return n
	}
	elections := terms()
	before, begin := make([]float64, len(brokers)), time.Now()
	for i, b := range brokers {
		before[i] = cpuSeconds(b)
	}
	if err := sleep(ctx, f.idle); err != nil {
		return err
	}
	span := time.Since(begin).Seconds()
	for i, b := range brokers {
		used := cpuSeconds(b) - before[i]
		r.IdleMinute += used / span * 60
		r.IdleCPU = max(r.IdleCPU, used/span*100)
		rss, peak := memory(b)
		r.RSS, r.PeakRSS = max(r.RSS, rss), max(r.PeakRSS, peak)
	}
	r.IdleTerms = terms() - elections
	return nil
}

// elect kills a broker, waits until the others lead everything, and brings it back.
func (r *partitionsResult) elect(ctx context.Context, c *client.Client, brokers []*brokerProcess, which int) (election, error) {
	victim := brokers[which]
	var others []*brokerProcess
	for _, b := range brokers {
		if b != victim {
			others = append(others, b)
		}
	}
	e := election{Led: victim.leads(ctx)}
	limited, cancel := context.WithTimeout(ctx, electedLimit)
	defer cancel()
	before, begin := cpuSeconds(others...), time.Now()
	victim.kill()
	if err := awaitLed(limited, c, int(r.Partitions), others...); err != nil {
		return e, fmt.Errorf("after %s was killed: %w", victim.name, err)
	}
	e.Seconds, e.CPU = time.Since(begin).Seconds(), cpuSeconds(others...)-before
	if err := victim.start(ctx); err != nil {
		return e, err
	}
	// Until it has its leaderships back, or a part of them.
	limited, cancel = context.WithTimeout(ctx, electedLimit)
	defer cancel()
	poll := time.NewTicker(time.Second)
	defer poll.Stop()
	for victim.leads(limited) < int(r.Partitions)/4 {
		select {
		case <-poll.C:
		case <-limited.Done():
			return e, fmt.Errorf("%s has not got its leaderships back %s after it was ready", victim.name, electedLimit)
		}
	}
	return e, nil
}

// cpuSeconds is what processes have used since they started, 0 for one that is gone.
func cpuSeconds(brokers ...*brokerProcess) (sum float64) {
	for _, b := range brokers {
		if b.cmd == nil || b.cmd.Process == nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.cmd.Process.Pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ") // the name may hold anything
		if fields := strings.Fields(rest); len(fields) > 12 {
			user, _ := strconv.ParseFloat(fields[11], 64) // of the kernel, a number always
			system, _ := strconv.ParseFloat(fields[12], 64)
			sum += (user + system) / clockTick
		}
	}
	return sum
}

// memory of a process in GiB: resident now, and at the most.
func memory(b *brokerProcess) (now, peak float64) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		switch {
		case err != nil:
		case name == "VmRSS":
			now = kib * 1024 / gib
		case name == "VmHWM":
			peak = kib * 1024 / gib
		}
	}
	return now, peak
}
