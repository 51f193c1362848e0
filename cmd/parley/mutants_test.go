package main

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var mutantsFlag = flag.Bool("mutants", false, "TestMutants builds every mutant of the broker and has it found; minutes")

// mutant is a broker with one promise broken on purpose: edits of its source, which go build
// reads in place of the files in the tree. Whatever proves the broker must find it.
type mutant struct {
	name  string
	edits []edit
	// faults of proof chaos that show it, and what the proof then says.
	faults string
	says   string
	long   bool // it needs luck, so many faults
	// test that shows it instead: a package and the names.
	pkg, run string
}

// edit replaces a text that occurs exactly once in a file.
type edit struct{ file, old, new string }

const leaderFile, stateFile, machineFile = "partition/leader.go", "partition/state.go", "partition/machine.go"

// mutants: each is a mistake that somebody could make.
var mutants = []mutant{
	{
		// Whatever was proposed is acked; whether a majority has it comes later.
		name: "ack before commit",
		edits: []edit{
			{leaderFile, "	r, err := g.pending.WaitContext(l.ctx)\n", "	go func(w replication.Pending) { _, _ = w.Wait() }(g.pending)\n	r, err := replication.Result{}, error(nil)\n"},
			{leaderFile, "		o.Offset, o.Err = -1, describe(ErrUnavailable, \"%s: the record's offset is not known any more: it may be in the log\", p.name)\n",
				"		o.Offset, o.Duplicate = -1, true\n"},
		},
		faults: "mute", says: `"lost":[1-9]`,
	},
	{
		// Readers get what the leader has proposed.
		name: "serve uncommitted",
		edits: []edit{
			{"partition/appender.go", "		a.propose(g)\n		a.inFlight++\n", "		a.p.m.expose(g.buf)\n		a.propose(g)\n		a.inFlight++\n"},
			{machineFile, "	relaxedAt int64\n", "	relaxedAt int64\n	exposed   int64\n"},
			{machineFile, "	for _, c := range chunks {\n		m.tail.push(c)\n	}\n", "	for _, c := range chunks {\n		if c.Base >= m.exposed {\n			m.tail.push(c)\n		}\n	}\n"},
			{machineFile, "	moved := m.bounds.next != s.next\n", "	moved := m.bounds.next != max(s.next, m.exposed)\n"},
			{machineFile, "start: s.start, next: s.next, barrier: s.barrier, logTime", "start: s.start, next: max(s.next, m.exposed), barrier: s.barrier, logTime"},
			{machineFile, "func (m *machine) look() bounds {\n", `func (m *machine) expose(entry []byte) {
	h, body, err := parseCommand(entry)
	if err != nil || h.kind != kindAppend {
		return
	}
	m.visible.Lock()
	defer m.visible.Unlock()
	c := storage.Chunk{Base: m.bounds.next, LogTime: h.logTime}
	next := c.Base
	for len(body) > 0 {
		it, rest, err := nextItem(body)
		if err != nil {
			return
		}
		body = rest
		at := len(c.Data)
		c.Data = append(c.Data, it.batch...)
		record.Batch(c.Data[at:]).Stamp(next, 0)
		next += int64(it.batch.Count())
	}
	c.Last = next - 1
	m.tail.push(c)
	m.bounds.next, m.exposed = next, next
	if m.wake != nil {
		close(m.wake)
		m.wake = nil
	}
}

func (m *machine) look() bounds {
`},
		},
		faults: "mute", says: "has two values|was seen or acked, and the partition ends at",
	},
	{
		// Who leads next knows no producer: what was in the log already is taken again.
		name:   "forget the producer table on failover",
		edits:  []edit{{stateFile, "		s.term, s.counter = h.term, 0\n", "		s.term, s.counter, s.producers = h.term, 0, newProducerTable()\n"}},
		faults: "deaf", says: "is not known here: start a new epoch",
	},
	{
		// The same, and a producer that isn't known is taken at its word.
		name: "forget the producer table and ask no producer",
		edits: []edit{
			{stateFile, "		s.term, s.counter = h.term, 0\n", "		s.term, s.counter, s.producers = h.term, 0, newProducerTable()\n"},
			{"partition/producers.go", "		if pr.Sequence != 0 {\n			return itemUnknownProducer, -1\n		}\n		return itemOK, 0\n", "		return itemOK, 0\n"},
		},
		faults: "deaf", says: "is in partition . again, at offset",
	},
	{
		// Leaders say that they have committed a barrier and don't.
		name:   "skip the barrier",
		edits:  []edit{{"partition/partition.go", "	return p.command(ctx, kindBarrier, epoch)\n", "	_, _ = ctx, epoch\n	return nil\n"}},
		faults: "kill", says: "still name epoch",
	},
	{
		// A command stamped with an older epoch is taken.
		name:  "don't look at the barrier",
		edits: []edit{{stateFile, "	case h.barrier < s.barrier && h.kind != kindBarrier:\n		return false, resultStaleBarrier, nil\n", ""}},
		pkg:   "./partition", run: "TestApplyFences|TestStaleEpochIsStampedAnew",
	},
	{
		// A new leader begins at once, and nothing fences what older ones have under way.
		name: "skip Start(term)",
		edits: []edit{
			{leaderFile, "	if !p.start(l) {\n		return\n	}\n", "	l.clock = newLogClock(p.c.Clock, p.m.look().logTime)\n"},
			{stateFile, "	case h.term != s.term:\n		return false, resultStaleTerm, nil\n", ""},
		},
		faults: "kill-leader", says: "is lost|has two values|again, at offset|was seen or acked|the cluster did not recover",
	},
	{
		// A leader that is cut off says where the log ends, as if nobody had taken over.
		name:  "don't confirm who leads",
		edits: []edit{{"partition/await.go", "	err := p.log.Barrier(asking)\n", "	err := asking.Err()\n"}},
		pkg:   "./partition", run: "TestBeyondTheEndIsConfirmed",
	},
	{
		// Any replica says where the log ends.
		name: "ask followers for the end",
		edits: []edit{{"broker/runtime.go", "		if p != nil {\n			res, err := b.bounds(ctx, s, timeMS)\n",
			"		if q := s.partition.Load(); q != nil {\n			start, next := q.Bounds()\n			return wire.OffsetResponse{Offset: next, Start: start, Next: next}, nil\n		}\n" +
				"		if p != nil {\n			res, err := b.bounds(ctx, s, timeMS)\n"}},
		faults: "kill", says: "was acked or seen before it was asked",
	},
	{
		// A replica forgets the message ids of the log's last minutes when it starts.
		name:   "forget message ids on a restart",
		edits:  []edit{{machineFile, "	from, err := m.offsetAt(s.logTime-messageIDWindow.Milliseconds(), bounds{start: s.start, next: s.next})\n", "	from, err := s.next, error(nil)\n"}},
		faults: "all-down", says: "was sent again and acked at|again, at offset", long: true,
	},
	{
		// A broker goes on when the cluster has removed it.
		name: "serve after removal",
		edits: []edit{
			{"broker/join.go", "			if c.Epoch > 0 && c.Broker(b.self()) == nil {\n", "			if c.Epoch > 0 && b.self() == 0 {\n"},
			{"broker/join.go", "			if n := b.refusedEverywhere(ctx); n > 0 {\n", "			if n := b.refusedEverywhere(ctx); n > 0 && b.self() == 0 {\n"},
		},
		faults: "drain", says: "after it was removed",
	},
	{
		// A replica that moved away stays open, and its data goes under it.
		name:  "serve a replica after it was removed",
		edits: []edit{{"broker/carry.go", "	closeSlots(k.b, gone)\n	for _, s := range gone {\n", "	for _, s := range gone {\n"}},
		pkg:   "./broker", run: "TestMove|TestMovedAway",
	},
	{
		// What isn't mentioned goes like what is retired.
		name: "delete what the epoch doesn't mention",
		edits: []edit{{"broker/trash.go", "	all := t.retired(c)\n", `	all := t.retired(c)
	for _, id := range t.b.checkpoints.Checkpoints() {
		shard, mentioned := uint64(0), false
		for i := range c.Topics {
			if p := c.Topics[i].Partitions; c.Topics[i].ID == id.Topic && int(id.Partition) < len(p) {
				r, ok := p[id.Partition].On(t.b.self())
				shard, mentioned = p[id.Partition].Shard, ok && r.ID == id.Replica
			}
		}
		if !mentioned && shard != 0 {
			all = append(all, retired{shard: shard, replica: id.Replica, log: id})
		}
	}
`}},
		pkg: "./broker", run: "TestMovedAway",
	},
	{
		// A replica counts as a voter before it has anything.
		name:  "promote before caught up",
		edits: []edit{{"broker/mover_step.go", "	if !v.caught(r) {\n		return step{kind: stepWait", "	if r.ID == 0 {\n		return step{kind: stepWait"}},
		pkg:   "./broker", run: "TestSteps|TestStepsInOrder|TestStepsWait|TestMoveCopies",
	},
	{
		// Who leaves goes before who comes is a voter.
		name:  "remove before promote",
		edits: []edit{{"broker/mover_step.go", "	if len(extra) > 0 && (len(missing) == 0 || len(v.members.Voters) > most) {\n", "	if len(extra) > 0 && (len(v.members.Voters) > 1 || most == 0) {\n"}},
		pkg:   "./broker", run: "TestSteps|TestStepsInOrder|TestStepsWait",
	},
	{
		// A step is taken whatever the members are by now.
		name: "ignore the config-change id",
		edits: []edit{{"broker/mover.go", "		s.move.forget()\n		return p.Log().Change(", `		s.move.forget()
		members, err := p.Log().Members(ctx)
		if err != nil {
			return err
		}
		return p.Log().Change(`}},
		pkg: "./broker", run: "TestMoveComparesMembers",
	},
}

