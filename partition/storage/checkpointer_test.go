package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeEngine knows how much of each log was appended and how much is durable.
type fakeEngine struct {
	mu       sync.Mutex
	appended map[LogID]int64
	durable  map[LogID]int64
	syncs    int
	onSync   func() error // called first
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{appended: map[LogID]int64{}, durable: map[LogID]int64{}}
}

func (e *fakeEngine) Sync() error {
	if e.onSync != nil {
		if err := e.onSync(); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.syncs++
	for id, n := range e.appended {
		e.durable[id] = n
	}
	return nil
}

func (e *fakeEngine) append(id LogID, n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.appended[id] += n
}

func (e *fakeEngine) next(id LogID) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.appended[id]
}

func (e *fakeEngine) synced(id LogID) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.durable[id]
}

func (e *fakeEngine) Logs() (ids []LogID, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range e.appended {
		ids = append(ids, id)
	}
	return ids, nil
}

func (e *fakeEngine) Open(LogID, Mark) (Store, error) { return nil, errors.New("not here") }
func (e *fakeEngine) Drop(LogID) error                { return nil }
func (e *fakeEngine) Collect(<-chan struct{}) error   { return nil }
func (e *fakeEngine) Figures() map[string]float64     { return nil }
func (e *fakeEngine) Close() error                    { return nil }

// fakeSource is a partition whose state is its next offset in words.
type fakeSource struct {
	engine  *fakeEngine
	id      LogID
	err     error // of Capture
	capture func()
	durable func(Checkpoint)
}

func (s *fakeSource) Capture() (Checkpoint, error) {
	if s.capture != nil {
		s.capture()
	}
	if s.err != nil {
		return Checkpoint{Log: s.id}, s.err
	}
	n := s.engine.next(s.id)
	return Checkpoint{Log: s.id, Index: uint64(n), Mark: Mark{Next: n}, State: fmt.Appendf(nil, "at %d", n)}, nil
}

func (s *fakeSource) Durable(c Checkpoint) {
	if s.durable != nil {
		s.durable(c)
	}
}

func testID(n int) LogID { return LogID{Topic: 1, Partition: uint64(n), Replica: 7} }

func openTestCheckpointer(t *testing.T, dir string, e Engine, o CheckpointOptions) *Checkpointer {
	t.Helper()
	c, err := OpenCheckpointer(dir, e, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func mustSync(t *testing.T, c *Checkpointer) {
	t.Helper()
	if err := c.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestRoundOrder(t *testing.T) {
	t.Parallel()
	e, dir := newFakeEngine(), t.TempDir()
	c := openTestCheckpointer(t, dir, e, CheckpointOptions{})
	id := testID(1)
	var said []string
	say := func(what string) { said = append(said, what) }
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, checkpointFileName))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	empty := size()
	e.onSync = func() error {
		say("sync")
		if size() != empty {
			t.Error("the file was written before the engine was synced")
		}
		return nil
	}
	c.Register(id, &fakeSource{
		engine: e, id: id,
		capture: func() { say("capture") },
		durable: func(cp Checkpoint) {
			say("durable")
			if size() == empty {
				t.Error("durable was called before the file was written")
			}
			if cp.Mark.Next != 5 {
				t.Errorf("durable says next %d, want 5", cp.Mark.Next)
			}
		},
	})
	e.append(id, 5)
	mustSync(t, c)
	if got := strings.Join(said, " "); got != "capture sync durable" {
		t.Fatalf("a round went: %s", got)
	}
	e.onSync = nil
}

// aheadOfEngine cuts the power when the engine begins its sync, and returns what
// of the checkpoints on disk was not durable then.
func aheadOfEngine(t *testing.T, h checkpointHooks) (ahead error) {
	t.Helper()
	e, dir := newFakeEngine(), t.TempDir()
	c := openTestCheckpointer(t, dir, e, CheckpointOptions{hooks: h})
	id := testID(1)
	c.Register(id, &fakeSource{engine: e, id: id})
	e.onSync = func() error {
		image := t.TempDir()
		if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
			return err
		}
		after, err := OpenCheckpointer(image, e, CheckpointOptions{})
		if err != nil {
			return err
		}
		if cp, _ := after.Load(id); cp.Mark.Next > e.synced(id) {
			ahead = fmt.Errorf("the checkpoint says %d, durable is %d", cp.Mark.Next, e.synced(id))
		}
		return after.file.close()
	}
	for range 3 {
		e.append(id, 10)
		mustSync(t, c)
	}
	return ahead
}

