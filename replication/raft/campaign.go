package raft

import (
	"maps"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
)

const (
	campaignPoll = 5 * time.Millisecond
	// campaignLimit is when a group is left to its election timeout.
	campaignLimit = 10 * time.Second
)

// campaigns makes groups of one voter elect themselves at once. Left alone they wait for
// an election timeout, which has nothing to wait for: nobody else could lead.
// Dragonboat has no call for it, but a message: TimeoutNow, with which a
// leader hands over. It is put in as if it had come over a link. A candidate that
// has no peers becomes leader without sending anything.
type campaigns struct {
	h       *Host
	mu      sync.Mutex
	waiting map[*replica]time.Time // since
	wake    chan struct{}
}

func newCampaigns(h *Host) *campaigns {
	return &campaigns{h: h, waiting: make(map[*replica]time.Time), wake: make(chan struct{}, 1)}
}

// ask lets p campaign as soon as it is known to be alone. A group of several is left alone.
func (c *campaigns) ask(p *replica) {
	c.mu.Lock()
	c.waiting[p] = time.Now()
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *campaigns) run() {
	defer c.h.owned.Done()
	poll := time.NewTicker(campaignPoll)
	defer poll.Stop()
	for {
		tick := poll.C
		if c.idle() {
			tick = nil
		}
		select {
		case <-c.h.stop:
			return
		case <-c.wake:
		case <-tick:
		}
		c.step()
	}
}

func (c *campaigns) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting) == 0
}

// step looks at each waiting replica once. The membership is known when the entries
// that were committed before are applied, and a campaign is refused until then.
//
// Who waits is taken down before the look: a replica that was started after it
// would seem to be gone, and be left to its election timeout.
func (c *campaigns) step() {
	c.mu.Lock()
	asked := maps.Clone(c.waiting)
	c.mu.Unlock()
	info := c.h.nh.GetNodeHostInfo(dragonboat.NodeHostInfoOption{SkipLogInfo: true})
	if info == nil {
		return
	}
	shards := make(map[uint64]*dragonboat.ShardInfo, len(info.ShardInfoList))
	for i := range info.ShardInfoList {
		shards[info.ShardInfoList[i].ShardID] = &info.ShardInfoList[i]
	}
	var batch raftpb.MessageBatch
	c.mu.Lock()
	for p, since := range asked {
		s, ok := shards[p.Shard]
		switch {
		case !ok, p.Leadership().Leader != 0, time.Since(since) > campaignLimit:
			delete(c.waiting, p)
		case s.Pending:
		case len(s.Replicas) != 1 || s.Replicas[p.Replica.Replica] == "":
			delete(c.waiting, p)
		default:
			batch.Requests = append(batch.Requests, raftpb.Message{
				Type: raftpb.TimeoutNow, ShardID: p.Shard, To: p.Replica.Replica, From: p.Replica.Replica,
			})
		}
	}
	c.mu.Unlock()
	if len(batch.Requests) > 0 {
		batch.DeploymentId = c.h.config.Deployment
		batch.BinVer = raftio.TransportBinVersion
		c.h.transport.messages(batch)
	}
}
