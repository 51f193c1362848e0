package epoch

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/parleymq/parley/replication/epoch/config"
)

var linearSeeds = flag.Int("linear.seeds", 0, "runs of the linearizability test; 0 is a few")

// What clients do to the counter of topic ids.
type call struct {
	kind     string // read, take, take if
	tag      string
	expected uint64
}

type outcome struct {
	value   uint64 // that was read or taken, or was there instead of the expected one
	refused bool   // another value than the expected one was there
	unknown bool   // the caller's time was over, and it took place
}

// counterModel is the counter as one object that does one call at a time.
var counterModel = porcupine.Model{
	Init: func() any { return uint64(1) },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(uint64), input.(call), output.(outcome)
		switch {
		case in.kind == "read":
			return out.value == s, s
		case out.unknown:
			return in.kind == "take" || in.expected == s, s + 1
		case out.refused:
			return out.value == s && s != in.expected, s
		case in.kind == "take if" && in.expected != s:
			return false, s
		}
		return out.value == s, s + 1
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
}

// linearRun is a faulty run of a cluster with clients, and what they saw.
type linearRun struct {
	w       *world
	read    func(context.Context, *Cluster) (*config.Config, error)
	events  atomic.Int64
	mu      sync.Mutex
	history []porcupine.Operation
	late    map[string]porcupine.Operation // whose outcome the client doesn't know
	done    map[string]uint64
	broken  string // a broker that didn't start
	calls   int
	expired int
}

// client makes calls at random brokers until the end.
func (r *linearRun) client(id int, seed uint64, end time.Time) {
	rng := rand.New(rand.NewPCG(seed, uint64(id)+100))
	known := uint64(1)
	for n := 0; time.Now().Before(end); n++ {
		time.Sleep(time.Duration(rng.IntN(60)+1) * time.Millisecond)
		nodes := r.w.all()
		c := nodes[rng.IntN(len(nodes))].life()
		if c == nil {
			continue
		}
		in := call{kind: []string{"read", "take", "take if"}[rng.IntN(3)], tag: fmt.Sprintf("%d.%d", id, n), expected: known}
		op := porcupine.Operation{ClientId: id, Input: in, Call: r.events.Add(1)}
		ctx, cancel := within(time.Duration(rng.IntN(1500)+50) * time.Millisecond)
		out, err := r.make(ctx, c, in)
		cancel()
		op.Output, op.Return = out, r.events.Add(1)
		r.mu.Lock()
		r.calls++
		switch {
		case err == nil:
			r.history = append(r.history, op)
			known = out.value
			if in.kind != "read" && !out.refused {
				known++
				r.done[in.tag] = out.value
			}
		case in.kind != "read":
			r.late[in.tag] = op
		}
		if err != nil {
			r.expired++
		}
		r.mu.Unlock()
	}
}

var errElse = errors.New("another value is there")

func (r *linearRun) make(ctx context.Context, c *Cluster, in call) (outcome, error) {
	if in.kind == "read" {
		cur, err := r.read(ctx, c)
		if err != nil {
			return outcome{}, err
		}
		return outcome{value: cur.NextTopic}, nil
	}
	var got uint64
	cur, err := c.Propose(ctx, func(next *config.Config) error {
		if in.kind == "take if" && next.NextTopic != in.expected {
			return errElse
		}
		got = next.TakeTopic()
		next.Change = in.tag
		return nil
	})
	if errors.Is(err, errElse) {
		return outcome{value: cur.NextTopic, refused: true}, nil
	}
	return outcome{value: got}, err
}

// faults makes bad days until the end, and then good ones.
func (r *linearRun) faults(end time.Time) {
	w := r.w
	for time.Now().Before(end) {
		time.Sleep(time.Duration(w.intn(400)+20) * time.Millisecond)
		nodes := w.all()
		n := nodes[w.intn(len(nodes))]
		switch w.intn(9) {
		case 0, 1:
			w.isolate(n.id, w.chance(0.5))
		case 2, 3:
			w.mu.Lock()
			clear(w.cut)
			w.mu.Unlock()
		case 4, 5:
			n.crash()
		case 6: // the power of all
			for _, n := range nodes {
				n.crash()
			}
		default:
			for _, n := range nodes {
				r.restart(n)
			}
		}
	}
	w.heal()
	for _, n := range w.all() {
		r.restart(n)
	}
}

func (r *linearRun) restart(n *node) {
	if n.life() != nil {
		return
	}
	if err := n.start(); err != nil && r.broken == "" {
		r.broken = fmt.Sprintf("broker %d: %v", n.id, err)
	}
}