func TestCheckpointIsNeverAheadOfTheEngine(t *testing.T) {
	t.Parallel()
	if err := aheadOfEngine(t, checkpointHooks{}); err != nil {
		t.Error(err)
	}
	if aheadOfEngine(t, checkpointHooks{writeFirst: true}) == nil {
		t.Error("a checkpoint written before the sync was not noticed")
	}
}

func TestCallersShareRounds(t *testing.T) {
	t.Parallel()
	e := newFakeEngine()
	c := openTestCheckpointer(t, t.TempDir(), e, CheckpointOptions{})
	began, release := make(chan struct{}), make(chan struct{})
	var rounds atomic.Int32
	e.onSync = func() error {
		if rounds.Add(1) == 1 {
			close(began)
			<-release
		}
		return nil
	}
	var all sync.WaitGroup
	joined := &countingContext{Context: context.Background()}
	call := func() {
		all.Add(1)
		go func() {
			defer all.Done()
			if err := c.Sync(joined); err != nil {
				t.Error(err)
			}
		}()
	}
	call()
	<-began
	for range 20 {
		call()
	}
	eventually(t, "everybody waits for a round", func() bool { return joined.waits.Load() == 21 })
	gaveUp, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Sync(gaveUp); !errors.Is(err, context.Canceled) {
		t.Errorf("sync with a context that ended: %v", err)
	}
	close(release)
	all.Wait()
	if n := rounds.Load(); n != 2 {
		t.Errorf("21 callers cost %d rounds", n)
	}
}

// countingContext counts who has come to wait for it: Sync does so once it has
// joined a round.
type countingContext struct {
	context.Context
	waits atomic.Int32
}

func (c *countingContext) Done() <-chan struct{} {
	c.waits.Add(1)
	return c.Context.Done()
}

func TestSyncErrorIsFinal(t *testing.T) {
	t.Parallel()
	e, dir := newFakeEngine(), t.TempDir()
	var fatal []error
	c := openTestCheckpointer(t, dir, e, CheckpointOptions{OnFatal: func(err error) { fatal = append(fatal, err) }})
	id := testID(1)
	promised := int64(0)
	c.Register(id, &fakeSource{engine: e, id: id, durable: func(cp Checkpoint) { promised = cp.Mark.Next }})
	e.append(id, 5)
	mustSync(t, c)

	broken := errors.New("input/output error")
	e.onSync = func() error { return broken }
	e.append(id, 5)
	if err := c.Sync(context.Background()); !errors.Is(err, broken) {
		t.Fatalf("sync: %v", err)
	}
	e.onSync = nil // the disk seems to work again
	if err := c.Sync(context.Background()); !errors.Is(err, broken) {
		t.Fatalf("sync after a failed one: %v, want the same error", err)
	}
	c.Note(DefaultCheckpointBytes)
	if err := c.Run(context.Background()); !errors.Is(err, broken) {
		t.Errorf("run after a failed sync: %v", err)
	}
	if err := c.Close(); !errors.Is(err, broken) {
		t.Errorf("close: %v, want the error", err)
	}
	if len(fatal) != 1 || promised != 5 {
		t.Errorf("OnFatal was called with %v, %d was called durable; want one error and 5", fatal, promised)
	}
	again := openTestCheckpointer(t, dir, e, CheckpointOptions{})
	if cp, ok := again.Load(id); !ok || cp.Mark.Next != 5 || string(cp.State) != "at 5" {
		t.Errorf("the file says %v %q", cp.Mark, cp.State)
	}
}

