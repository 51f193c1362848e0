package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/cmd/internal/diskuse"
)

// Faults of proof chaos that concern disks: full ones, and such as give back other bytes than were written.

const (
	// diskHead is what may still be written until a disk that fills up is full.
	diskHead = 16 << 20
	// fullWithin is how long brokers with full disks may go on acking.
	fullWithin = 10 * time.Second
	// corruptions of one broker, at most.
	corruptions = 3
	// restarts of a broker that ends for the damage, before its disk is taken for lost.
	corruptRestarts = 2
	// damageTries: not every file lends itself to what is drawn.
	damageTries = 100
)

// limitDisk makes a broker's disk so large that so much can still be written before publishes are refused; below zero: they are refused
// at once. It returns the disk's size.
func (m *clusterProcess) limitDisk(head int64) (size int64, err error) {
	used, err := diskuse.Of(m.dir)
	if err != nil {
		return 0, err
	}
	size = used + testDiskFloor + head
	// Renamed: a broker that reads half a number would see another disk.
	if err := os.WriteFile(m.disk+".new", []byte(strconv.FormatInt(size, 10)), 0o600); err != nil {
		return 0, err
	}
	return size, os.Rename(m.disk+".new", m.disk)
}

// freeDisk makes it very large again, and reports whether more was written than there was room for.
func (m *clusterProcess) freeDisk(size int64) (over int64, err error) {
	used, err := diskuse.Of(m.dir)
	return max(used-size, 0), errors.Join(err, os.Remove(m.disk))
}

// fillDisk has one broker's disk fill up, or those of all at the same time.
func fillDisk(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
	victims, head := []*clusterProcess{p.pick()}, p.rng.Int64N(diskHead)
	all := p.rng.IntN(3) == 0
	if all {
		victims, head = append(victims[:0], p.cluster.members...), -1
	}
	sizes := map[*clusterProcess]int64{}
	for _, m := range victims {
		size, err := m.limitDisk(head)
		if err != nil {
			return victims, err
		}
		sizes[m] = size
		p.members.Filled++
	}
	if all {
		p.refused(ctx)
	}
	p.hold(ctx, time.Second, 6*time.Second)
	for m, size := range sizes {
		over, err := m.freeDisk(size)
		if err != nil {
			return victims, err
		}
		if over > 0 {
			p.audit.anomaly(&p.audit.failures, "%s wrote %d bytes more than its disk had room for", m.name, over)
		}
	}
	return victims, nil
}

// refused waits until every partition refuses publishes by name.
func (p *chaosProof) refused(ctx context.Context) {
	deadline := time.Now().Add(fullWithin)
	nc, err := plainConnect(p.cluster.urls())
	if err != nil {
		p.audit.anomaly(&p.audit.failures, "connect to a cluster whose disks are full: %v", err)
		return
	}
	defer nc.Close()
	for part := range p.f.partitions {
		for {
			// A batch of no partition's own: were it taken, it would be a phantom. So it is an empty record to
			// offset 0 of a log that is longer, by compare-and-append, which a leader with room would refuse as well.
			m := nats.NewMsg(chaosTopic)
			m.Header.Set(wire.HeaderPart, strconv.Itoa(int(part)))
			m.Header.Set(wire.HeaderExpect, "0")
			err := plainAck(ctx, nc, m, &wire.PubAck{})
			var e *client.Error
			if errors.As(err, &e) && e.Reason == wire.ReasonDiskFull {
				if !e.Retriable {
					p.audit.anomaly(&p.audit.failures, "a publish to partition %d is refused for good: %v", part, err)
				}
				break
			}
			if ctx.Err() != nil {
				return
			}
			if time.Now().After(deadline) {
				p.audit.anomaly(&p.audit.failures, "all disks are full for %s, and a publish to partition %d is answered with %v, not with %s", fullWithin, part, err, wire.ReasonDiskFull)
				return
			}
			p.wait(ctx, memberLook)
		}
	}
	p.say("all disks are full, every partition says so")
}

// fillDuringCopy has the disk of a broker that has just joined fill up while it gets its share.
func (p *chaosProof) fillDuringCopy(ctx context.Context, m *clusterProcess) error {
	size, err := m.limitDisk(p.rng.Int64N(diskHead / 4))
	if err != nil {
		return err
	}
	p.members.Filled++
	full := false
	for end := time.Now().Add(p.between(8*time.Second, 14*time.Second)); time.Now().Before(end) && ctx.Err() == nil; p.wait(ctx, memberLook) {
		if n, err := m.metric(ctx, metricDiskFull, ""); err == nil && n > 0 {
			full = true
			break
		}
	}
	if full {
		p.say("the disk of %s is full, in the middle of what it gets", m.name)
		p.hold(ctx, time.Second, 4*time.Second)
	}
	over, err := m.freeDisk(size)
	if over > 0 {
		p.audit.anomaly(&p.audit.failures, "%s wrote %d bytes more than its disk had room for, copies of partitions among them", m.name, over)
	}
	return err
}

