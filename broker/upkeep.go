package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/broker/upkeep"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// keeper keeps the cluster whole, on the broker that is the soft leader: the live one
// with the lowest id. It asks all brokers what they see, has the pure package upkeep decide, and
// proposes what that comes to as an epoch. Two that take themselves for the leader do no harm:
// each decision is made anew on the configuration that it would change.
//
// All brokers count how often others came back from the dead, so that whoever leads next
// knows which of them come and go.
type keeper struct {
	b    *Broker
	kick chan struct{}

	mu      sync.Mutex
	states  map[uint64]config.BrokerState
	returns map[uint64]comeback
	verdict verdict   // the newest, of whoever leads
	heard   time.Time // when
	paused  bool      // as the leader logged it last
}

// comeback counts a broker's returns from the dead.
type comeback struct {
	times int
	last  time.Time
}

// verdict is what the leader finds, as it tells all brokers.
type verdict struct {
	From    uint64   `json:"from"`
	Paused  bool     `json:"paused"`
	Missing []uint64 `json:"missing"`
	Limit   int      `json:"limit"`
	Failed  string   `json:"failed,omitempty"` // why nothing can be planned
}

const (
	subjectSight  = "sight"          // what do you see of the others? Tells what the leader finds.
	sightWait     = time.Second      // for the answers of all
	upkeepPropose = 10 * time.Second // for one epoch
	verdictFresh  = 10 * time.Second // older ones are not shown
	flapMemory    = 24 * time.Hour   // after which a comeback is forgotten
	flapDoublings = 3                // of the time to settle, at most
	// leaderlessAfter is for how long a partition must have had no leader until moves of it are not thought of: an election is no reason.
	leaderlessAfter = 5 * time.Second
	upkeepGather    = 20 * time.Millisecond // epochs that come together are looked at once
)

func newKeeper(b *Broker) *keeper {
	return &keeper{b: b, kick: make(chan struct{}, 1), states: map[uint64]config.BrokerState{}, returns: map[uint64]comeback{}}
}

// run works until ctx ends.
func (k *keeper) run(ctx context.Context) {
	watch := k.b.epochs.Watch(ctx)
	tick := time.NewTicker(k.b.c.UpkeepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case c, open := <-watch:
			if !open {
				return
			}
			k.observe(c)
			// A move that ended makes room for the next; others end at about the same time.
			pause := time.NewTimer(upkeepGather)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
			pause.Stop()
		case <-tick.C:
		}
		k.keep(ctx)
	}
}

// observe counts who came back.
func (k *keeper) observe(c *config.Config) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for i := range c.Brokers {
		b := &c.Brokers[i]
		if k.states[b.ID] == config.Dead && b.State == config.Active {
			r := k.returns[b.ID]
			if now.Sub(r.last) > flapMemory {
				r.times = 0
			}
			k.returns[b.ID] = comeback{r.times + 1, now}
		}
		k.states[b.ID] = b.State
	}
	for id := range k.states {
		if c.Broker(id) == nil {
			delete(k.states, id)
			delete(k.returns, id)
		}
	}
}

// settle is for how long brokers that came back must be up before they get replicas: as long as
// it takes to die, and twice as long each time, so that one that comes and goes doesn't
// have everything copied to and fro.
func (k *keeper) settle() map[uint64]int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[uint64]int64{}
	for id, r := range k.returns {
		if time.Since(r.last) < flapMemory {
			out[id] = max(k.b.c.BalanceAfter, k.b.c.DeadAfter<<min(r.times-1, flapDoublings)).Milliseconds()
		}
	}
	return out
}

// keep looks once whether anything is to be done, and has it done.
func (k *keeper) keep(ctx context.Context) {
	b := k.b
	cur := b.epochs.Current()
	if cur.Epoch == 0 || cur.Broker(b.self()) == nil || b.epochs.Leader() != b.self() || b.stopping.Load() {
		return
	}
	facts := upkeep.Facts{
		Reports: k.reports(ctx, cur), DeadAfterMS: b.c.DeadAfter.Milliseconds(), SettleMS: b.c.BalanceAfter.Milliseconds(),
		Settle: k.settle(), Leaderless: b.leaders.missing(cur, leaderlessAfter), Superseded: epoch.Superseded,
	}
	d, err := upkeep.Decide(cur, facts)
	k.note(cur, d, err)
	if err != nil || !d.Any() || ctx.Err() != nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, upkeepPropose)
	defer cancel()
	var last upkeep.Decision
	c, err := b.epochs.Propose(limited, func(next *config.Config) error {
		var err error
		if last, err = upkeep.Decide(next, facts); err != nil {
			return err
		}
		if !last.Any() {
			return epoch.ErrUnchanged
		}
		return last.Apply(next)
	})
	switch {
	case err == nil:
		k.log(c, &last)
	case !errors.Is(err, epoch.ErrUnchanged) && ctx.Err() == nil:
		b.c.Logger.Warn().Err(err).Msg("what the cluster needs could not be decided yet, it is tried again")
	}
}

func (k *keeper) log(c *config.Config, d *upkeep.Decision) {
	log := k.b.c.Logger
	for _, id := range d.Dead {
		log.Warn().Str("broker", c.Broker(id).Name).Uint64("epoch", c.Epoch).Dur("dead_after", k.b.c.DeadAfter).
			Msg("a broker is dead: the council has not reached it for too long, its replicas are given to others")
	}
	for _, id := range d.Returned {
		log.Info().Str("broker", c.Broker(id).Name).Uint64("epoch", c.Epoch).Msg("a broker that was dead is back")
	}
	if d.Level > 0 {
		log.Info().Uint32("level", d.Level).Uint64("epoch", c.Epoch).Msg("all brokers know a newer feature level, which the cluster uses from now on")
	}
	if len(d.Moves) > 0 {
		log.Info().Int("partitions", len(d.Moves)).Uint64("epoch", c.Epoch).Str("first", d.Moves[0].Why).Msg("partitions are to move")
	}
	if d.Even {
		log.Info().Uint64("epoch", c.Epoch).Msg("replicas are even among the brokers")
	}
}

