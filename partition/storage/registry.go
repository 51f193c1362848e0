package storage

import (
	"fmt"
	"sort"
	"strings"
	"sync"
)

// Opener opens an engine in Options.Dir, which it creates when missing.
type Opener func(Options) (Engine, error)

var registry = struct {
	sync.RWMutex
	openers map[string]Opener
}{openers: make(map[string]Opener)}

// Register makes an engine available by name. Engines register themselves when
// their package is imported; a name that is taken is a bug and panics.
func Register(name string, open func(Options) (Engine, error)) {
	registry.Lock()
	defer registry.Unlock()
	if _, taken := registry.openers[name]; taken {
		panic("storage: engine " + name + " is registered twice")
	}
	registry.openers[name] = open
}

// OpenEngine opens the engine of that name. The error wraps ErrUnknownEngine
// when none is registered, ErrInUse when another holds the directory and
// ErrFormat when something else wrote it.
func OpenEngine(name string, o Options) (Engine, error) {
	registry.RLock()
	open, ok := registry.openers[name]
	registry.RUnlock()
	if !ok {
		return nil, fmt.Errorf("open storage engine %q: %w; known are: %s",
			name, ErrUnknownEngine, strings.Join(Engines(), ", "))
	}
	e, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("open storage engine %q: %w", name, err)
	}
	return e, nil
}

// Engines lists the registered names in order.
func Engines() []string {
	registry.RLock()
	defer registry.RUnlock()
	names := make([]string, 0, len(registry.openers))
	for name := range registry.openers {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
