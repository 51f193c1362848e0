package partition

import (
	"context"
	"errors"
	"testing"

	"github.com/parleymq/parley/partition/record"
)

// chunksOf applies n appends of one record each.
func chunksOf(t *testing.T, m *machine, n int) {
	m.do(t, 1, command(commandHeader{kind: kindStart, term: 1}))
	for i := range n {
		m.do(t, uint64(i)+2, command(commandHeader{kind: kindAppend, term: 1, counter: uint64(i) + 1}, itemOf(t, -1, record.NoProducer, nil, "v")))
	}
}

func (m *machine) trimTo(t *testing.T, start int64) {
	s := m.state
	m.do(t, s.index+1, append(command(commandHeader{kind: kindTrim, term: s.term, counter: s.counter + 1}), 0, 0, 0, 0, 0, 0, 0, byte(start)))
	if err := m.checkpoints.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestReadMeetsTrim: a read that began before a trim and finds the chunk gone
// says where the log starts now. It is not damage.
func TestReadMeetsTrim(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, _ := openMachine(t, memoryEngine(t, dir), dir)
	chunksOf(t, m, 10)
	before := m.look()
	m.trimTo(t, 5)
	_, err := m.fetchStored(FetchRequest{Offset: 2}, FetchResult{}, before, 1<<20, "t/0")
	var e *Error
	if !errors.As(err, &e) || !errors.Is(e, ErrOutOfRange) || e.Start != 5 || e.Next != 10 {
		t.Fatalf("%v", err)
	}
}

// TestReadMeetsClose: a read that meets the end of the partition is to be tried
// again, elsewhere or later. It is not damage.
func TestReadMeetsClose(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, _ := openMachine(t, memoryEngine(t, dir), dir)
	chunksOf(t, m, 3)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.fetch(FetchRequest{Offset: 1}, nil, "t/0"); !errors.Is(err, ErrClosed) {
		t.Errorf("fetch: %v", err)
	}
	p := &Partition{m: m, name: "t/0"}
	p.leading.Store(true)
	if _, err := p.OffsetAt(0); !errors.Is(err, ErrClosed) {
		t.Errorf("lookup by time: %v", err)
	}
}
