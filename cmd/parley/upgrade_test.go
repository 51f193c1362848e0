package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

var upgradeFrom = flag.String("upgrade-from", "", "TestUpgrade runs a cluster of this git `revision` and of the working tree")

// Limits of an upgrade.
const (
	upgradeLimit = 8 * time.Minute
	// refusedWithin is how long an old broker has to say that it can't read what a new one wrote.
	refusedWithin = 30 * time.Second
	raisedWithin  = 30 * time.Second
	// holdsFor is how long brokers of both versions work beside one another between two steps. Checkpoints are
	// written meanwhile, so that what an older version reads is what a newer one wrote.
	holdsFor = 6 * time.Second
)

// TestUpgrade runs brokers of two versions in one cluster under load: a rolling upgrade, a leader of each version
// killed on the way, steps back, and the upgrade again. In the end everything is audited as by proof chaos, the replicas
// on disk too.
//
//	go test ./cmd/parley -run TestUpgrade -upgrade-from HEAD~1 -v -timeout 10m
func TestUpgrade(t *testing.T) {
	if *upgradeFrom == "" {
		t.Skip("it needs the version to come from: go test ./cmd/parley -run TestUpgrade -upgrade-from HEAD~1 -v -timeout 10m")
	}
	ctx, cancel := context.WithTimeout(t.Context(), upgradeLimit)
	defer cancel()
	from := buildRevision(t, *upgradeFrom)
	u := &upgrade{t: t, from: from, to: buildParleyd(t)}
	f := &chaosFlags{brokers: 3, partitions: 6, producers: 3, recovery: settleLimit}
	f.parleyd, f.seed = from, uint64(time.Now().UnixNano())%1_000_000
	a := &app{surroundings: surroundings{stdin: strings.NewReader(""), stdout: testLines{t}, stderr: testLines{t}, configDir: t.TempDir(), lookup: os.LookupEnv},
		output: outputTable, timeout: 5 * time.Second}
	if err := a.proveCluster(ctx, f, u.run); err != nil {
		t.Fatal(err)
	}
	if !u.done {
		t.Error("the upgrade did not come to its end")
	}
}

// upgrade is one run.
type upgrade struct {
	t        *testing.T
	from, to string // binaries
	p        *chaosProof
	level    uint32 // the cluster's as the old version formed it
	done     bool
}

