package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"
)

// States of a broker while it is damaged.
const (
	brokerStopped = "stopped"
	brokerKilled  = "killed"
	brokerRunning = "running"
)

// round damages one broker:
//
//  1. Records are published. The broker is stopped, killed, or goes on.
//  2. Files are damaged, each by one corruption, value logs by several.
//  3. It starts. Where it refuses, the error must name one of the files: that corruption is noted, taken back, and it starts
//     again.
//  4. It leads all partitions that it can, and everything is read.
//  5. The cluster must get healthy by itself; then it leads all of them, and everything is read again.
//  6. Where it had refused to start, it is damaged once more in one of these ways, refuses, is wiped and joins anew.
//
// What became of each corruption is told by the broker's log.
func (p *corruptionProof) round(ctx context.Context) error {
	p.result.Rounds++
	victim := p.brokers[p.rng.IntN(len(p.brokers))]
	state := brokerRunning
	if p.rng.IntN(100) >= p.f.live {
		state = []string{brokerStopped, brokerKilled}[p.rng.IntN(2)]
	}
	if err := p.ledger.publish(ctx, p.rng, 2*int(p.f.partitions)); err != nil {
		return err
	}
	if err := p.away(victim, state); err != nil {
		return err
	}
	logged := logEnd(victim)
	began := time.Now()
	all, err := p.corruptSome(victim, state)
	if err != nil {
		return err
	}
	p.say("round %d: %s is %s, %d corruptions", p.result.Rounds, victim.name, state, len(all))
	if state == brokerRunning {
		if err := p.whileRunning(ctx, victim, all, logged); err != nil {
			return err
		}
	}
	refused, wipe, err := p.startAgain(ctx, victim, all)
	if err != nil {
		return err
	}
	if wipe {
		if err := p.wipe(ctx, victim, all); err != nil {
			return err
		}
	} else {
		if err := p.readThrough(ctx, victim); err != nil {
			p.fail("%v", err)
		}
		p.scrubbed(ctx, victim, all, logged)
	}
	healed := p.heals(ctx, victim)
	if err := p.resolve(victim, all, logged, healed); err != nil {
		return err
	}
	if len(refused) > 0 && !wipe {
		if err := p.refuseAgain(ctx, victim, refused); err != nil {
			return err
		}
		healed = p.heals(ctx, victim) && healed
	}
	p.result.HealSlow = max(p.result.HealSlow, time.Since(began).Seconds())
	for _, c := range all {
		c.healed = healed
		p.count(c)
		p.say("  %s: %s%s", c, c.outcome, because(c.why))
	}
	return nil
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + strings.TrimSpace(why[:min(len(why), 300)])
}

// away stops or kills a broker.
func (p *corruptionProof) away(b *clusterProcess, state string) error {
	switch state {
	case brokerStopped:
		return b.stop()
	case brokerKilled:
		b.kill()
	}
	return nil
}

// mostUnneeded files of a kind that nothing is needed of are damaged in a round.
const mostUnneeded = 2

