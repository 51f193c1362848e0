package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/parleymq/parley/client"
)

// Faults of proof chaos that change who belongs to the cluster: brokers that join, are drained, or lose their disk.

const (
	// memberAsk bounds one request about members, memberLook is the pause before the next one.
	memberAsk  = 10 * time.Second
	memberLook = 100 * time.Millisecond
	// leftWithin is how long a broker that was removed may go on running.
	leftWithin = 15 * time.Second
	// disturbed: one in so many of these faults has another broker killed meanwhile.
	disturbed = 3
)

// membersResult is what became of brokers and their disks.
type membersResult struct {
	Joined    int64 `json:"joined"`
	Drained   int64 `json:"drained"`
	Wiped     int64 `json:"wiped"`
	Corrupted int64 `json:"corrupted"`
	Damages   int64 `json:"damages"`          // to files of these
	Refused   int64 `json:"refused_to_start"` // corrupted ones that said so and ended, and got an empty disk
	Ended     int64 `json:"ended_by_damage"`  // corrupted ones that ended later, and went on after a restart
	Filled    int64 `json:"disks_filled"`
	Waited    int64 `json:"copies_waited"` // for room
	Snapshots int64 `json:"snapshots_restored"`
	Fetched   int64 `json:"snapshots_fetched"` // of these, with records fetched from others
}

func (r *membersResult) table(t *table) {
	t.row(str("brokers joined, drained, wiped"), rightText(fmt.Sprintf("%d, %d, %d", r.Joined, r.Drained, r.Wiped)))
	t.row(str("corrupted, of these refused to start, ended later"), rightText(fmt.Sprintf("%d, %d, %d", r.Corrupted, r.Refused, r.Ended)))
	t.row(str("disks filled, copies that waited for room"), rightText(fmt.Sprintf("%d, %d", r.Filled, r.Waited)))
	t.row(str("snapshots restored, with records fetched"), rightText(fmt.Sprintf("%d, %d", r.Snapshots, r.Fetched)))
}

// What brokers log, at level debug or above.
const (
	loggedSnapshot = "replica has taken a snapshot's place in the log"
	loggedFetched  = "replica has fetched what it lacked"
	loggedWaited   = "there is room on the disk again: replica goes on fetching what it lacks"
)

// countSnapshots reads the logs of all brokers there ever were: they outlive the processes that counted.
func (r *membersResult) countSnapshots(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return err
	}
	for _, path := range logs {
		if err := r.countIn(path); err != nil {
			return fmt.Errorf("read a broker's log: %w", err)
		}
	}
	return nil
}

func (r *membersResult) countIn(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const longest = 16 << 20 // a line; goroutines' stacks come in many
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, longest)
	for lines.Scan() {
		switch line := lines.Bytes(); {
		case bytes.Contains(line, []byte(loggedSnapshot)):
			r.Snapshots++
		case bytes.Contains(line, []byte(loggedFetched)):
			r.Fetched++
		case bytes.Contains(line, []byte(loggedWaited)):
			r.Waited++
		}
	}
	return lines.Err()
}

// joinBroker has a new broker join under load, and waits until it has its share. Where all places are taken, one leaves before.
func joinBroker(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
	if len(p.cluster.members) == len(p.cluster.slots) {
		if _, err := p.leave(ctx, p.pick()); err != nil {
			return nil, err
		}
	}
	m, err := p.join(ctx)
	return []*clusterProcess{m}, err
}

// drainBroker has a broker drained, removed and its disk emptied. Where there are no more than at the beginning, one joins before.
func drainBroker(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
	if len(p.cluster.members) <= p.f.brokers {
		if _, err := p.join(ctx); err != nil {
			return nil, err
		}
	}
	m, err := p.leave(ctx, p.pick())
	return []*clusterProcess{m}, err
}

func (p *chaosProof) join(ctx context.Context) (*clusterProcess, error) {
	if len(p.cluster.slots) == p.f.brokers {
		return nil, errors.New("there are no places for brokers that join")
	}
	m, err := p.cluster.admit()
	if err != nil {
		return nil, err
	}
	if err := m.launch(); err != nil {
		return m, err
	}
	if err := m.awaitReady(ctx); err != nil {
		return m, err
	}
	p.members.Joined++
	p.say("%s has joined", m.name)
	if p.rng.IntN(2) == 0 {
		if err := p.fillDuringCopy(ctx, m); err != nil {
			return m, err
		}
	}
	p.disturb(ctx, m)
	return m, p.until(ctx, m.name+" has its share of replicas", func() (bool, string) {
		all, err := p.brokers(ctx)
		if err != nil {
			return false, err.Error()
		}
		total := 0
		for _, b := range all {
			total += b.Replicas
		}
		// Other moves may be under way that keep them from being even.
		has := all[m.name].Replicas
		return has > 0 && has >= total/len(all)/2, fmt.Sprintf("%d of %d", has, total)
	})
}