func TestWriteErrorIsFinal(t *testing.T) {
	t.Parallel()
	e, fatal := newFakeEngine(), 0
	c, err := OpenCheckpointer(t.TempDir(), e, CheckpointOptions{OnFatal: func(error) { fatal++ }})
	if err != nil {
		t.Fatal(err)
	}
	id := testID(1)
	c.Register(id, &fakeSource{engine: e, id: id, durable: func(Checkpoint) { t.Error("called durable") }})
	e.append(id, 5)
	if err := c.file.file.Close(); err != nil { // from here on nothing can be written
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Sync(context.Background()); !errors.Is(err, os.ErrClosed) {
			t.Fatalf("sync: %v", err)
		}
	}
	if fatal != 1 {
		t.Errorf("OnFatal was called %d times", fatal)
	}
}

func TestForget(t *testing.T) {
	t.Parallel()
	e, dir := newFakeEngine(), t.TempDir()
	c := openTestCheckpointer(t, dir, e, CheckpointOptions{})
	for i := range 3 {
		c.Register(testID(i), &fakeSource{engine: e, id: testID(i)})
		e.append(testID(i), 5)
	}
	mustSync(t, c)
	for i := range 2 {
		c.Unregister(testID(i))
		c.Forget(testID(i))
		if _, ok := c.Load(testID(i)); ok {
			t.Errorf("log %d is still known", i)
		}
	}
	// Registered anew before the round: it stays.
	c.Register(testID(1), &fakeSource{engine: e, id: testID(1)})
	mustSync(t, c)
	want := []LogID{testID(1), testID(2)}
	if got := c.Checkpoints(); !slices.Equal(got, want) {
		t.Errorf("checkpoints of %v, want %v", got, want)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if got := openTestCheckpointer(t, dir, e, CheckpointOptions{}).Checkpoints(); !slices.Equal(got, want) {
		t.Errorf("checkpoints on disk of %v, want %v", got, want)
	}
}

func TestCaptureErrorsLeaveTheOthers(t *testing.T) {
	t.Parallel()
	e := newFakeEngine()
	c := openTestCheckpointer(t, t.TempDir(), e, CheckpointOptions{})
	sources := make([]*fakeSource, 3)
	for i := range sources {
		sources[i] = &fakeSource{engine: e, id: testID(i)}
		c.Register(testID(i), sources[i])
		e.append(testID(i), 5)
	}
	mustSync(t, c)
	sources[0].err = errors.New("busy")
	sources[1].err = fmt.Errorf("log 1: %w", ErrUnchanged)
	sources[0].durable = func(Checkpoint) { t.Error("durable was called without a capture") }
	sources[1].durable = sources[0].durable
	for i := range sources {
		e.append(testID(i), 5)
	}
	mustSync(t, c)
	for i, want := range []int64{5, 5, 10} {
		if cp, _ := c.Load(testID(i)); cp.Mark.Next != want {
			t.Errorf("log %d: checkpoint at %d, want %d", i, cp.Mark.Next, want)
		}
	}
	if n := c.Figures()["capture_failures_total"]; n != 1 {
		t.Errorf("%v captures failed, want 1", n)
	}
	// Nothing new: nothing is written, nobody is told.
	sources[2].durable = sources[0].durable
	size := c.file.size
	mustSync(t, c)
	if c.file.size != size {
		t.Errorf("a round without changes wrote %d bytes", c.file.size-size)
	}
}

func TestUnregisterEndsCallbacks(t *testing.T) {
	t.Parallel()
	e := newFakeEngine()
	c := openTestCheckpointer(t, t.TempDir(), e, CheckpointOptions{})
	id := testID(1)
	c.Register(id, &fakeSource{engine: e, id: id, durable: func(Checkpoint) { t.Error("durable after Unregister") }})
	e.append(id, 1)
	e.onSync = func() error { // in the middle of the round
		c.Unregister(id)
		return nil
	}
	mustSync(t, c)
	if cp, ok := c.Load(id); !ok || cp.Mark.Next != 1 {
		t.Errorf("the checkpoint did not stay: %v", cp)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a log could be registered twice")
			}
		}()
		c.Register(id, &fakeSource{engine: e, id: id})
		c.Register(id, &fakeSource{engine: e, id: id})
	}()
}