func (u *upgrade) run(ctx context.Context, p *chaosProof) error {
	u.p = p
	s, err := p.c.Status(ctx)
	if err != nil {
		return err
	}
	u.level = s.FeatureLevel
	p.say("the old version forms clusters of feature level %d, the new one knows %d", u.level, config.Level)
	b1, b2, b3 := p.cluster.members[0], p.cluster.members[1], p.cluster.members[2]
	for _, step := range []func() error{
		// One new among old ones.
		func() error { return u.roll(ctx, b1, u.to) },
		func() error { return u.killLeaders(ctx) },
		func() error { return u.back(ctx, b1) },
		// One old among new ones.
		func() error { return u.roll(ctx, b2, u.to) },
		func() error { return u.killLeaders(ctx) },
		func() error { return u.noGroups(ctx) },
		func() error { return u.back(ctx, b2) },
		// All new: what needs the new level begins.
		func() error { return u.roll(ctx, b3, u.to) },
		func() error { return u.raised(ctx) },
		func() error { return u.groups(ctx) },
		func() error { return u.killLeaders(ctx) },
		func() error { return u.back(ctx, b3) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	u.done = true
	return nil
}

func (u *upgrade) version(m *clusterProcess) string {
	if m.command[0] == u.from {
		return "old"
	}
	return "new"
}

// roll replaces a broker by one of another version, as an operator does: stop, start, wait until all is well.
func (u *upgrade) roll(ctx context.Context, m *clusterProcess, binary string) error {
	was, acked, begin := u.version(m), u.p.audit.all.Load(), time.Now()
	u.p.audit.begin()
	if err := m.stop(); err != nil {
		return err
	}
	if err := u.served(ctx, m); err != nil {
		return err
	}
	m.command = []string{binary}
	if err := m.launch(); err != nil {
		return err
	}
	if err := u.p.settle(ctx, time.Now(), true); err != nil {
		return fmt.Errorf("%s from %s to %s: %w", m.name, was, u.version(m), err)
	}
	parts, _ := u.p.audit.gaps()
	longest := time.Duration(0)
	for _, gap := range parts {
		longest = max(longest, gap)
	}
	u.p.say("%s is %s, it was %s: settled in %.1f s, longest without acks in a partition %d ms, %d records acked meanwhile",
		m.name, u.version(m), was, time.Since(begin).Seconds(), longest.Milliseconds(), u.p.audit.all.Load()-acked)
	if err := u.p.change(ctx); err != nil {
		return err
	}
	u.p.wait(ctx, holdsFor)
	return u.p.settle(ctx, time.Now(), true)
}

// served waits until all partitions are acked in while a broker is away.
func (u *upgrade) served(ctx context.Context, without *clusterProcess) error {
	return u.p.takenOver(ctx, without, "stopped")
}

// killLeaders kills a leader of each version that runs.
func (u *upgrade) killLeaders(ctx context.Context) error {
	killed := map[string]bool{}
	for _, m := range u.p.cluster.members {
		version := u.version(m)
		if killed[version] {
			continue
		}
		killed[version] = true
		if err := u.lead(ctx, m); err != nil {
			return err
		}
		u.p.audit.begin()
		m.kill()
		if err := u.served(ctx, m); err != nil {
			return err
		}
		if err := m.launch(); err != nil {
			return err
		}
		if err := u.p.settle(ctx, time.Now(), true); err != nil {
			return fmt.Errorf("%s, which is %s, was killed while it led: %w", m.name, version, err)
		}
		u.p.say("%s, which is %s, was killed while it led, and has come back", m.name, version)
	}
	return nil
}

// lead waits until a broker leads a partition of the load's topic: leadership goes back to it some time after its start.
func (u *upgrade) lead(ctx context.Context, m *clusterProcess) error {
	return u.until(ctx, 30*time.Second, m.name+" leads nothing", func() bool {
		for _, name := range leaders(ctx, u.p.c, chaosTopic) {
			if name == m.name {
				return true
			}
		}
		return false
	})
}

func (u *upgrade) until(ctx context.Context, limit time.Duration, otherwise string, met func() bool) error {
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-tick.C:
		case <-within.Done():
			return fmt.Errorf("%s after %s", otherwise, limit)
		}
	}
	return nil
}

// back starts the old version on the data of a new one. Either it serves, or it says by name what it can't read
// and harms nothing: the others go on, and so does the new version with the same data.
func (u *upgrade) back(ctx context.Context, m *clusterProcess) error {
	u.p.audit.begin()
	if err := m.stop(); err != nil {
		return err
	}
	log, err := os.Stat(m.logPath)
	if err != nil {
		return err
	}
	m.command = []string{u.from}
	if err := m.launch(); err != nil {
		return err
	}
	refusal, serves := "", false
	err = u.until(ctx, refusedWithin, m.name+" neither serves with the old version nor says why not", func() bool {
		if refusal = refusalIn(m.logPath, log.Size()); refusal != "" {
			return true
		}
		h, err := health(ctx, u.p.c)
		serves = m.ready(ctx) && err == nil && h.Healthy
		return serves
	})
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s; its log ends with %s", err, m.why(ctx), m.lastLog())
	case serves:
		u.p.say("%s is back at the old version, and serves", m.name)
		u.p.wait(ctx, holdsFor)
	default:
		u.p.say("%s is back at the old version, and refuses: %s", m.name, refusal)
	}
	if err := u.served(ctx, m); err != nil {
		return err
	}
	if m.down() {
		m.kill() // it has ended by itself
	} else if err := m.stop(); err != nil {
		return err
	}
	m.command = []string{u.to}
	if err := m.launch(); err != nil {
		return err
	}
	if err := u.p.settle(ctx, time.Now(), true); err != nil {
		return fmt.Errorf("%s, new again after it was old: %w", m.name, err)
	}
	u.p.say("%s is new again, with the same data", m.name)
	return nil
}

