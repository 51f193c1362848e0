package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/parleymq/parley/broker/api"
	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
)

// room is what a broker says of its disk to whoever describes a move to it: leaders only know that it takes nothing, not what it lacks.
type room struct {
	Low   bool  `json:"low"` // copies wait
	Free  int64 `json:"free"`
	Total int64 `json:"total"`
	Needs int64 `json:"needs"` // bytes that must be free for copies to go on
}

func (b *Broker) room() room {
	return room{b.space.Low(), b.space.Free(), b.space.Total(), b.space.ForCopies()}
}

func (b *Broker) answerRoom(context.Context, mesh.Identity, []byte) ([]byte, error) {
	if err := b.notStarted(); err != nil { // there is no word of the disk yet
		return nil, err
	}
	return json.Marshal(b.room())
}

// askRoom asks the brokers that moves bring replicas to whether their disks have room, each once, and says in the moves where there is none.
func (b *Broker) askRoom(ctx context.Context, out []api.PartitionStatus) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	rooms := map[uint64]room{}
	asked := map[uint64]bool{}
	for i := range out {
		if out[i].Move == nil {
			continue
		}
		for _, r := range out[i].Move.Adding {
			if r.InSync || asked[r.Broker] || !b.peers.alive(r.Broker) {
				continue
			}
			asked[r.Broker] = true
			wg.Go(func() {
				has := b.room()
				if r.Broker != b.self() {
					if err := b.request(ctx, r.Broker, subjectRoom, statusWait, struct{}{}, &has); err != nil {
						return // an earlier version doesn't know the question; what the leader says stands
					}
				}
				mu.Lock()
				defer mu.Unlock()
				rooms[r.Broker] = has
			})
		}
	}
	wg.Wait()
	for i := range out {
		m := out[i].Move
		if m == nil {
			continue
		}
		for _, r := range m.Adding {
			if has := rooms[r.Broker]; !r.InSync && has.Low {
				m.NoRoom = true
				m.Detail = fmt.Sprintf("replica %d on %s: its disk is full, with %s free of %s: %s must be free before anything is copied to it, and this partition takes %s, of which it has %s",
					r.Replica, b.brokerName(r.Broker), wire.FormatSize(has.Free), wire.FormatSize(has.Total), wire.FormatSize(has.Needs), wire.FormatSize(r.OfBytes), wire.FormatSize(min(r.Bytes, r.OfBytes)))
				break
			}
		}
	}
}