// corruptSome damages a stopped broker's files, or a running one's.
func (p *corruptionProof) corruptSome(b *clusterProcess, state string) (all []*corruption, err error) {
	files, err := storedFiles(b.dir)
	if err != nil {
		return nil, err
	}
	want := min((p.f.atOnce+1)/2+p.rng.IntN(p.f.atOnce/2+1), p.f.count-p.result.Count)
	damaged, unneeded, whole := map[string]int{}, map[string]int{}, 0
	parts := map[int32]bool{}
	// What is cut or taken away from under a running broker can't be put back as it was, and may keep it from starting: then
	// there is nothing else in the round that could, or nobody would find out about it.
	cutting := state != brokerRunning || p.rng.IntN(3) == 0
	for tries := 0; len(all) < want && tries < 40*want; tries++ {
		f := p.drawFile(files)
		if f == nil {
			break
		}
		values := f.kind.name == "value-log"
		if damaged[f.rel] > 0 && !values || !f.kind.refers && unneeded[f.kind.name] == mostUnneeded {
			continue
		}
		// What cuts or takes away a value log leaves nothing of other damage to it.
		wholeFile := (!values || damaged[f.rel] == 0 && p.rng.IntN(4) == 0) && cutting
		if state == brokerRunning && cutting {
			if wholeFile = wholeFile && whole == 0; !wholeFile && f.kind.refers && !values {
				continue
			}
		}
		if values {
			// One partition's damage after the other's: the first that is found takes the replica away.
			f = &storedFile{kind: f.kind, path: f.path, rel: f.rel, size: f.size, spans: slices.DeleteFunc(slices.Clone(f.spans), func(s span) bool { return parts[s.partition] })}
			if len(f.spans) == 0 {
				continue
			}
		}
		c, err := corrupt(f, p.rng, wholeFile, state == brokerRunning && cutting && f.kind.refers && !values)
		if err != nil {
			return nil, fmt.Errorf("damage %s: %w", f.rel, err)
		}
		if c == nil {
			continue
		}
		c.state = state
		if c.size != f.size {
			whole++
			if values {
				damaged[f.rel] = 1 << 20
			}
		}
		damaged[f.rel]++
		if !f.kind.refers {
			unneeded[f.kind.name]++
		}
		for _, n := range c.parts {
			parts[n] = true
		}
		all = append(all, c)
		if values && c.size != f.size {
			files = slices.DeleteFunc(files, func(o *storedFile) bool { return o.rel == f.rel })
		}
	}
	return all, nil
}

// drawFile draws a kind of file by weight, then one of its files.
func (p *corruptionProof) drawFile(files []*storedFile) *storedFile {
	return drawFile(files, p.f.files, p.rng)
}

// drawFile draws one of these kinds, of all when none is named; nil when there is no such file.
func drawFile(files []*storedFile, kinds []string, rng *rand.Rand) *storedFile {
	byKind := map[string][]*storedFile{}
	sum := 0
	for _, f := range files {
		if f.size == 0 || len(kinds) > 0 && !slices.Contains(kinds, f.kind.name) {
			continue
		}
		if len(byKind[f.kind.name]) == 0 {
			sum += f.kind.weight
		}
		byKind[f.kind.name] = append(byKind[f.kind.name], f)
	}
	if sum == 0 {
		return nil
	}
	n := rng.IntN(sum)
	for i := range fileKinds {
		k := &fileKinds[i]
		if len(byKind[k.name]) == 0 {
			continue
		}
		if n -= k.weight; n < 0 {
			return byKind[k.name][rng.IntN(len(byKind[k.name]))]
		}
	}
	return nil
}

// whileRunning gives a broker whose files were damaged under it work, and ends it.
func (p *corruptionProof) whileRunning(ctx context.Context, b *clusterProcess, all []*corruption, logged int64) error {
	if err := p.ledger.publish(ctx, p.rng, int(p.f.partitions)); err != nil {
		return err
	}
	if err := p.readThrough(ctx, b); err != nil {
		p.fail("%v", err)
	}
	p.scrubbed(ctx, b, all, logged)
	if b.down() {
		p.ended(b, all, logged)
		b.kill()
		return nil
	}
	state := []string{brokerStopped, brokerKilled}[p.rng.IntN(2)]
	if err := p.away(b, state); err != nil {
		// Files that were damaged may keep it from ending in order.
		p.ended(b, all, logged)
	}
	for _, c := range all {
		there, err := c.there()
		if err != nil {
			return err
		}
		c.gone = !there
	}
	return nil
}

// ended notes why a broker has ended by itself.
func (p *corruptionProof) ended(b *clusterProcess, all []*corruption, logged int64) {
	text, err := logSince(b, logged)
	if err != nil {
		p.fail("%v", err)
		return
	}
	if c := named(all, lastLines(text)); c != nil && !unclear(text) {
		c.outcome, c.why = outcomeRead, lastOf(text)
		return
	}
	p.unclearly(b, all, text)
}