func TestRunByTimeAndBytes(t *testing.T) {
	t.Parallel()
	e := newFakeEngine()
	ticks := make(chan time.Time)
	c := openTestCheckpointer(t, t.TempDir(), e, CheckpointOptions{EveryBytes: 100, Ticks: ticks})
	id := testID(1)
	c.Register(id, &fakeSource{engine: e, id: id})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	at := func(want int64) {
		t.Helper()
		eventually(t, fmt.Sprintf("the checkpoint is at %d", want), func() bool {
			cp, _ := c.Load(id)
			return cp.Mark.Next == want
		})
	}
	e.append(id, 1)
	ticks <- time.Time{}
	at(1)
	e.append(id, 1)
	c.Note(99)
	if len(c.kick) != 0 {
		t.Error("99 bytes of 100 started a round")
	}
	c.Note(1)
	at(2)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestNoteDoesNotAllocate(t *testing.T) {
	c := openTestCheckpointer(t, t.TempDir(), newFakeEngine(), CheckpointOptions{})
	if n := testing.AllocsPerRun(100, func() { c.Note(DefaultCheckpointBytes / 10) }); n != 0 {
		t.Errorf("Note allocates %v times", n)
	}
}

func TestCloseRunsAFinalRound(t *testing.T) {
	t.Parallel()
	e, dir := newFakeEngine(), t.TempDir()
	c := openTestCheckpointer(t, dir, e, CheckpointOptions{})
	id := testID(1)
	c.Register(id, &fakeSource{engine: e, id: id})
	e.append(id, 3)
	for range 2 {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Sync(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("sync after close: %v", err)
	}
	if cp, _ := openTestCheckpointer(t, dir, e, CheckpointOptions{}).Load(id); cp.Mark.Next != 3 {
		t.Errorf("the checkpoint is at %d, want 3", cp.Mark.Next)
	}
}

func TestMissingCheckpointsAreNoFreshStart(t *testing.T) {
	t.Parallel()
	e, dir := newFakeEngine(), t.TempDir()
	e.append(testID(1), 1)
	if _, err := OpenCheckpointer(dir, e, CheckpointOptions{}); !errors.Is(err, ErrCheckpointMissing) {
		t.Fatalf("open without a file, with logs: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("it left %v", entries)
	}
}

func TestUnreadableFrameKeepsTheMark(t *testing.T) {
	t.Parallel()
	e, dir := newFakeEngine(), t.TempDir()
	fatal := 0
	c := openTestCheckpointer(t, dir, e, CheckpointOptions{OnFatal: func(error) { fatal++ }})
	id := testID(1)
	c.Register(id, &fakeSource{engine: e, id: id})
	e.append(id, 9)
	mustSync(t, c)
	if _, err := c.file.file.WriteAt([]byte{0xff, 0xff}, c.file.where[id].offset+20); err != nil {
		t.Fatal(err)
	}
	cp, ok := c.Load(id)
	if !ok || cp.Mark.Next != 9 || cp.State != nil || fatal != 1 {
		t.Errorf("load of a damaged frame: %v %v, state %q, %d times fatal", ok, cp.Mark, cp.State, fatal)
	}
}

// eventually polls a condition; failing to meet it ends the test.
func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !met() {
		if time.Now().After(deadline) {
			t.Fatalf("not after 20 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