// TestMutants: every mutant is found. Without -mutants it says only whether the edits still fit the
// source.
//
//	go test ./cmd/parley -run TestMutants -mutants -v -timeout 15m
func TestMutants(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			overlay := m.overlay(t, root)
			if !*mutantsFlag {
				return
			}
			if m.pkg != "" {
				m.testFails(t, root, overlay)
				return
			}
			m.chaosFails(t, root, overlay)
		})
	}
}

// overlay writes the edited files, and which of the tree's they stand for.
func (m *mutant) overlay(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	sources := map[string]string{}
	for _, e := range m.edits {
		if sources[e.file] == "" {
			b, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				t.Fatal(err)
			}
			sources[e.file] = string(b)
		}
		if n := strings.Count(sources[e.file], e.old); n != 1 {
			t.Fatalf("%s has %d times, want once:\n%s", e.file, n, e.old)
		}
		sources[e.file] = strings.Replace(sources[e.file], e.old, e.new, 1)
	}
	replace := map[string]string{}
	for file, text := range sources {
		path := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, file)] = path
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (m *mutant) duration() string {
	if m.long {
		return "20s"
	}
	return "5s"
}

// testFails runs the tests that must fail, which must pass without the edits.
func (m *mutant) testFails(t *testing.T, root, overlay string) {
	run := func(args ...string) (string, error) {
		cmd := exec.Command("go", append(append([]string{"test", "-count=1", "-run", "^(" + m.run + ")$"}, args...), m.pkg)...)
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err != nil || strings.Contains(out, "no tests to run") {
		t.Fatalf("without the edits: %v\n%s", err, out)
	}
	out, err := run("-overlay", overlay)
	if err == nil {
		t.Fatalf("not found\n%s", out)
	}
	if !strings.Contains(out, "--- FAIL") {
		t.Fatalf("it failed for another reason:\n%s", out)
	}
}

// chaosFails runs proof chaos, which must say what is wrong.
func (m *mutant) chaosFails(t *testing.T, root, overlay string) {
	dir := t.TempDir()
	parleyd := filepath.Join(dir, "parleyd")
	build := exec.Command("go", "build", "-overlay", overlay, "-o", parleyd, "./cmd/parleyd")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	says := regexp.MustCompile(m.says)
	t.Setenv("TMPDIR", dir) // what the proof leaves goes with the test
	// A second seed for those that need luck.
	for _, seed := range []string{"1", "2", "3"} {
		o := processTool(t, "proof", "chaos", "--parleyd", parleyd, "--seed", seed, "--duration", m.duration(), "--faults", m.faults, "--recovery", "15s", "-o", "json")
		found := ""
		for line := range strings.Lines(o.stderr + o.stdout) {
			if says.MatchString(line) {
				found = strings.TrimSpace(line)
				break
			}
		}
		if o.code != exitDone && found != "" {
			t.Logf("found with seed %s: %s", seed, found)
			return
		}
		t.Logf("seed %s: exit %d\n%s", seed, o.code, o.stderr)
	}
	t.Errorf("not found: nothing says %q", m.says)
}
