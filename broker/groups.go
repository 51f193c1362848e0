package broker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/replication/epoch/config"
)

// groups is what a broker keeps of consumer groups: nothing that would matter after a
// restart. The groups themselves are in the partitions.
type groups struct {
	requests atomic.Int32  // of members under way, those apart that wait
	turn     atomic.Uint64 // moves plain clients' requests from partition to partition
	hops     atomic.Uint64 // names what is asked of other brokers for plain clients
	letters  deadLetters
	waits    pullWaits
}

// noGroups says why there can't be groups yet: a broker that doesn't know their entries in a
// partition's log would stop at the first one.
func (b *Broker) noGroups() string {
	if level := b.epochs.Current().FeatureLevel; level < config.LevelGroups {
		return fmt.Sprintf("there are no consumer groups at feature level %d, level %d is needed: once every broker runs a version that knows it, parley cluster raise-level has all use it", level, config.LevelGroups)
	}
	return ""
}

// stateForm follows the feature level: until it rises, the version before may have to read what is written.
func (b *Broker) stateForm() partition.Form {
	c := b.routes.Load().config
	if b.epochs != nil { // else it is a recovery, which goes by what it found
		c = b.epochs.Current()
	}
	if c.FeatureLevel < config.LevelGroups {
		return partition.FormChain
	}
	return partition.FormGroups
}

// puller is a member that pulls from a partition.
type puller struct {
	part          *partition.Partition
	group, member string
}

// pullWaits are the pulls that wait, so that a member which takes no more can end its
// own. There are no more of them than long polls.
type pullWaits struct {
	mu    sync.Mutex
	under map[puller][]*pullWait
}

type pullWait struct{ cancel context.CancelFunc }

// begin returns a context that ends when the member stops. done must be called.
func (w *pullWaits) begin(ctx context.Context, who puller) (waiting context.Context, done func()) {
	waiting, cancel := context.WithCancel(ctx)
	one := &pullWait{cancel}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.under == nil {
		w.under = map[puller][]*pullWait{}
	}
	w.under[who] = append(w.under[who], one)
	return waiting, func() {
		cancel()
		w.mu.Lock()
		defer w.mu.Unlock()
		all := w.under[who]
		for i := range all {
			if all[i] == one {
				all = append(all[:i], all[i+1:]...)
				break
			}
		}
		if w.under[who] = all; len(all) == 0 {
			delete(w.under, who)
		}
	}
}

// stop ends the waits of a member.
func (w *pullWaits) stop(who puller) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.under[who] {
		one.cancel()
	}
}