// unclearly counts the end of a broker that nobody can make sense of against one of the corruptions.
func (p *corruptionProof) unclearly(b *clusterProcess, all []*corruption, text string) {
	for _, c := range all {
		if c.outcome == "" && c.hit {
			p.say("%s ended, and didn't say why in terms of a file: %s", b.name, crash(text))
			c.outcome, c.why = outcomeUnclear, crash(text)
			return
		}
	}
	p.fail("%s ended: %s", b.name, crash(text))
}

// startAgain starts a broker, and takes back what it refuses to start for. wipe says that this can't be done.
func (p *corruptionProof) startAgain(ctx context.Context, b *clusterProcess, all []*corruption) (refused []*corruption, wipe bool, err error) {
	for {
		if !b.down() {
			b.kill()
		}
		from := logEnd(b)
		if err := b.launch(); err != nil {
			return nil, false, err
		}
		err := b.awaitReady(ctx)
		if err == nil {
			return refused, false, nil
		}
		if !b.down() {
			p.fail("%v", err)
			return refused, false, nil
		}
		text, err := logSince(b, from)
		if err != nil {
			return nil, false, err
		}
		c := named(all, lastLines(text))
		if c == nil || unclear(text) {
			p.unclearly(b, all, text)
			// Whatever it was is among these.
			for _, c := range all {
				if c.outcome == "" {
					c.outcome = outcomeUncounted
				}
			}
			return refused, true, nil
		}
		c.outcome, c.why = outcomeRefused, lastOf(text)
		refused = append(refused, c)
		if !c.exact() {
			for _, o := range all {
				if o.outcome == "" {
					o.outcome = outcomeUncounted
				}
			}
			return refused, true, nil
		}
		there, err := c.there()
		if err == nil && there {
			err = c.undo()
		}
		if err != nil {
			return nil, false, fmt.Errorf("take back %s: %w", c, err)
		}
	}
}

// refuseAgain does one of the corruptions that a broker refused to start for again, and replaces the broker's disk.
func (p *corruptionProof) refuseAgain(ctx context.Context, b *clusterProcess, refused []*corruption) error {
	if err := b.stop(); err != nil {
		p.fail("%v", err)
	}
	old := refused[p.rng.IntN(len(refused))]
	files, err := storedFiles(b.dir)
	if err != nil {
		return err
	}
	var again *corruption
	for tries := 0; again == nil && tries < 200; tries++ {
		f := files[p.rng.IntN(len(files))]
		if f.kind != old.file.kind || f.size == 0 {
			continue
		}
		if again, err = corrupt(f, p.rng, true, false); err != nil {
			return err
		}
	}
	return p.wipe(ctx, b, nil)
}

// wipe replaces a broker's disk, as docs/operations.md says: an empty directory, and --join.
func (p *corruptionProof) wipe(ctx context.Context, b *clusterProcess, all []*corruption) error {
	b.kill()
	if err := os.RemoveAll(b.dir); err != nil {
		return err
	}
	p.result.Wiped++
	if err := b.start(ctx); err != nil {
		return fmt.Errorf("%s joins anew: %w", b.name, err)
	}
	return nil
}

// heals waits until the cluster is whole again, then has the broker lead everything and reads it.
func (p *corruptionProof) heals(ctx context.Context, b *clusterProcess) bool {
	if err := p.healthy(ctx, corruptionHealing); err != nil {
		p.fail("%s does not heal: %v", b.name, err)
		return false
	}
	before := p.ledger.wrong + p.ledger.lost
	led, err := p.lead(ctx, b, corruptionHealing)
	if err == nil && led < int(p.f.partitions) {
		err = fmt.Errorf("%s leads %d of %d partitions", b.name, led, p.f.partitions)
	}
	if err == nil {
		err = p.ledger.readAll(ctx)
	}
	if err == nil {
		err = p.ledger.checkGroup(ctx)
	}
	if err != nil {
		p.fail("%s after healing: %v", b.name, err)
		return false
	}
	return p.ledger.wrong+p.ledger.lost == before
}