const metricDiskFull = "parley_disk_full"

// corruptBroker damages files of a broker that was killed, while the others are whole. It starts with what is left, or says that it can't and gets
// an empty disk. Whatever it serves is audited; nothing of it is left in the end.
func corruptBroker(ctx context.Context, p *chaosProof) ([]*clusterProcess, error) {
	if err := p.settle(ctx, time.Now(), true); err != nil {
		return nil, err
	}
	m := p.pick()
	m.kill()
	p.members.Corrupted++
	p.corrupted[m.name] = true
	for range 1 + p.rng.IntN(corruptions) {
		what, err := damageFile(m.dir, p.rng)
		if err != nil {
			return nil, err
		}
		p.members.Damages++
		p.say("%s: %s", m.name, what)
	}
	if err := m.launch(); err != nil {
		return nil, err
	}
	if err := p.heal(ctx, m); err != nil {
		return nil, err
	}
	return []*clusterProcess{m}, nil
}

// heal waits until a damaged broker is whole, and starts it again where it ends.
func (p *chaosProof) heal(ctx context.Context, m *clusterProcess) error {
	ends, was, swept := 0, false, false
	return p.until(ctx, m.name+" is whole", func() (bool, string) {
		switch {
		case m.down():
			p.say("%s ended: %s", m.name, m.lastLog())
			m.kill()
			if ends++; was && ends <= corruptRestarts {
				p.members.Ended++
				return false, errorText(m.launch())
			}
			p.members.Refused++
			return p.replaceDisk(ctx, m) == nil, "its disk could not be replaced"
		case !m.ready(ctx):
			return false, m.why(ctx)
		}
		was = true
		h, err := health(ctx, p.c)
		switch {
		case err != nil:
			return false, err.Error()
		case !h.Healthy:
			return false, strings.Join(h.Problems, "; ")
		case !swept:
			// What is damaged and not read by anybody would be found in the end, when the replicas are compared.
			err := p.sweep(ctx, m)
			swept = err == nil
			return false, errorText(err)
		}
		return true, ""
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// sweep has a broker lead each of its partitions for as long as it takes to read all of it.
func (p *chaosProof) sweep(ctx context.Context, m *clusterProcess) error {
	ctx, cancel := context.WithTimeout(ctx, p.f.recovery/2)
	defer cancel()
	for t, err := range p.c.ListTopics(ctx) {
		if err != nil {
			return err
		}
		d, err := p.c.DescribeTopic(ctx, t.Name)
		if err != nil {
			return err
		}
		for _, part := range d.Partitions {
			if err := p.readThrough(ctx, m, t.Name, part.Partition); err != nil {
				return fmt.Errorf("read %s/%d through %s: %w", t.Name, part.Partition, m.name, err)
			}
		}
	}
	return nil
}

func (p *chaosProof) readThrough(ctx context.Context, m *clusterProcess, topic string, part int32) error {
	d, err := p.c.DescribePartition(ctx, topic, part)
	if err != nil {
		return err
	}
	has := false
	for _, name := range d.Replicas {
		has = has || name == m.name
	}
	if !has || d.StartOffset == d.NextOffset {
		return nil
	}
	if d.Leader != m.name {
		if _, err := p.c.TransferPartition(ctx, topic, part, m.name); err != nil {
			return err
		}
	}
	r, err := p.c.NewReader(ctx, topic, client.Partitions(part), client.FromEarliest(), client.UntilEnd())
	if err != nil {
		return err
	}
	defer r.Close(context.WithoutCancel(ctx)) //nolint:errcheck // everything was read
	for {
		batch, err := r.NextBatch(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range batch {
			if topic == chaosTopic {
				p.audit.observed(part, batch[i].Offset, batch[i].Value)
			}
		}
	}
}

// damageFile damages one file of a data directory, as proof corruption does.
func damageFile(dir string, rng *rand.Rand) (*corruption, error) {
	files, err := storedFiles(dir)
	if err != nil {
		return nil, err
	}
	for range damageTries {
		f := drawFile(files, nil, rng)
		if f == nil {
			break
		}
		if c, err := corrupt(f, rng, true, false); c != nil || err != nil {
			return c, err
		}
	}
	return nil, fmt.Errorf("no file of %s lent itself to any damage", dir)
}
