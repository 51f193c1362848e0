// Package simulation runs a cluster of paxos machines in virtual time with one
// seeded source of chance: messages are lost, repeated and reordered, brokers
// crash back to their last fsync, come again with another boot counter or with a
// wiped disk and another incarnation, councils change, proposers duel, readers
// read. What must always hold is checked at each step. The same seed makes the same run.
package simulation

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/parleymq/parley/replication/paxos"
)

// Options of a run.
type Options struct {
	Seed  uint64
	Steps int  // with faults, before the cluster is left to heal; 0 is DefaultSteps
	Trace bool // keep a transcript

	// What tests break, to see that it is noticed.

	// New makes a machine; nil is paxos.New.
	New func(paxos.Options) (*paxos.Machine, error)
	// Unsynced are the kinds of records for whose sake no fsync is made.
	Unsynced []paxos.RecordKind
	// KeepBoot leaves the boot counter alone at a restart.
	KeepBoot bool
}

// DefaultSteps of a run.
const DefaultSteps = 500

// Report of a run.
type Report struct {
	Seed       uint64
	Violation  string // empty: everything held
	Transcript []string
	Stalled    bool // the violation is that no new epoch came
	Unhealable bool // the council lost its majority to wiped disks, so that no epoch can come

	Steps, Epochs, Messages, Dropped, Repeated, Crashes, Wipes, Proposals, Chosen, Done, Lost, Reads, CouncilChanges int
	Bootstrap                                                                                                        bool
}

// String is what a person reads of a failed run.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: ", r.Seed)
	if r.Violation == "" {
		fmt.Fprintf(&b, "nothing wrong in %d steps, %d epochs\n", r.Steps, r.Epochs)
	} else {
		fmt.Fprintf(&b, "%s (step %d)\n", r.Violation, r.Steps)
	}
	for _, line := range r.Transcript {
		b.WriteString("  ")
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}

// Run runs one seed.
func Run(o Options) Report {
	if o.Steps == 0 {
		o.Steps = DefaultSteps
	}
	if o.New == nil {
		o.New = paxos.New
	}
	w := newWorld(o)
	w.run()
	w.report.Epochs = int(w.check.newest)
	return w.report
}

