package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

var (
	upgradeRun  = flag.Bool("upgrade", false, "run TestUpgrade, from the revision that upgrades are tried from")
	upgradeFrom = flag.String("upgrade-from", "", "run TestUpgrade from this git `revision`")
)

// upgradeBase is the revision to come from where none is given: the newest one from which, and to which, the way is open.
const upgradeBase = "a0a4a94"

// Limits of an upgrade.
const (
	upgradeLimit = 15 * time.Minute
	// refusedWithin is how long an old broker has to say that it can't read what a new one wrote.
	refusedWithin = 30 * time.Second
	raisedWithin  = 30 * time.Second
	// holdsFor is how long brokers of both versions work beside one another between two steps. Checkpoints are
	// written meanwhile, so that what an older version reads is what a newer one wrote.
	holdsFor = 6 * time.Second
	// awayFor is how long a broker is away that has to be so far behind that the others' Raft logs don't reach back to it.
	awayFor = 15 * time.Second
	toolFor = time.Minute
)

// cutEarly has Raft logs cut after 64 KiB, not 256 MiB: replicas need snapshots after seconds.
var cutEarly = strings.NewReplacer("DefaultSnapshotBytes  = 256 << 20", "DefaultSnapshotBytes  = 64 << 10", "DefaultRetainBytes    = 16 << 20", "DefaultRetainBytes    = 4 << 10")

const cutsIn = "replication/raft/config.go"

// TestUpgrade runs brokers of two versions in one cluster under load: a rolling upgrade, a leader of each version
// killed on the way, each version brought up to date by snapshots of the other, the whole way back to the old version and
// forth again as long as it is open, and the tool of each version with the brokers of the other. In the end everything is audited as by
// proof chaos, groups and the replicas on disk too.
//
//	go test ./cmd/parley -run TestUpgrade -upgrade -v -timeout 20m
//	go test ./cmd/parley -run TestUpgrade -upgrade-from a177902 -v -timeout 20m
func TestUpgrade(t *testing.T) {
	if *upgradeFrom == "" && !*upgradeRun {
		t.Skip("it builds another version and takes minutes: go test ./cmd/parley -run TestUpgrade -upgrade -v -timeout 20m")
	}
	revision := *upgradeFrom
	if revision == "" {
		revision = upgradeBase
	}
	ctx, cancel := context.WithTimeout(t.Context(), upgradeLimit)
	defer cancel()
	old, early := buildRevision(t, revision)
	now := buildTree(t, early)
	u := &upgrade{t: t, early: early, from: old.parleyd, to: now.parleyd, tools: map[string]string{"old": old.parley, "new": now.parley}}
	f := &chaosFlags{brokers: 3, partitions: 6, producers: 3, recovery: settleLimit}
	f.parleyd, f.seed = old.parleyd, uint64(time.Now().UnixNano())%1_000_000
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
	from, to string            // brokers' binaries
	tools    map[string]string // the tool's, by version
	topics   int
	early    bool // snapshots are needed, and each version reads the other's
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
	steps := []func() error{
		func() error { return u.useTool(ctx, "new") }, // with old brokers alone
		// One new among old ones: what it lacks comes from old ones.
		func() error { return u.roll(ctx, b1, u.to) },
		func() error { return u.killLeaders(ctx) },
		func() error { return u.lag(ctx, b1) },
		func() error { return u.back(ctx, b1) },
		// One old among new ones: what it lacks comes from new ones.
		func() error { return u.roll(ctx, b2, u.to) },
		func() error { return u.killLeaders(ctx) },
		func() error { return u.lag(ctx, b3) },
		func() error { return u.noGroups(ctx) },
		func() error { return u.useTool(ctx, "old") },
		func() error { return u.back(ctx, b2) },
		func() error { return u.roll(ctx, b3, u.to) },
		func() error { return u.useTool(ctx, "old") }, // with new brokers alone
	}
	if u.open() {
		if err := u.groups(ctx); err != nil {
			return err
		}
		// All the way back, and again.
		for _, m := range []*clusterProcess{b1, b2, b3} {
			steps = append(steps, func() error { return u.roll(ctx, m, u.from) })
		}
		steps = append(steps, func() error { return u.killLeaders(ctx) }, func() error { return u.useTool(ctx, "new") })
		for _, m := range []*clusterProcess{b3, b2, b1} {
			steps = append(steps, func() error { return u.roll(ctx, m, u.to) })
		}
	}
	steps = append(steps,
		func() error { return u.raise(ctx) },
		func() error { return u.groups(ctx) },
		func() error { return u.killLeaders(ctx) },
		func() error { return u.useTool(ctx, "old") },
		func() error { return u.back(ctx, b3) },
		func() error { return u.renew(ctx, b2) },
	)
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	u.done = true
	return nil
}