// run makes one seed, and says what was wrong.
func (r *linearRun) run(t *testing.T, seed uint64, spoil func(*world)) (wrong string) {
	w := newWorld(t, seed)
	r.w, r.late, r.done = w, map[string]porcupine.Operation{}, map[string]uint64{}
	defer w.stop()
	nodes := w.formed([]int{3, 3, 5}[w.intn(3)])
	for _, n := range nodes {
		n.dir.slowTo(time.Duration(w.intn(4)) * time.Millisecond)
	}
	w.mu.Lock()
	w.drop, w.repeat = []float64{0, 0.02, 0.1, 0.25}[w.rng.IntN(4)], []float64{0, 0.1}[w.rng.IntN(2)]
	w.delay = []time.Duration{time.Millisecond, 5 * time.Millisecond, 40 * time.Millisecond}[w.rng.IntN(3)]
	w.mu.Unlock()
	if spoil != nil {
		spoil(w)
	}
	end := time.Now().Add(8 * time.Second)
	var wg sync.WaitGroup
	for id := range 5 {
		wg.Go(func() { r.client(id, seed, end) })
	}
	r.faults(end)
	wg.Wait()
	if r.broken != "" {
		return r.broken
	}
	// With faults off, a new epoch comes.
	var last uint64
	ctx, cancel := within(5 * time.Second)
	defer cancel()
	if _, err := nodes[w.intn(len(nodes))].c.Propose(ctx, count("last", &last)); err != nil {
		return fmt.Sprintf("no epoch after the faults: %v", err)
	}
	newest, same := w.same(1, 10*time.Second)
	if !same {
		return "brokers don't come to the same epoch"
	}
	chain := nodes[0].c.History(newest, 1<<20)
	decided := map[string]int{}
	for _, h := range chain {
		for tag := range strings.SplitSeq(h.Change, "; ") {
			decided[tag]++
		}
	}
	for _, n := range nodes[1:] {
		other := n.c.History(newest, 1<<20)
		for i := range chain {
			if other[i].Hash != chain[i].Hash {
				return fmt.Sprintf("brokers differ in epoch %d", chain[i].Epoch)
			}
		}
	}
	for tag := range r.done {
		if decided[tag] != 1 {
			return fmt.Sprintf("change %s was reported done and is there %d times", tag, decided[tag])
		}
	}
	for tag, op := range r.late {
		if decided[tag] > 1 {
			return fmt.Sprintf("change %s is there %d times", tag, decided[tag])
		}
		if decided[tag] == 1 {
			op.Output, op.Return = outcome{unknown: true}, r.events.Load()+1
			r.history = append(r.history, op)
		}
	}
	for _, n := range nodes {
		if len(n.fatal) > 0 {
			return fmt.Sprintf("broker %d: %v", n.id, n.fatal[0])
		}
	}
	switch porcupine.CheckOperationsTimeout(counterModel, r.history, 20*time.Second) {
	case porcupine.Illegal:
		return "the calls are not linearizable"
	case porcupine.Unknown:
		return "checking took too long"
	}
	return ""
}

func linearizable(ctx context.Context, c *Cluster) (*config.Config, error) { return c.Read(ctx) }

// TestLinearizable runs clients on brokers that crash back to their last fsync, on
// a network that loses, repeats, delays and cuts, with proposers that duel. For long
// runs: go test ./replication/epoch -run Linearizable -linear.seeds 1000 -v
func TestLinearizable(t *testing.T) {
	t.Parallel()
	first, n := uint64(1), *linearSeeds
	if n == 0 {
		n = 8
	}
	if s := os.Getenv("LINEAR_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, n = v, 1
	}
	calls, expired, epochs := 0, 0, 0
	for seed := first; seed < first+uint64(n); seed++ {
		synctest.Test(t, func(t *testing.T) {
			r := linearRun{read: linearizable}
			if wrong := r.run(t, seed, nil); wrong != "" {
				t.Errorf("seed %d: %s (LINEAR_SEED=%d runs it alone)", seed, wrong, seed)
			}
			calls, expired = calls+r.calls, expired+r.expired
			epochs += len(r.done)
		})
	}
	t.Logf("%d seeds from %d: %d calls, %d changes done, %d calls ran out of time", n, first, calls, epochs, expired)
	if calls > 0 && expired*2 > calls {
		t.Errorf("most calls ran out of time: the test shows little")
	}
}

// TestNotLinearizable: the check notices cached reads, and disks that lie.
func TestNotLinearizable(t *testing.T) {
	t.Parallel()
	for name, mutant := range map[string]struct {
		read  func(context.Context, *Cluster) (*config.Config, error)
		spoil func(*world)
	}{
		"cached reads": {read: func(_ context.Context, c *Cluster) (*config.Config, error) { return c.Current(), nil }},
		"disks lie": {read: linearizable, spoil: func(w *world) {
			for _, n := range w.all() {
				n.dir.mu.Lock()
				n.dir.lies = true
				n.dir.mu.Unlock()
			}
		}},
	} {
		noticed := ""
		for seed := uint64(1); seed <= 20 && noticed == ""; seed++ {
			// A bubble of its own: what goes wrong in it must not fail this test.
			synctest.Test(t, func(t *testing.T) {
				r := linearRun{read: mutant.read}
				noticed = r.run(t, seed, mutant.spoil)
			})
		}
		t.Logf("%s: %s", name, noticed)
		if noticed == "" {
			t.Errorf("%s: nothing was noticed", name)
		}
	}
}