func (p *corruptionProof) healthy(ctx context.Context, limit time.Duration) error {
	return retried(ctx, limit, func(ctx context.Context) error {
		h, err := p.c.Health(ctx)
		if err == nil && !h.Healthy {
			err = errors.New(strings.Join(h.Problems, "; "))
		}
		if err != nil {
			return err
		}
		d, err := p.c.DescribeTopic(ctx, corruptionTopic)
		if err != nil {
			return err
		}
		for _, part := range d.Partitions {
			if len(part.Damaged) > 0 || part.Move != nil || len(part.InSync) != 3 {
				return fmt.Errorf("%s/%d: in sync %v, damaged %v, moving %v", corruptionTopic, part.Partition, part.InSync, part.Damaged, part.Move != nil)
			}
		}
		return nil
	})
}

// lead has a broker lead all partitions, as far as it can.
func (p *corruptionProof) lead(ctx context.Context, b *clusterProcess, limit time.Duration) (led int, err error) {
	err = retried(ctx, limit, func(ctx context.Context) error {
		led = 0
		d, err := p.c.DescribeTopic(ctx, corruptionTopic)
		if err != nil {
			return err
		}
		var errs []error
		for _, part := range d.Partitions {
			if part.Leader == b.name {
				led++
				continue
			}
			// Also where it is the preferred one: left alone, it waits some seconds.
			_, err := p.c.TransferPartition(ctx, corruptionTopic, part.Partition, b.name)
			errs = append(errs, err)
		}
		if led < len(d.Partitions) {
			return errors.Join(append(errs, fmt.Errorf("%s leads %d of %d partitions", b.name, led, len(d.Partitions)))...)
		}
		return nil
	})
	return led, err
}

// readThrough has a broker lead what it can, and reads everything.
func (p *corruptionProof) readThrough(ctx context.Context, b *clusterProcess) error {
	if !b.down() {
		_, _ = p.lead(ctx, b, corruptionLead) // damaged replicas don't lead
	}
	return p.ledger.readAll(ctx)
}

// scrubbed gives a broker time to find by itself what nobody has read.
func (p *corruptionProof) scrubbed(ctx context.Context, b *clusterProcess, all []*corruption, logged int64) {
	_ = retried(ctx, corruptionMeet, func(context.Context) error { // what is still to be found then is told by resolve
		text, err := logSince(b, logged)
		if err != nil || b.down() {
			return err
		}
		found := damagedIn(text)
		for _, c := range all {
			if c.outcome != "" || !c.hit || c.file.kind.name != "value-log" {
				continue
			}
			for _, n := range c.parts {
				if found[n] == "" {
					return fmt.Errorf("nothing was said of %s", c)
				}
			}
		}
		return nil
	})
}

// resolve says what became of what the broker didn't refuse to start for.
func (p *corruptionProof) resolve(b *clusterProcess, all []*corruption, logged int64, healed bool) error {
	text, err := logSince(b, logged)
	if err != nil {
		return err
	}
	found := damagedIn(text)
	p.result.Replaced += len(found)
	for _, c := range all {
		if c.outcome != "" {
			continue
		}
		for _, n := range c.parts {
			if what := found[n]; what != "" {
				c.outcome, c.why = foundBy(what), what
				break
			}
		}
		if c.outcome != "" {
			continue
		}
		if line := namedIn(text, c.file.path); line != "" {
			c.outcome, c.why = outcomeStart, line
			continue
		}
		kind := c.file.kind.name
		switch c.outcome = outcomeMissed; {
		case !c.hit:
			c.outcome = outcomeHarmless
		case c.gone:
			c.outcome = outcomeOverwritten
		case healed && (kind == "value-log" || kind == "memtable-log"):
			// Every record was read from this broker, and was right: had one that was hit been needed, it would be missing.
			c.outcome = outcomeReplayed
		}
	}
	return nil
}
