package badger

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/parleymq/parley/partition/storage"
)

// guarded runs f, which reads Badger's memory maps. Where a file was cut short
// behind its back, or the disk can't be read, the kernel sends SIGBUS; that becomes
// an error here, and so do the panics with which Badger indexes into damaged
// blocks before it has checked them. In Badger's own goroutines either ends the process.
func guarded(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		switch r := recover().(type) {
		case nil:
		case visitorPanic:
			panic(r.value)
		case runtime.Error:
			err = fmt.Errorf("%w: %v", storage.ErrCorrupt, r)
		case string: // Badger's table code panics with a text
			err = fmt.Errorf("%w: %s", storage.ErrCorrupt, r)
		default:
			panic(r)
		}
	}()
	return f()
}

// visitorPanic carries a panic of a caller's function through guarded.
type visitorPanic struct{ value any }

// visiting calls a caller's function. Its faults are the store's, since it reads
// the store's memory; its other panics are its own.
func visiting(visit func(storage.Chunk) bool, c storage.Chunk) bool {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if fault, ok := r.(interface{ Addr() uintptr }); ok {
			panic(fault)
		}
		panic(visitorPanic{r})
	}()
	return visit(c)
}

// A gate counts who is inside. Unlike a read-write lock it may be entered again
// by one who is, while somebody waits to close it: a visitor of Read may well
// seek in the index.
type gate struct {
	mu     sync.Mutex
	inside int
	closed bool
	empty  chan struct{}
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.closed {
		close(g.empty)
	}
}

// close lets nobody in any more and waits for those inside. It returns false to
// all but its first caller.
func (g *gate) close() bool {
	g.mu.Lock()
	first := !g.closed
	if first {
		g.closed, g.empty = true, make(chan struct{})
		if g.inside == 0 {
			close(g.empty)
		}
	}
	g.mu.Unlock()
	<-g.empty
	return first
}

// enter is called before each use of Badger, leave after it: Badger panics when
// it is used after its Close.
func (e *Engine) enter(what string) error {
	if !e.use.enter() {
		return fmt.Errorf("%s: %w", what, storage.ErrClosed)
	}
	return nil
}

func (e *Engine) leave() { e.use.leave() }

// view runs a read.
func (e *Engine) view(f func(*badgerdb.Txn) error) error {
	return guarded(func() error {
		txn := e.db.NewTransaction(false)
		defer txn.Discard()
		return f(txn)
	})
}