// note keeps what was found, and raises the alarm when too many look dead.
func (k *keeper) note(c *config.Config, d upkeep.Decision, err error) {
	v := verdict{From: k.b.self(), Paused: d.Paused(), Missing: d.Missing, Limit: d.Limit}
	if err != nil {
		v.Failed = err.Error()
	}
	k.hear(v)
	k.mu.Lock()
	was := k.paused
	k.paused = v.Paused
	k.mu.Unlock()
	switch {
	case v.Paused && !was:
		k.b.c.Logger.Error().Str("missing", upkeep.Names(c, v.Missing)).Int("limit", v.Limit).Msg(
			"too many brokers look dead at once: nothing is healed until some are back, or are drained or removed by hand")
	case !v.Paused && was:
		k.b.c.Logger.Info().Msg("healing goes on: no more brokers look dead than may be")
	}
	if err != nil {
		k.b.c.Logger.Error().Err(err).Msg("no moves can be planned")
	}
}

func (k *keeper) hear(v verdict) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.verdict, k.heard = v, time.Now()
}

// latest is what the leader found, unless that is long ago.
func (k *keeper) latest() (verdict, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.verdict, !k.heard.IsZero() && time.Since(k.heard) < max(verdictFresh, 5*k.b.c.UpkeepEvery)
}

// problems are what people should know.
func (k *keeper) problems() (out []string) {
	v, fresh := k.latest()
	if !fresh {
		return nil
	}
	c := k.b.epochs.Current()
	if v.Paused {
		out = append(out, fmt.Sprintf("%d brokers look dead (%s), more than the %d that are healed by themselves: healing is paused until some are back, "+
			"or are drained or removed by hand", len(v.Missing), upkeep.Names(c, v.Missing), v.Limit))
	}
	if v.Failed != "" {
		out = append(out, "no moves can be planned: "+v.Failed)
	}
	return out
}

// reports asks all brokers that can be reached what they see.
func (k *keeper) reports(ctx context.Context, c *config.Config) []upkeep.Report {
	b := k.b
	all := []upkeep.Report{k.own(c)}
	if b.peers.mesh == nil {
		return all
	}
	v, _ := k.latest()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range b.peers.live() {
		wg.Go(func() {
			var r upkeep.Report
			if err := b.request(ctx, id, subjectSight, sightWait, v, &r); err != nil {
				b.c.Logger.Debug().Err(err).Str("broker", b.brokerName(id)).Msg("a broker did not say what it sees")
				return
			}
			r.From = id // whatever it calls itself
			mu.Lock()
			defer mu.Unlock()
			all = append(all, r)
		})
	}
	wg.Wait()
	return all
}

// own is what this broker sees.
func (k *keeper) own(c *config.Config) upkeep.Report {
	b := k.b
	// A broker that waits for the operator says that it can do with the level that there is. So whoever
	// decides, of whatever version, doesn't raise it (ADR 0165).
	r := upkeep.Report{From: b.self(), Level: min(c.FeatureLevel, b.level()), Knows: b.level()}
	if b.c.AutoLevel {
		r.Level = b.level()
	}
	for i := range c.Brokers {
		id := c.Brokers[i].ID
		s := upkeep.Seen{Broker: id, Up: true, ForMS: time.Since(b.started).Milliseconds()}
		if id != b.self() && b.peers.mesh != nil {
			st := b.peers.state(id)
			s.Up, s.ForMS = st.up, time.Since(st.since).Milliseconds()
		}
		r.Peers = append(r.Peers, s)
	}
	return r
}

func (k *keeper) answerSight(_ context.Context, from mesh.Identity, req []byte) ([]byte, error) {
	var v verdict
	if err := json.Unmarshal(req, &v); err != nil {
		return nil, badRequest("malformed request about what is seen")
	}
	if v.From == from.Broker {
		k.hear(v)
	}
	return json.Marshal(k.own(k.b.epochs.Current()))
}

// levels asks all brokers which feature levels they know.
func (k *keeper) levels(ctx context.Context) map[uint64]uint32 {
	return upkeep.Known(k.reports(ctx, k.b.epochs.Current()))
}

// goneAfter is how long the council must have missed a broker before another one may have its name or its address:
// one that joined a moment ago isn't gone because it has not been reached yet.
const goneAfter = 2 * time.Second

// gone asks the council whether a majority of it can't reach a broker, again until it has missed it for goneAfter.
func (k *keeper) gone(ctx context.Context, id uint64) bool {
	for {
		if k.b.peers.alive(id) {
			return false
		}
		c := k.b.epochs.Current()
		s := upkeep.Agree(c, k.reports(ctx, c))[id]
		rest := goneAfter - time.Duration(s.DownMS)*time.Millisecond
		if !s.Down || rest <= 0 {
			return s.Down
		}
		wait := time.NewTimer(min(rest, goneAfter/10))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return false
		}
	}
}

// superseded says that another broker has taken this one's name.
func superseded(b *config.Broker) bool { return strings.Contains(b.Name, epoch.Superseded) }