// refusalIn finds what a broker wrote to its log, from an offset on, of what it doesn't know: its program names the version or
// the feature level that it has met, and the newest that it knows.
func refusalIn(path string, from int64) string {
	b, err := os.ReadFile(path)
	if err != nil || int64(len(b)) <= from {
		return ""
	}
	for line := range strings.Lines(string(b[from:])) {
		knows := strings.Contains(line, "knows")
		if knows && (strings.Contains(line, "version") || strings.Contains(line, "feature level")) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// noGroups: while an old broker is there nothing is written that it can't read.
func (u *upgrade) noGroups(ctx context.Context) error {
	if u.level >= config.LevelGroups {
		return nil
	}
	for part, name := range leaders(ctx, u.p.c, chaosTopic) {
		m := u.member(name)
		if m == nil || u.version(m) == "old" {
			continue
		}
		err := u.join(ctx, m, part)
		var e *client.Error
		if !errors.As(err, &e) || !e.Retriable || !strings.Contains(e.Description, "feature level") {
			return fmt.Errorf("a group was begun at %s beside an old broker: %v; want a retriable refusal that names the feature level", name, err)
		}
		u.p.say("a group is refused at %s: %s", name, e.Description)
		return u.p.settle(ctx, time.Now(), true)
	}
	return errors.New("no new broker leads a partition")
}

func (u *upgrade) member(name string) *clusterProcess {
	for _, m := range u.p.cluster.members {
		if m.name == name {
			return m
		}
	}
	return nil
}

// join asks a partition's leader for a record of a shared group, which begins the group.
func (u *upgrade) join(ctx context.Context, m *clusterProcess, part int32) error {
	nc, err := nats.Connect(m.url())
	if err != nil {
		return err
	}
	defer nc.Close()
	return plainCall(ctx, nc, fmt.Sprintf("%s%s.%d", wire.GroupSet, chaosTopic, part), wire.GroupSetRequest{Group: "early", Delete: true}, &struct{}{})
}

// raised waits for the level that all brokers know now.
func (u *upgrade) raised(ctx context.Context) error {
	return u.until(ctx, raisedWithin, fmt.Sprintf("the feature level is not %d", config.Level), func() bool {
		asking, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		s, err := u.p.c.Status(asking)
		return err == nil && s.FeatureLevel == config.Level
	})
}

// groups starts consumer groups beside the load. They are audited with it.
func (u *upgrade) groups(ctx context.Context) error {
	u.p.say("feature level %d: consumer groups begin", config.Level)
	g := newChaosGroups(u.p.c, u.p.load.urls, u.p.audit, 4)
	if err := g.start(ctx, u.p.f.seed); err != nil {
		return err
	}
	u.p.groups = g
	return nil
}

// buildRevision builds the broker of a git revision.
func buildRevision(t *testing.T, revision string) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source, binary := filepath.Join(dir, "source"), filepath.Join(dir, "parleyd")
	archive := filepath.Join(dir, "source.tar")
	for _, step := range []struct {
		in   string
		args []string
	}{
		{root, []string{"git", "archive", "--format=tar", "-o", archive, revision}},
		{root, []string{"mkdir", source}},
		{source, []string{"tar", "-xf", archive}},
		{source, []string{"go", "build", "-o", binary, "./cmd/parleyd"}},
	} {
		cmd := exec.CommandContext(t.Context(), step.args[0], step.args[1:]...)
		cmd.Dir = step.in
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build revision %q: %s: %v\n%s", revision, strings.Join(step.args, " "), err, out)
		}
	}
	return binary
}

// testLines writes to the test's log.
type testLines struct{ t *testing.T }

func (l testLines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