// weather is how bad the days of one run are: drawn once, so that some runs see much of
// one fault and none of another.
type weather struct {
	drop, repeat  float64 // of a delivered message
	crash, wipe   float64 // of a step
	lazy          float64 // that a step's effects wait for a later fsync
	propose, read float64
	retry         float64
	council       float64 // that a proposal changes the council
	cut           float64 // that links are cut or mended
	keep          int     // full values in a history
	batch         int     // bytes of entries in one answer
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func newWeather(r *rand.Rand) weather {
	if r.IntN(5) == 0 { // a duel: many ballots for one epoch
		return weather{drop: pick(r, 0.1, 0.3), crash: pick(r, 0, 0.01), propose: 0.2, retry: pick(r, 0.1, 0.2, 0.3), read: pick(r, 0, 0.05), keep: 1000, batch: 1 << 20}
	}
	return weather{
		drop: pick(r, 0, 0.02, 0.1, 0.3), repeat: pick(r, 0, 0.05, 0.3),
		crash: pick(r, 0, 0.005, 0.02, 0.05), wipe: pick(r, 0, 0, 0.002, 0.01),
		lazy: pick(r, 0, 0.2, 0.6), propose: pick(r, 0.03, 0.1, 0.2), read: pick(r, 0, 0.02, 0.1),
		retry: pick(r, 0.03, 0.1, 0.2), council: pick(r, 0, 0.3, 0.7), cut: pick(r, 0, 0, 0.02),
		keep: pick(r, 1, 3, 1000), batch: pick(r, 200, 1<<20),
	}
}

// world is everything of one run.
type world struct {
	o       Options
	rng     *rand.Rand
	weather weather
	nodes   []*node
	net     []paxos.Message
	cut     [maxNodes + 1][maxNodes + 1]bool
	healed  bool
	values  map[string]paxos.Facts
	check   checker
	report  Report
	tickets uint64
	born    int // incarnations given out
	listed  int // brokers that epoch 0 lists
}

const maxNodes = 5

func newWorld(o Options) *world {
	r := rand.New(rand.NewPCG(o.Seed, 0x9e3779b97f4a7c15))
	w := &world{o: o, rng: r, weather: newWeather(r), values: map[string]paxos.Facts{}, report: Report{Seed: o.Seed}}
	w.check.world = w
	w.listed = 1 + r.IntN(maxNodes)
	w.report.Bootstrap = r.IntN(4) == 0

	var genesis paxos.Facts
	for id := uint64(1); id <= uint64(w.listed); id++ {
		genesis.Members = append(genesis.Members, paxos.Member{ID: id})
	}
	genesis.Council = genesis.Members
	base := w.entry(genesis)
	w.check.start(base)
	for id := uint64(1); id <= uint64(w.listed); id++ {
		w.nodes = append(w.nodes, &node{world: w, member: w.incarnate(id)})
	}
	if !w.report.Bootstrap {
		f := paxos.Facts{Cluster: "c1", Epoch: 1, Previous: base.Hash}
		for _, n := range w.nodes {
			f.Members = append(f.Members, n.member)
		}
		f.Council = f.Members[:councilSize(r, len(f.Members))]
		base = w.entry(f)
		w.check.given(base)
	}
	for _, n := range w.nodes {
		n.format(base)
		n.start()
	}
	return w
}

func councilSize(r *rand.Rand, members int) int {
	return min(members, pick(r, 1, 2, 3, 3, 3, 4, 5))
}

func (w *world) incarnate(id uint64) paxos.Member {
	w.born++
	return paxos.Member{ID: id, Incarnation: fmt.Sprintf("%c%d", 'a'+byte(w.rng.IntN(26)), w.born)}
}

// entry makes a value with these facts, and names it after its number.
func (w *world) entry(f paxos.Facts) paxos.Entry {
	n := len(w.values) + 1
	f.Hash = paxos.Hash{byte(n), byte(n >> 8), byte(n >> 16), 0xee}
	v := fmt.Sprintf("v%d", n)
	w.values[v] = f
	return paxos.Entry{Epoch: f.Epoch, Hash: f.Hash, Previous: f.Previous, Value: []byte(v)}
}

func (w *world) decode(v []byte) (paxos.Facts, error) {
	f, ok := w.values[string(v)]
	if !ok {
		return f, fmt.Errorf("nobody made the value %q", v)
	}
	return f, nil
}

func (w *world) logf(format string, args ...any) {
	if w.o.Trace {
		w.report.Transcript = append(w.report.Transcript, fmt.Sprintf("%4d ", w.report.Steps)+fmt.Sprintf(format, args...))
	}
}

// fail notes the first violation; the run ends after the step.
func (w *world) fail(format string, args ...any) {
	if w.report.Violation == "" {
		w.report.Violation = fmt.Sprintf(format, args...)
		w.logf("VIOLATION: %s", w.report.Violation)
	}
}

func (w *world) failed() bool { return w.report.Violation != "" }

func (w *world) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

func (w *world) run() {
	defer func() {
		if p := recover(); p != nil {
			w.fail("panic: %v", p)
		}
	}()
	for w.report.Steps < w.o.Steps && !w.failed() {
		w.report.Steps++
		w.step()
	}
	if !w.failed() {
		w.heal()
	}
}

// step does one thing, to one broker or to the network.
func (w *world) step() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	we := &w.weather
	switch {
	case n.machine == nil && w.chance(0.1):
		n.start()
	case w.chance(we.wipe):
		w.wipe(n)
	case w.chance(we.crash):
		n.crash()
	case w.chance(we.cut):
		w.recut()
	case w.chance(we.propose):
		n.propose()
	case w.chance(we.read):
		n.read()
	case w.chance(we.retry):
		n.retry()
	case w.chance(0.02):
		n.abandon()
	case w.chance(0.02):
		n.observe(w.nodes[w.rng.IntN(len(w.nodes))])
	case w.chance(0.01):
		w.join()
	case len(n.queue) > 0 && w.chance(0.5):
		n.flush()
	default:
		w.deliver()
	}
}

// recut mends all links or cuts some.
func (w *world) recut() {
	w.cut = [maxNodes + 1][maxNodes + 1]bool{}
	if w.chance(0.5) {
		w.logf("links mended")
		return
	}
	for range 1 + w.rng.IntN(2) {
		a := 1 + w.rng.IntN(maxNodes)
		both := w.chance(0.7)
		for b := range maxNodes + 1 {
			w.cut[a][b] = true
			w.cut[b][a] = w.cut[b][a] || both
		}
		w.logf("broker %d cut off, both ways: %v", a, both)
	}
}

// deliver takes any message from the network.
func (w *world) deliver() {
	if len(w.net) == 0 {
		return
	}
	i := w.rng.IntN(len(w.net))
	in := w.net[i]
	if w.chance(w.weather.repeat) {
		w.report.Repeated++
	} else {
		w.net[i] = w.net[len(w.net)-1]
		w.net = w.net[:len(w.net)-1]
	}
	if w.chance(w.weather.drop) {
		w.report.Dropped++
		w.logf("lost: %v", in)
		return
	}
	w.hand(in)
}

func (w *world) hand(in paxos.Message) {
	if w.cut[in.From.ID][in.To.ID] && in.From.ID != in.To.ID {
		w.report.Dropped++
		return
	}
	n := w.node(in.To.ID)
	if n == nil || n.machine == nil {
		return
	}
	w.report.Messages++
	w.logf("%v", in)
	n.take(n.machine.Step(in))
}

func (w *world) node(id uint64) *node {
	for _, n := range w.nodes {
		if n.member.ID == id {
			return n
		}
	}
	return nil
}

// maxInFlight bounds the network; above it, any message gets lost.
const maxInFlight = 400

func (w *world) send(out paxos.Message) {
	if len(w.net) >= maxInFlight {
		i := w.rng.IntN(len(w.net))
		w.net[i] = out
		return
	}
	w.net = append(w.net, out)
}