// open: the old version reads all that the new one writes at the old one's feature level. Of earlier versions, which had no groups,
// that can't be said.
func (u *upgrade) open() bool { return u.level >= config.LevelGroups }

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
	case err == nil && !serves && u.open() && u.now(ctx) == u.level:
		return fmt.Errorf("%s does not serve with the old version, though the way back is open: %s", m.name, refusal)
	case err == nil && serves && u.now(ctx) > u.level:
		return fmt.Errorf("%s serves with the old version at feature level %d, which that doesn't know", m.name, u.now(ctx))
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
		if knows && (strings.Contains(line, "version") || strings.Contains(line, "feature level") || strings.Contains(line, "newer parleyd")) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// renew has a broker begin with an empty disk. That is how one whose Raft log has the store of earlier versions gets the journal.
func (u *upgrade) renew(ctx context.Context, m *clusterProcess) error {
	journals := func() int {
		found, _ := filepath.Glob(filepath.Join(m.dir, "raft", "*", "*", "journal", "JOURNAL")) // the pattern is a good one
		return len(found)
	}
	before := journals()
	if err := m.stop(); err != nil {
		return err
	}
	if err := u.served(ctx, m); err != nil {
		return err
	}
	if err := os.RemoveAll(m.dir); err != nil {
		return err
	}
	var seeds []string
	for i, s := range m.settings {
		if s == "--initial-cluster" {
			for member := range strings.SplitSeq(m.settings[i+1], ",") {
				if name, at, _ := strings.Cut(member, "="); name != m.name {
					seeds = append(seeds, at)
				}
			}
		}
	}
	m.settings = append(m.settings, "--join", strings.Join(seeds, ","))
	if err := m.launch(); err != nil {
		return err
	}
	if err := u.p.settle(ctx, time.Now(), true); err != nil {
		return fmt.Errorf("%s with an empty disk: %w", m.name, err)
	}
	if journals() != 1 {
		return fmt.Errorf("%s has no Raft journal after it began with an empty disk", m.name)
	}
	u.p.say("%s began with an empty disk and has joined under its name: it had %d Raft journals before, and has 1", m.name, before)
	return nil
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

// now is the cluster's feature level, or the old version's while nobody says.
func (u *upgrade) now(ctx context.Context) uint32 {
	asking, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if s, err := u.p.c.Status(asking); err == nil {
		return s.FeatureLevel
	}
	return u.level
}

// raise ends the upgrade, as an operator does. Until then the level has stayed where it was.
func (u *upgrade) raise(ctx context.Context) error {
	if now := u.now(ctx); now != u.level {
		return fmt.Errorf("the feature level rose to %d by itself", now)
	}
	for _, args := range [][]string{{"cluster", "raise-level", "--dry-run"}, {"cluster", "raise-level", "--yes"}} {
		out, err := u.tool(ctx, "new", "", args...)
		if err != nil {
			return err
		}
		u.p.say("parley %s:\n%s", strings.Join(args, " "), out)
	}
	return u.until(ctx, raisedWithin, fmt.Sprintf("the feature level is not %d", config.Level), func() bool { return u.now(ctx) == config.Level })
}

// lag has a broker fall so far behind that it needs snapshots, of which the others are of the other version.
func (u *upgrade) lag(ctx context.Context, m *clusterProcess) error {
	if !u.early {
		return nil
	}
	if err := m.stop(); err != nil {
		return err
	}
	if err := u.served(ctx, m); err != nil {
		return err
	}
	u.p.wait(ctx, awayFor)
	if err := m.launch(); err != nil {
		return err
	}
	if err := u.p.settle(ctx, time.Now(), true); err != nil {
		return fmt.Errorf("%s, which is %s and was away: %w", m.name, u.version(m), err)
	}
	fetched, err := m.metric(ctx, "parley_catchup_fetched_bytes_total", "")
	if err != nil {
		return err
	}
	if fetched == 0 {
		return fmt.Errorf("%s was away for %s and needed no snapshot", m.name, awayFor)
	}
	u.p.say("%s, which is %s, was away for %s, and got by snapshots of brokers of the other version what it lacked: %d bytes", m.name, u.version(m), awayFor, fetched)
	return nil
}

// tool runs the tool of a version against the cluster.
func (u *upgrade) tool(ctx context.Context, version, stdin string, args ...string) (string, error) {
	within, cancel := context.WithTimeout(ctx, toolFor)
	defer cancel()
	cmd := exec.CommandContext(within, u.tools[version], append([]string{"--server", u.p.cluster.urls()}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, wrong strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &wrong
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("the %s tool: parley %s: %w: %s%s", version, strings.Join(args, " "), err, out.String(), wrong.String())
	}
	return out.String(), nil
}

// useTool does with the tool of a version, and so with the SDK of that version, what clients do.
func (u *upgrade) useTool(ctx context.Context, version string) error {
	u.topics++
	name := fmt.Sprintf("tool-%d", u.topics)
	const records = 60
	var lines strings.Builder
	for i := range records {
		fmt.Fprintf(&lines, "k%d:%d\n", i%7, i)
	}
	for _, c := range []struct {
		stdin  string
		args   string
		lines  int // of the output; 0: any number
		groups bool
	}{
		{args: "topic create " + name + " --partitions 2 --replicas 3"},
		{args: "check " + name + " --records 3000"},
		{args: "topic delete " + name + " --yes"},
		{args: "topic create " + name + "-b --partitions 2 --replicas 3"},
		{args: "pub " + name + "-b --key-sep :", stdin: lines.String()},
		{args: "sub " + name + "-b --from earliest --until-end", lines: records},
		{args: fmt.Sprintf("sub %s-b --group one --from earliest --count %d", name, records), lines: records, groups: true},
		{args: fmt.Sprintf("sub %s-b --group many --shared --from earliest --count %d", name, records), lines: records, groups: true},
		{args: fmt.Sprintf("sub %s-b --group keyed --shared --key-ordered --from earliest --count %d", name, records), lines: records, groups: true},
		{args: "group describe " + name + "-b one", groups: true},
		{args: "group reset " + name + "-b one --to earliest", groups: true},
		{args: fmt.Sprintf("sub %s-b --group one --count %d", name, records), lines: records, groups: true},
		{args: "group delete " + name + "-b one --yes", groups: true},
		{args: "topic describe " + name + "-b"},
		{args: "partition list"},
		{args: "cluster status"},
		{args: "cluster health"},
		{args: "epoch list"},
		{args: "topic delete " + name + "-b --yes"},
	} {
		if c.groups && u.now(ctx) < config.LevelGroups {
			continue
		}
		out, err := u.tool(ctx, version, c.stdin, strings.Fields(c.args)...)
		if err != nil {
			return err
		}
		if n := strings.Count(out, "\n"); c.lines > 0 && n != c.lines {
			return fmt.Errorf("the %s tool: parley %s: %d lines, want %d", version, c.args, n, c.lines)
		}
	}
	var versions []string
	for _, m := range u.p.cluster.members {
		versions = append(versions, u.version(m))
	}
	u.p.say("the %s tool works with brokers that are %s", version, strings.Join(versions, ", "))
	return nil
}

// groups starts consumer groups beside the load, unless they run. They are audited with it.
func (u *upgrade) groups(ctx context.Context) error {
	if u.p.groups != nil {
		return nil
	}
	u.p.say("feature level %d: consumer groups begin", u.now(ctx))
	g := newChaosGroups(u.p.c, u.p.load.urls, u.p.audit, 4)
	if err := g.start(ctx, u.p.f.seed); err != nil {
		return err
	}
	u.p.groups = g
	return nil
}

// binaries are a version's.
type binaries struct{ parleyd, parley string }

// snapshotsIn is where the version of snapshots stands. Between versions that don't read one another's none may be needed.
const snapshotsIn = "partition/snapshot.go"

var snapshotForm = regexp.MustCompile(`snapshotVersion += +[0-9]+`)

// buildRevision builds a git revision. Its brokers cut their Raft logs early, if their snapshots are those of the working tree.
func buildRevision(t *testing.T, revision string) (b binaries, early bool) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source, archive := filepath.Join(dir, "source"), filepath.Join(dir, "source.tar")
	runIn(t, root, "git", "archive", "--format=tar", "-o", archive, revision)
	if err := os.Mkdir(source, 0o750); err != nil {
		t.Fatal(err)
	}
	runIn(t, source, "tar", "-xf", archive)
	form := func(in string) string {
		b, err := os.ReadFile(filepath.Join(in, snapshotsIn))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(snapshotForm.FindString(string(b))), " ")
	}
	if early = form(source) == form(root); early {
		path := filepath.Join(source, cutsIn)
		if err := os.WriteFile(path, cutsEarly(t, path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return buildBinaries(t, source), early
}

// buildTree builds the working tree likewise.
func buildTree(t *testing.T, early bool) binaries {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if !early {
		return buildBinaries(t, root)
	}
	dir, path := t.TempDir(), filepath.Join(root, cutsIn)
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{changed: cutsEarly(t, path), overlay: replace} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return buildBinaries(t, root, "-overlay", overlay)
}

func cutsEarly(t *testing.T, path string) []byte {
	t.Helper()
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	now := cutEarly.Replace(string(was))
	if now == string(was) {
		t.Fatalf("%s does not say when Raft logs are cut as it used to", path)
	}
	return []byte(now)
}

func buildBinaries(t *testing.T, source string, flags ...string) binaries {
	t.Helper()
	dir := t.TempDir()
	runIn(t, source, "go", append(append([]string{"build"}, flags...), "-o", dir+"/", "./cmd/parleyd", "./cmd/parley")...)
	return binaries{filepath.Join(dir, "parleyd"), filepath.Join(dir, "parley")}
}

func runIn(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// testLines writes to the test's log.
type testLines struct{ t *testing.T }

func (l testLines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