func (p *chaosProof) leave(ctx context.Context, m *clusterProcess) (*clusterProcess, error) {
	p.cluster.leaves(m, true)
	if err := p.insist(ctx, "drain "+m.name, func(ctx context.Context) error { _, err := p.c.DrainBroker(ctx, m.name); return err }); err != nil {
		return m, err
	}
	p.disturb(ctx, m)
	err := p.until(ctx, m.name+" is empty", func() (bool, string) {
		all, err := p.brokers(ctx)
		if err != nil {
			return false, err.Error()
		}
		b, ok := all[m.name]
		return ok && b.Replicas == 0, fmt.Sprintf("%d replicas are left", b.Replicas)
	})
	if err != nil {
		return m, err
	}
	if err := p.insist(ctx, "remove "+m.name, func(ctx context.Context) error { _, err := p.c.RemoveBroker(ctx, m.name); return err }); err != nil {
		return m, err
	}
	limit := time.NewTimer(leftWithin)
	defer limit.Stop()
	select {
	case <-m.ended:
		if code := m.cmd.ProcessState.ExitCode(); code != exitFailed {
			p.audit.anomaly(&p.audit.failures, "%s ended with status %d when it was removed, want %d: %s", m.name, code, exitFailed, m.lastLog())
		}
	case <-limit.C:
		p.audit.anomaly(&p.audit.failures, "%s runs %s after it was removed", m.name, leftWithin)
	case <-ctx.Done():
		return m, ctx.Err()
	}
	m.kill()
	p.cluster.dismiss(m)
	p.cluster.leaves(m, false)
	p.members.Drained++
	p.say("%s was drained and removed", m.name)
	return m, os.RemoveAll(m.dir)
}

// wipeBroker loses a broker's disk, while the others are whole. It comes back under its name, as another broker.
func wipeBroker(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
	if err := p.settle(ctx, time.Now(), true); err != nil {
		return nil, err
	}
	m := p.pick()
	m.kill()
	p.members.Wiped++
	p.hold(ctx, 0, 2*time.Second)
	return []*clusterProcess{m}, p.replaceDisk(ctx, m)
}

// replaceDisk starts a broker that was killed with an empty disk, as docs/operations.md says, and waits until
// what it was before is gone from the cluster.
func (p *chaosProof) replaceDisk(ctx context.Context, m *clusterProcess) error {
	if err := os.RemoveAll(m.dir); err != nil {
		return err
	}
	for i, s := range m.settings {
		if s == "--join" {
			m.settings[i+1] = p.cluster.seeds(m)
		}
	}
	if err := m.launch(); err != nil {
		return err
	}
	if err := m.awaitReady(ctx); err != nil {
		return err
	}
	return p.until(ctx, "what "+m.name+" was before is gone", func() (bool, string) {
		all, err := p.brokers(ctx)
		if err != nil {
			return false, err.Error()
		}
		for name, b := range all {
			if strings.HasPrefix(name, m.name+"~") {
				return false, fmt.Sprintf("%s is %s and has %d replicas", name, b.State, b.Replicas)
			}
		}
		return true, ""
	})
}

// disturb kills another broker in the middle, now and then.
func (p *chaosProof) disturb(ctx context.Context, but *clusterProcess) {
	if p.rng.IntN(disturbed) != 0 {
		return
	}
	p.hold(ctx, 0, 3*time.Second)
	m := p.pick()
	if m == but {
		return
	}
	p.say("%s is killed meanwhile", m.name)
	m.kill()
	p.hold(ctx, 0, 2*time.Second)
	if err := m.launch(); err != nil {
		p.audit.anomaly(&p.audit.failures, "%v", err)
	}
}

// brokers that the cluster knows, by name.
func (p *chaosProof) brokers(ctx context.Context) (map[string]client.BrokerDescription, error) {
	ctx, cancel := context.WithTimeout(ctx, memberAsk)
	defer cancel()
	list, err := p.c.Brokers(ctx)
	all := map[string]client.BrokerDescription{}
	for _, b := range list {
		all[b.Name] = b
	}
	return all, err
}

// until waits for something to become so.
func (p *chaosProof) until(ctx context.Context, what string, so func() (bool, string)) error {
	deadline := time.Now().Add(p.f.recovery)
	tick := time.NewTicker(memberLook)
	defer tick.Stop()
	for {
		ok, why := so()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			p.report(ctx)
			p.audit.anomaly(&p.audit.failures, "not within %s: %s: %s", p.f.recovery, what, why)
			return fmt.Errorf("%w within %s: %s: %s", errStuck, p.f.recovery, what, why)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// insist asks for a change until it is made; what may not be tried again ends it.
func (p *chaosProof) insist(ctx context.Context, what string, ask func(context.Context) error) error {
	var refused error
	err := p.until(ctx, what, func() (bool, string) {
		try, cancel := context.WithTimeout(ctx, memberAsk)
		defer cancel()
		err := ask(try)
		var e *client.Error
		if err == nil || errors.As(err, &e) && !e.Retriable {
			refused = err
			return true, ""
		}
		return false, err.Error()
	})
	if err == nil && refused != nil {
		err = fmt.Errorf("%s: %w", what, refused)
	}
	return err
}
