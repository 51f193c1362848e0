package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A fault is made, held, and undone; then the cluster must settle.
type faultKind struct {
	name   string
	target string // only for proof failover: how long a partition may be without acks
	wide   bool   // it concerns all partitions, not only those that the victim leads
	make   func(ctx context.Context, p *chaosProof) (victims []*clusterProcess, err error)
}

// faultResult sums the faults of one kind up.
type faultResult struct {
	Count   int64   `json:"count"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	Max     float64 `json:"max_ms"`
	N       uint64  `json:"n"`
	Lane    float64 `json:"lane_max_ms"`
	Settled float64 `json:"healthy_after_max_ms"`

	target  string
	gaps    histogram     // times without acks of the partitions that the fault concerned
	lane    time.Duration // longest time without acks of one producer in one partition
	settled time.Duration // longest time until all was healthy
}

// MarshalJSON fills in the figures.
func (r *faultResult) MarshalJSON() ([]byte, error) {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	type figures faultResult
	f := figures{Count: r.Count, P50: ms(r.gaps.percentile(0.5)), P99: ms(r.gaps.percentile(0.99)), Max: ms(r.gaps.max), N: r.gaps.total,
		Lane: ms(r.lane), Settled: ms(r.settled)}
	return json.Marshal(&f)
}

// Limits of faults.
const (
	settleLimit   = 90 * time.Second
	takeOverLimit = 15 * time.Second // a lost leader's partitions have another one by then
	stillAcked    = time.Second      // acks that were under way when the majority went
)

var faults []faultKind

func init() {
	faults = []faultKind{
		{name: "kill", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pick()
			m.kill()
			p.hold(ctx, 0, 4*time.Second)
			return []*clusterProcess{m}, m.launch()
		}},
		{name: "kill-leader", make: killLeader},
		{name: "pause", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pick()
			m.signal(syscall.SIGSTOP)
			p.hold(ctx, time.Second, 8*time.Second)
			m.signal(syscall.SIGCONT)
			return []*clusterProcess{m}, nil
		}},
		{name: "cut", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pick()
			p.cluster.network.each(m.index, true, false, 0)
			p.hold(ctx, time.Second, 8*time.Second)
			return []*clusterProcess{m}, nil
		}},
		{name: "reset", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pick()
			p.cluster.network.each(m.index, false, true, 0)
			p.hold(ctx, time.Second, 8*time.Second)
			return []*clusterProcess{m}, nil
		}},
		{name: "cut-pair", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			a, b := p.two()
			p.cluster.network.set(a.index, b.index, true, false, 0)
			p.cluster.network.set(b.index, a.index, true, false, 0)
			p.hold(ctx, time.Second, 8*time.Second)
			return []*clusterProcess{a, b}, nil
		}},
		{name: "one-way", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			a, b := p.two()
			p.cluster.network.set(a.index, b.index, true, false, 0)
			p.hold(ctx, time.Second, 8*time.Second)
			return []*clusterProcess{a, b}, nil
		}},
		// Hears nothing: what a leader sends reaches the others, and it never learns that they have
		// it. Whoever leads next has it in its log, and the clients send it again.
		{name: "deaf", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pick()
			p.cluster.network.inward(m.index, true)
			p.hold(ctx, time.Second, 8*time.Second)
			return []*clusterProcess{m}, nil
		}},
		// Says nothing: what clients publish to it while it still leads reaches nobody else.
		{name: "mute", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pick()
			p.cluster.network.outward(m.index, true)
			p.hold(ctx, time.Second, 8*time.Second)
			return []*clusterProcess{m}, nil
		}},
		{name: "delay", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pick()
			p.cluster.network.each(m.index, false, false, p.between(20*time.Millisecond, 200*time.Millisecond))
			p.hold(ctx, 2*time.Second, 8*time.Second)
			return []*clusterProcess{m}, nil
		}},
		// Stops for moments, again and again, as one whose disk or machine stalls.
		{name: "stutter", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pick()
			for end := time.Now().Add(p.between(2*time.Second, 6*time.Second)); time.Now().Before(end) && ctx.Err() == nil; {
				m.signal(syscall.SIGSTOP)
				p.hold(ctx, 50*time.Millisecond, 600*time.Millisecond)
				m.signal(syscall.SIGCONT)
				p.hold(ctx, 10*time.Millisecond, 300*time.Millisecond)
			}
			return []*clusterProcess{m}, nil
		}},
		{name: "restart", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pick()
			if err := m.stop(); err != nil {
				p.audit.anomaly(&p.audit.failures, "%v", err)
			}
			p.hold(ctx, 0, 2*time.Second)
			return []*clusterProcess{m}, m.launch()
		}},
		{name: "kill-two", make: killMajority},
		{name: "all-down", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			for _, m := range p.cluster.members {
				m.kill()
			}
			p.hold(ctx, 0, time.Second)
			for _, m := range p.cluster.members {
				if err := m.launch(); err != nil {
					return nil, err
				}
			}
			return slices.Clone(p.cluster.members), nil
		}},
		{name: "join", wide: true, make: joinBroker},
		{name: "drain", wide: true, make: drainBroker},
		{name: "wipe", make: wipeBroker},
		{name: "corrupt", make: corruptBroker},
		{name: "disk-full", wide: true, make: fillDisk},
	}
	// Of proof failover: the broker comes back once the others have taken over, so that its return has no
	// part in the figure.
	failovers = []faultKind{
		{name: "leader killed", target: "p99 < 2 s", make: killLeader},
		{name: "leader paused", target: "< 5 s", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pickLeader(ctx)
			m.signal(syscall.SIGSTOP)
			defer m.signal(syscall.SIGCONT)
			return []*clusterProcess{m}, p.takenOver(ctx, m, "paused")
		}},
		{name: "leader cut off", target: "< 5 s", make: func(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
			m := p.pickLeader(ctx)
			p.cluster.network.each(m.index, true, false, 0) // fault heals it
			return []*clusterProcess{m}, p.takenOver(ctx, m, "cut off")
		}},
	}
}

// failovers, in the order of their flags' words.
var (
	failovers     []faultKind
	failoverWords = []string{"kill", "pause", "cut"}
)

func faultIndex(name string) int {
	return slices.IndexFunc(faults, func(k faultKind) bool { return k.name == name })
}

func faultNames() []string {
	var names []string
	for _, k := range faults {
		names = append(names, k.name)
	}
	return names
}

func chooseFailovers(words []string) ([]faultKind, error) {
	var kinds []faultKind
	for _, word := range words {
		i := slices.Index(failoverWords, word)
		if i < 0 {
			return nil, usagef("--how %q: want some of: %s", word, strings.Join(failoverWords, ", "))
		}
		kinds = append(kinds, failovers[i])
	}
	if len(kinds) == 0 {
		return nil, usagef("--how: want some of: %s", strings.Join(failoverWords, ", "))
	}
	return kinds, nil
}

func chooseFaults(names []string) ([]faultKind, error) {
	if len(names) == 0 {
		names = faultNames()
	}
	var kinds []faultKind
	for _, name := range names {
		i := faultIndex(name)
		if i < 0 {
			return nil, usagef("--faults %q: want some of: %s", name, strings.Join(faultNames(), ", "))
		}
		kinds = append(kinds, faults[i])
	}
	return kinds, nil
}

// killLeader kills a broker that leads a partition and waits until acks come from all
// partitions again before it is started.
func killLeader(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
	m := p.pickLeader(ctx)
	m.kill()
	if err := p.takenOver(ctx, m, "killed"); err != nil {
		return nil, err
	}
	return []*clusterProcess{m}, m.launch()
}

// pickLeader picks a broker that leads something.
func (p *chaosProof) pickLeader(ctx context.Context) *clusterProcess {
	m := p.pick()
	for _, name := range leaders(ctx, p.c, chaosTopic) {
		if leader := p.cluster.member(name); leader != nil {
			if m = leader; p.rng.IntN(2) == 0 {
				break
			}
		}
	}
	return m
}

// takenOver waits until acks come from all partitions again, and notes it when they don't.
func (p *chaosProof) takenOver(ctx context.Context, m *clusterProcess, how string) error {
	at := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for time.Since(at) < takeOverLimit {
		if p.audit.partsSince(at) == int(p.f.partitions) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if n := p.audit.partsSince(at); n < int(p.f.partitions) {
		p.audit.anomaly(&p.audit.failures, "%s after %s was %s, %d of %d partitions have acks", takeOverLimit, m.name, how, n, p.f.partitions)
	}
	return nil
}

// killMajority leaves too few for any ack.
func killMajority(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
	order := p.rng.Perm(len(p.cluster.members))[:len(p.cluster.members)/2+1]
	var victims []*clusterProcess
	for _, i := range order {
		p.cluster.members[i].kill()
		victims = append(victims, p.cluster.members[i])
	}
	if len(p.cluster.members) == 3 { // each partition has all its replicas there
		p.wait(ctx, stillAcked)
		before := p.audit.all.Load()
		p.hold(ctx, time.Second, 4*time.Second)
		if after := p.audit.all.Load(); after > before {
			p.audit.anomaly(&p.audit.failures, "%d acks came while two of three brokers were down", after-before)
		}
	} else {
		p.hold(ctx, time.Second, 4*time.Second)
	}
	for n, m := range victims {
		if n > 0 {
			p.hold(ctx, 0, 2*time.Second)
		}
		if err := m.launch(); err != nil {
			return nil, err
		}
	}
	return victims, nil
}

func (p *chaosProof) pick() *clusterProcess {
	return p.cluster.members[p.rng.IntN(len(p.cluster.members))]
}

func (p *chaosProof) two() (a, b *clusterProcess) {
	order := p.rng.Perm(len(p.cluster.members))
	return p.cluster.members[order[0]], p.cluster.members[order[1]]
}

func (p *chaosProof) between(least, most time.Duration) time.Duration {
	return least + time.Duration(p.rng.Int64N(int64(most-least)))
}

func (p *chaosProof) hold(ctx context.Context, least, most time.Duration) {
	p.wait(ctx, p.between(least, most))
}

func (p *chaosProof) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// fault makes one, undoes it and waits until the cluster has settled.
func (p *chaosProof) fault(ctx context.Context, n int, kind faultKind) error {
	led := leaders(ctx, p.c, chaosTopic)
	p.audit.begin()
	begin, acked := time.Now(), p.audit.all.Load()
	victims, err := kind.make(ctx, p)
	if err != nil {
		return fmt.Errorf("fault %d, %s: %w", n, kind.name, err)
	}
	p.cluster.network.heal()
	var names []string
	for _, m := range victims {
		names = append(names, m.name)
	}
	held := time.Since(begin)
	undone := time.Now()
	// Now and then the next fault comes before all replicas have caught up.
	whole := kind.target != "" || p.rng.IntN(3) > 0
	if err := p.settle(ctx, undone, whole); err != nil {
		return fmt.Errorf("fault %d, %s of %s: %w", n, kind.name, strings.Join(names, ", "), err)
	}
	r := p.results[kind.name]
	if r == nil {
		r = &faultResult{target: kind.target}
		p.results[kind.name] = r
	}
	r.Count++
	parts, lane := p.audit.gaps()
	longest, concerned := time.Duration(0), 0
	for part, gap := range parts {
		longest = max(longest, gap)
		if len(victims) == 1 && !kind.wide && led[int32(part)] != victims[0].name && len(led) == len(parts) {
			continue
		}
		concerned++
		r.gaps.record(gap)
	}
	settled := time.Since(undone)
	r.lane = max(r.lane, lane)
	if whole {
		r.settled = max(r.settled, settled)
	}
	p.say("fault %d: %s of %s for %.1f s, %d partitions led there; longest without acks: a partition %d ms, a producer %d ms; settled %.1f s later; %s acked meanwhile",
		n, kind.name, strings.Join(names, ", "), held.Seconds(), concerned, longest.Milliseconds(), lane.Milliseconds(), settled.Seconds(),
		grouped(fmt.Sprint(p.audit.all.Load()-acked)))
	if whole {
		if err := p.change(ctx); err != nil {
			return err
		}
	}
	pause := 1500 * time.Millisecond
	if kind.target != "" {
		pause = 500 * time.Millisecond
	}
	p.hold(ctx, 100*time.Millisecond, pause)
	return ctx.Err()
}

// partsSince counts the partitions with acks after t.
func (a *chaosAudit) partsSince(t time.Time) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, p := range a.pulses {
		if p.last.After(t) {
			n++
		}
	}
	return n
}

// settle waits until all brokers are ready and every producer has acks from every partition;
// whole: and until the cluster says that it is healthy.
func (p *chaosProof) settle(ctx context.Context, since time.Time, whole bool) error {
	deadline := time.Now().Add(p.f.recovery)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		why := p.unsettled(ctx, since, whole)
		if why == "" {
			return nil
		}
		if time.Now().After(deadline) {
			p.report(ctx)
			p.audit.anomaly(&p.audit.failures, "not settled within %s: %s", p.f.recovery, why)
			return fmt.Errorf("%w within %s: %s", errStuck, p.f.recovery, why)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *chaosProof) unsettled(ctx context.Context, since time.Time, whole bool) string {
	for _, m := range p.cluster.members {
		if m.down() {
			p.audit.anomaly(&p.audit.failures, "%s ended by itself: %s", m.name, m.lastLog())
			m.cmd = nil
			if err := m.launch(); err != nil {
				return err.Error()
			}
		}
	}
	for _, m := range p.cluster.members {
		if !m.ready(ctx) {
			return fmt.Sprintf("%s is not ready: %s", m.name, m.why(ctx))
		}
	}
	if n, first := p.audit.silent(since); n > 0 {
		return fmt.Sprintf("%d producers wait for acks in partitions, %s among them", n, first)
	}
	if !whole {
		return ""
	}
	h, err := health(ctx, p.c)
	switch {
	case err != nil:
		return fmt.Sprintf("nobody tells the cluster's health: %v", err)
	case !h.Healthy:
		return "not healthy: " + strings.Join(h.Problems, "; ")
	}
	return ""
}

// report says how each broker sees a cluster that is stuck, and has each write its goroutines to its log.
func (p *chaosProof) report(ctx context.Context) {
	for _, m := range p.cluster.members {
		c, err := dial(ctx, connection{Server: m.url()}, p.a.timeout)
		if err != nil {
			p.say("%s: %v; ready: %s", m.name, err, m.why(ctx))
			continue
		}
		h, err := health(ctx, c)
		p.say("%s: healthy %v, %s, %v; ready: %s; leaders %v", m.name, h.Healthy, strings.Join(h.Problems, "; "), err, m.why(ctx), leaders(ctx, c, chaosTopic))
		closeClient(c)
	}
	for _, m := range p.cluster.members {
		m.signal(syscall.SIGQUIT)
	}
	p.wait(ctx, time.Second)
}
