package storage

import (
	"errors"
	"strings"
	"testing"
)

func TestRegistry(t *testing.T) {
	broken := errors.New("broken")
	t.Cleanup(func() {
		registry.Lock()
		defer registry.Unlock()
		delete(registry.openers, "test-a")
		delete(registry.openers, "test-b")
	})
	Register("test-b", func(o Options) (Engine, error) { return nil, broken })
	Register("test-a", func(o Options) (Engine, error) { return newFakeEngine(), nil })
	if e, err := OpenEngine("test-a", Options{}); err != nil || e == nil {
		t.Errorf("open: %v, %v", e, err)
	}
	if _, err := OpenEngine("test-b", Options{}); !errors.Is(err, broken) || !strings.Contains(err.Error(), "test-b") {
		t.Errorf("open one that fails: %v", err)
	}
	_, err := OpenEngine("rocks", Options{})
	if !errors.Is(err, ErrUnknownEngine) || !strings.Contains(err.Error(), "test-a, test-b") {
		t.Errorf("open one that nobody knows: %v; it should name those there are", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a name could be registered twice")
		}
	}()
	Register("test-a", nil)
}

func TestCheckAppend(t *testing.T) {
	t.Parallel()
	at := func(base, last int64) Chunk { return Chunk{Base: base, Last: last} }
	for _, c := range []struct {
		name   string
		chunks []Chunk
		index  []IndexEntry
		want   error
	}{
		{"nothing", nil, nil, nil},
		{"chunks that adjoin", []Chunk{at(10, 10), at(11, 15)}, []IndexEntry{{Key: []byte("k")}}, nil},
		{"a gap before", []Chunk{at(11, 12)}, nil, ErrGap},
		{"again", []Chunk{at(9, 12)}, nil, ErrGap},
		{"a gap between", []Chunk{at(10, 12), at(14, 15)}, nil, ErrGap},
		{"backwards", []Chunk{at(10, 9)}, nil, ErrGap},
		{"the highest offset", []Chunk{at(10, MaxOffset)}, nil, nil},
		{"above it", []Chunk{at(10, MaxOffset+1)}, nil, ErrGap},
		{"data", []Chunk{{Base: 10, Last: 10, Data: make([]byte, MaxChunkBytes+1)}}, nil, ErrTooLarge},
		{"meta", []Chunk{{Base: 10, Last: 10, Meta: make([]byte, MaxMetaBytes+1)}}, nil, ErrTooLarge},
		{"no key", nil, []IndexEntry{{Value: []byte("v")}}, ErrTooLarge},
		{"a long key", nil, []IndexEntry{{Key: make([]byte, MaxIndexKeyBytes+1)}}, ErrTooLarge},
		{"a long value", nil, []IndexEntry{{Key: []byte("k"), Value: make([]byte, MaxIndexValueBytes+1)}}, ErrTooLarge},
	} {
		if err := CheckAppend(testID(1), 10, c.chunks, c.index); !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
