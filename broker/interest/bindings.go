package interest

import (
	"errors"
	"fmt"
	"sync"
)

// ErrOverlap: the filter shares subjects with one that is bound already.
var ErrOverlap = errors.New("subject filters overlap")

// Bindings maps subjects to values by filters of which no two overlap, so that
// a subject has one value or none. The zero value is empty and ready.
type Bindings[T any] struct {
	mu    sync.RWMutex
	trie  node[binding[T]]
	count int
}

type binding[T any] struct {
	filter string
	value  T
}

// Bind gives the filter's subjects the value. It fails with ErrBadFilter, or
// with ErrOverlap, naming the filter that is in the way.
func (b *Bindings[T]) Bind(filter string, value T) error {
	if !ValidFilter(filter) {
		return fmt.Errorf("bind %q: %w", filter, ErrBadFilter)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.trie.overlap(filter); n != nil {
		return fmt.Errorf("bind %q: %w with %q", filter, ErrOverlap, n.value.filter)
	}
	n := b.trie.put(filter)
	n.used = true
	n.value = binding[T]{filter: filter, value: value}
	b.count++
	return nil
}

// Unbind drops the filter, as it was bound, and reports whether it was there.
func (b *Bindings[T]) Unbind(filter string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.trie.get(filter)
	if n == nil || !n.used {
		return false
	}
	n.used = false
	n.value = binding[T]{}
	n.prune()
	b.count--
	return true
}

// Lookup returns the value that the subject is bound to.
func (b *Bindings[T]) Lookup(subject []byte) (value T, ok bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n := b.trie.first(subject)
	if n == nil {
		return value, false
	}
	return n.value.value, true
}

// Overlapping returns a bound filter, and its value, that shares a subject with
// the filter given, which must be valid.
func (b *Bindings[T]) Overlapping(filter string) (bound string, value T, ok bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	n := b.trie.overlap(filter)
	if n == nil {
		return "", value, false
	}
	return n.value.filter, n.value.value, true
}

// Len is the number of bound filters.
func (b *Bindings[T]) Len() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.count
}
