package broker

import (
	"context"
	"encoding/json"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/replication/epoch/config"
)

// purgedWait bounds the question which data a broker has deleted.
const purgedWait = 2 * time.Second

// purgedEverywhere returns those of the topics whose data is gone from every
// broker that had a replica. A broker that doesn't answer may still have it.
func (b *Broker) purgedEverywhere(ctx context.Context, c *config.Config, topics []uint64) []uint64 {
	count := map[uint64]int{}
	asked := 0
	for i := range c.Brokers {
		id := c.Brokers[i].ID
		if id == b.self() {
			continue
		}
		asked++
		var done []uint64
		if err := b.request(ctx, id, subjectPurged, purgedWait, topics, &done); err != nil {
			b.c.Logger.Debug().Err(err).Str("broker", c.Brokers[i].Name).Msg("deleted topics are kept on record until every broker has purged them")
			return nil
		}
		for _, t := range done {
			count[t]++
		}
	}
	var all []uint64
	for _, t := range topics {
		if count[t] >= asked {
			all = append(all, t)
		}
	}
	return all
}

func (b *Broker) answerPurged(_ context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	var topics []uint64
	if err := json.Unmarshal(req, &topics); err != nil {
		return nil, badRequest("malformed request about purged topics")
	}
	done := []uint64{}
	for _, t := range topics {
		if b.carrier.hasPurged(t) {
			done = append(done, t)
		}
	}
	return json.Marshal(done)
}
