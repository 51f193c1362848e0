package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/replication/epoch/config"
)

// comparer reads the logs of the partitions that this broker leads back from disk, all replicas of each
// at about the same time, and compares what they are. One goroutine goes from partition to partition, run by run
// of the log:
//
//  1. The leader's own replica is read, from where the pass is, for about compareRange bytes. That says
//     where the run ends, at the edge of a chunk.
//  2. The other replicas in sync read the same run. What is below a replica's next offset is committed
//     and never changes, so they need not be at the same entry; a replica that doesn't have all of the run
//     yet, or any more, isn't compared. A pass begins with a barrier, at which all have the same state.
//  3. compare_judge.go decides. Where something differs the run is made smaller until it is one chunk, which
//     reads it again: only what differs twice does.
//  4. Whoever differs from a majority of all replicas is told so, looks itself, and is a damaged replica from
//     then on: quarantine.go hands over where it leads and has it replaced. Without a majority nobody is
//     replaced: people are told who has what.
//
// Reading is paced, for this broker as a whole, whoever asks: Config.CompareRate. What is known
// of a partition is told to the other replicas, and kept in a file: whoever leads next goes on.
type comparer struct {
	b    *Broker
	pace *outflow
	room chan struct{}
	kick chan struct{}
	path string // of the file

	mu    sync.Mutex
	notes map[uint64]*comparison // by shard
	again map[uint64]time.Time   // no sooner, by shard
	dirty bool

	bytes, ranges, passes, found, passing atomic.Uint64
	replaced                              atomic.Uint64 // replicas, for whatever damage
}

const (
	compareLook = 500 * time.Millisecond
	// compareRange is how much is compared at a time, or less where the rate is low: then
	// compareRangeTime's worth of it, but at least compareRangeLeast.
	compareRange      = 4 << 20
	compareRangeLeast = 256 << 10
	compareRangeTime  = time.Second / 2
	// compareAgain is the pause after a run that could not be compared, and between looks at differences.
	compareAgain = time.Second
	compareCheck = 10 * time.Second
	// comparePart: a pass that some replica missed is made again after this part of the period.
	comparePart = 4
	// compareTell is how often what is known is told and written while a pass is under way.
	compareTell = 15 * time.Second
	// compareMost differences are kept of a partition; more are counted.
	compareMost = 8
	// compareWait bounds one step of a comparison.
	compareWait = 5 * time.Minute
)

func newComparer(b *Broker) *comparer {
	return &comparer{
		b: b, pace: newOutflow(b.c.CompareRate), room: make(chan struct{}, scrubsAtOnce), kick: make(chan struct{}, 1),
		notes: map[uint64]*comparison{}, again: map[uint64]time.Time{},
	}
}

// paced implements partition.Pace for all that this broker reads back.
func (k *comparer) paced(ctx context.Context, n int) error {
	k.bytes.Add(uint64(n))
	if !k.pace.wait(ctx.Done(), n) {
		return ctx.Err()
	}
	return nil
}

// rangeBytes is how much one run of the log has.
func (k *comparer) rangeBytes() int64 {
	if k.pace.perSecond == 0 {
		return compareRange
	}
	return min(max(int64(float64(k.pace.perSecond)*compareRangeTime.Seconds()), compareRangeLeast), compareRange)
}

// patience is how long a replica may take to read a run back: others read there too.
func (k *comparer) patience() time.Duration {
	d := askMore
	if k.pace.perSecond > 0 {
		d += time.Duration(float64(2*(scrubsAtOnce+1)*k.rangeBytes()) / float64(k.pace.perSecond) * float64(time.Second))
	}
	return min(d, askMost)
}

// run works until ctx ends.
func (k *comparer) run(ctx context.Context) {
	tick := time.NewTicker(compareLook)
	defer tick.Stop()
	saved := time.Now()
	for {
		s := k.next(time.Now())
		if s != nil {
			step, cancel := context.WithTimeout(ctx, compareWait)
			k.step(step, s)
			cancel()
		}
		if time.Since(saved) >= compareTell {
			saved = time.Now()
			k.save()
		}
		if s != nil && ctx.Err() == nil {
			continue
		}
		select {
		case <-tick.C:
		case <-k.kick:
		case <-ctx.Done():
			k.save()
			return
		}
	}
}

// next chooses the partition to go on with: one that somebody asked for, one with a difference to be looked at
// again, the one whose pass is under way, the one that was compared longest ago.
func (k *comparer) next(now time.Time) (best *slot) {
	if k.b.stopping.Load() {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var most comparisonDue
	for shard, s := range *k.b.local.Load() {
		n := k.note(s, now)
		if k.again[shard].After(now) || !k.b.leadsNow(s) {
			continue
		}
		if part := s.part.Load(); part == nil || part.Moving() {
			continue
		}
		if _, bad := s.damage(); bad {
			continue
		}
		if d := n.due(now, k.b.c.CompareEvery); d.before(most) {
			best, most = s, d
		}
	}
	return best
}

// note returns what is known of a partition. The caller holds mu.
func (k *comparer) note(s *slot, now time.Time) *comparison {
	n := k.notes[s.shard]
	if n == nil {
		n = &comparison{Shard: s.shard, Since: now.UnixMilli()}
		k.notes[s.shard] = n
		k.dirty = true
	}
	return n
}

// change changes what is known of a partition.
func (k *comparer) change(s *slot, f func(n *comparison)) comparison {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	n := k.note(s, now)
	f(n)
	n.Updated = now.UnixMilli()
	k.dirty = true
	return n.clone()
}

func (k *comparer) look(s *slot) comparison {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.note(s, time.Now()).clone()
}

func (k *comparer) pause(s *slot, d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.again[s.shard] = time.Now().Add(d)
}

// request has a partition compared from its beginning as soon as may be, and returns how many passes
// were through before.
func (k *comparer) request(s *slot) uint64 {
	n := k.change(s, func(n *comparison) {
		n.Requested, n.Begun, n.Checked = true, 0, 0
	})
	k.mu.Lock()
	delete(k.again, s.shard)
	k.mu.Unlock()
	select {
	case k.kick <- struct{}{}:
	default:
	}
	return n.Passes
}

// step compares one run of a partition, or looks at a difference again.
func (k *comparer) step(ctx context.Context, s *slot) {
	p := s.partition.Load()
	if p == nil {
		return
	}
	n := k.look(s)
	now := time.Now()
	switch {
	case len(n.Differences) > 0 && now.Sub(time.UnixMilli(n.Checked)) >= compareCheck:
		k.recheck(ctx, s, p, n)
		return
	case n.Begun == 0:
		_, next := p.Bounds()
		n = k.change(s, func(n *comparison) {
			n.Begun, n.Cursor, n.Bytes, n.Missing, n.First, n.Target = now.UnixMilli(), partition.FromBegin, 0, nil, 0, next
		})
		k.tell(s, n)
		k.compareStates(ctx, s, p)
		if ctx.Err() != nil {
			return
		}
	}
	res, all, err := k.compareRun(ctx, s, p, n.Cursor, 0)
	switch {
	case ctx.Err() != nil:
		return
	case reasonOfPartition(err) == partition.ErrTrimmed.Reason:
		k.change(s, func(n *comparison) { n.Cursor = partition.FromBegin })
		k.pause(s, compareAgain)
		return
	case err != nil:
		if reasonOfPartition(err) != partition.ErrBusy.Reason {
			k.b.c.Logger.Warn().Err(err).Str("topic", s.topic).Int32("partition", s.number).Int64("offset", n.Cursor).Msg("the log could not be read back")
		}
		k.pause(s, compareAgain)
		return
	}
	ended := res.Chunks == 0
	if !ended {
		k.ranges.Add(1)
		missing, again := absent(all)
		if again { // retention took some of it at another replica: here too in a moment
			k.pause(s, compareAgain)
			return
		}
		k.change(s, func(n *comparison) { n.miss(missing) })
		k.judgeRun(ctx, s, p, res, all)
	}
	if ctx.Err() != nil {
		return
	}
	told := false
	n = k.change(s, func(n *comparison) {
		if n.Begun == 0 {
			return // it was asked for anew meanwhile
		}
		if n.Cursor == partition.FromBegin {
			n.First = res.From
		}
		n.Cursor, n.Bytes = res.To, n.Bytes+res.Bytes
		// What has come since the pass began is the next one's.
		if ended || res.To >= n.Target {
			n.end(time.Now())
			k.passes.Add(1)
			told = true
		} else if time.Since(time.UnixMilli(n.Told)) >= compareTell {
			n.Told = time.Now().UnixMilli()
			told = true
		}
	})
	if told {
		if l := n.Last; n.Begun == 0 && l != nil {
			k.b.c.Logger.Debug().Str("topic", s.topic).Int32("partition", s.number).Int64("up_to", l.UpTo).Int64("bytes", l.Bytes).Bool("state", l.State).
				Int("missing", len(l.Missing)).Msg("the replicas of a partition were compared")
		}
		k.tell(s, n)
	}
}

// compareRun reads a run of the log at all replicas that are in sync. To is 0 for as far as one run goes.
func (k *comparer) compareRun(ctx context.Context, s *slot, p *partition.Partition, from, to int64) (own partition.Scrubbed, all []answer[partition.Scrubbed], err error) {
	own, err = p.Scrub(ctx, partition.ScrubRequest{From: from, To: to, MaxBytes: k.rangeBytes()}, k.paced)
	if err != nil || own.To <= own.From {
		return own, nil, err
	}
	all = others[partition.Scrubbed](ctx, k, s, k.patience(), subjectScrub, func(r config.Replica) any {
		return scrubQuestion{Shard: s.shard, Replica: r.ID, From: own.From, To: own.To}
	})
	return own, all, nil
}

// absent lists the brokers whose replicas gave no answer; again says that one of them has none of it any more.
func absent[T any](all []answer[T]) (brokers []uint64, again bool) {
	for _, a := range all {
		if a.err == nil {
			continue
		}
		if reasonOf(a.err) == partition.ErrTrimmed.Reason {
			again = true
		}
		brokers = append(brokers, a.replica.Broker)
	}
	return brokers, again
}

// ballots are the answers as judge takes them.
func (k *comparer) ballots(s *slot, own partition.Scrubbed, all []answer[partition.Scrubbed]) []ballot {
	out := []ballot{{Broker: k.b.self(), Replica: s.replica.ID, Digest: own.Digest.String(), Odd: own.Odd}}
	for _, a := range all {
		if a.err == nil {
			out = append(out, ballot{Broker: a.replica.Broker, Replica: a.replica.ID, Digest: a.value.Digest.String(), Odd: a.value.Odd})
		}
	}
	return out
}

// judgeRun looks closer where replicas differ in a run, and acts on what is left of it.
func (k *comparer) judgeRun(ctx context.Context, s *slot, p *partition.Partition, own partition.Scrubbed, all []answer[partition.Scrubbed]) {
	votes := k.ballots(s, own, all)
	if judge(votes, len(s.replicas())).same {
		return
	}
	d, err := k.narrow(ctx, s, p, own, votes)
	switch {
	case err != nil:
		if ctx.Err() == nil {
			k.b.c.Logger.Warn().Err(err).Str("topic", s.topic).Int32("partition", s.number).Int64("from", own.From).Int64("to", own.To).
				Msg("replicas differ in a run of the log that could not be read again: it is looked at in the next pass")
			k.change(s, func(n *comparison) { n.miss(k.brokersOf(s)) })
		}
	case d == nil:
		k.passing.Add(1)
		k.b.c.Logger.Warn().Str("topic", s.topic).Int32("partition", s.number).Int64("from", own.From).Int64("to", own.To).
			Str("digests", ballotText(votes, k.b.brokerName)).Str("brokers", k.names(votes)).Msg("replicas differed in a run of the log, and did not when it was read again: check the memory of these machines")
	default:
		k.act(ctx, s, p, d)
	}
}

// narrow halves a run until what differs is one chunk. It is nil where nothing differs any more.
func (k *comparer) narrow(ctx context.Context, s *slot, p *partition.Partition, own partition.Scrubbed, votes []ballot) (*difference, error) {
	from, to, chunks := own.From, own.To, own.Chunks
	odd := map[uint64]string{}
	for _, v := range votes {
		odd[v.Replica] = v.Odd
	}
	differ := func(votes []ballot) bool {
		return slices.ContainsFunc(votes, func(v ballot) bool { return v.Digest != votes[0].Digest })
	}
	ask := func(from, to int64) (partition.Scrubbed, []ballot, error) {
		own, all, err := k.compareRun(ctx, s, p, from, to)
		if err != nil {
			return own, nil, err
		}
		if _, again := absent(all); again {
			return own, nil, partition.ErrTrimmed
		}
		return own, k.ballots(s, own, all), nil
	}
	records := differ(votes)
	for records && chunks > 1 && to-from > 1 {
		mid := from + (to-from)/2
		half, now, err := ask(from, mid)
		if err != nil {
			return nil, err
		}
		if differ(now) {
			to, chunks = mid, half.Chunks
		} else {
			from, chunks = mid, chunks-half.Chunks
		}
	}
	last, now, err := ask(from, to)
	if err != nil {
		return nil, err
	}
	if !records && judge(now, len(s.replicas())).same || records && !differ(now) {
		return nil, nil
	}
	for i := range now { // what a part of the run need not show
		if now[i].Odd == "" {
			now[i].Odd = odd[now[i].Replica]
		}
	}
	return &difference{What: whatRecords, From: last.From, To: last.To, Votes: now, Found: time.Now().UnixMilli()}, nil
}

func (k *comparer) brokersOf(s *slot) (ids []uint64) {
	for _, r := range s.replicas() {
		ids = append(ids, r.Broker)
	}
	return ids
}

// act does what follows from a difference.
func (k *comparer) act(ctx context.Context, s *slot, p *partition.Partition, d *difference) {
	b := k.b
	j := judge(d.Votes, len(s.replicas()))
	d.Good = j.good
	log := b.c.Logger.Error().Str("topic", s.topic).Int32("partition", s.number).Str("what", d.What).Int64("from", d.From).Int64("to", d.To).
		Str("digests", ballotText(d.Votes, b.brokerName)).Str("brokers", k.names(d.Votes)).Str("bad", k.names(j.bad))
	known := false
	n := k.change(s, func(n *comparison) { known = n.differ(*d) })
	if known {
		log = log.Discard()
	} else {
		k.found.Add(1)
	}
	if j.good == "" {
		log.Msg("replicas differ, and no majority of them is the same: nothing is replaced, see parley partition describe for what to do")
		k.tell(s, n)
		return
	}
	log.Msg("a replica differs from the majority: it is to be replaced by a fresh one")
	k.tell(s, n)
	for _, v := range j.bad {
		q := condemnation{Shard: s.shard, Replica: v.Replica, From: d.From, To: d.To, State: d.State, Version: Version, Why: d.verdict(v)}
		if d.State == nil {
			if err := q.Digest.UnmarshalText([]byte(j.good)); err != nil {
				b.c.Logger.Error().Err(err).Msg("a digest could not be read")
				continue
			}
		}
		var err error
		if v.Replica == s.replica.ID {
			err = b.condemn(ctx, p, &q)
		} else {
			err = k.askReplica(ctx, config.Replica{ID: v.Replica, Broker: v.Broker}, k.patience(), subjectCondemn, q, new(bool))
		}
		if err != nil && ctx.Err() == nil {
			b.c.Logger.Warn().Err(err).Str("topic", s.topic).Int32("partition", s.number).Str("broker", b.brokerName(v.Broker)).
				Msg("a replica that differs did not take the word for it, it is looked at again")
		}
	}
}

func (k *comparer) names(votes []ballot) string {
	var names []string
	for _, v := range votes {
		names = append(names, k.b.brokerName(v.Broker))
	}
	return strings.Join(names, ",")
}

// recheck looks at the differences of a partition again: they are over when all replicas are the same
// there, after one was replaced or moved, or when retention has taken the records.
func (k *comparer) recheck(ctx context.Context, s *slot, p *partition.Partition, n comparison) {
	k.change(s, func(n *comparison) { n.Checked = time.Now().UnixMilli() })
	for i := range n.Differences {
		d := n.Differences[i]
		if d.What == whatState {
			k.compareStates(ctx, s, p)
			continue
		}
		own, all, err := k.compareRun(ctx, s, p, d.From, d.To)
		missing, again := absent(all)
		switch {
		case ctx.Err() != nil:
			return
		case reasonOfPartition(err) == partition.ErrTrimmed.Reason || again:
			k.over(s, d, "retention has taken the records")
			continue
		case err != nil:
			continue
		}
		votes := k.ballots(s, own, all)
		if !judge(votes, len(s.replicas())).same {
			d.Votes = k.keepOdd(d.Votes, votes)
			k.act(ctx, s, p, &d)
		} else if len(missing) == 0 {
			k.over(s, d, "all replicas have the same there now")
		}
	}
}

// keepOdd keeps what replicas were found to contradict in the run as a whole.
func (k *comparer) keepOdd(before, now []ballot) []ballot {
	for i := range now {
		for _, v := range before {
			if v.Replica == now[i].Replica && now[i].Odd == "" {
				now[i].Odd = v.Odd
			}
		}
	}
	return now
}

// over ends a difference.
func (k *comparer) over(s *slot, d difference, why string) {
	n := k.change(s, func(n *comparison) { n.over(d, why) })
	k.b.c.Logger.Info().Str("topic", s.topic).Int32("partition", s.number).Str("what", d.What).Int64("from", d.From).Int64("to", d.To).
		Str("why", why).Msg("a difference of replicas is over")
	k.tell(s, n)
}

func reasonOfPartition(err error) string {
	var e *partition.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// Compare implements api.Runtime.
func (r runtime) Compare(ctx context.Context, topic uint64, number int32) (uint64, error) {
	b := r.b
	s := b.slot(topic, number)
	if s == nil {
		return 0, notHere("", number, "the epoch is being carried out")
	}
	if b.leadsNow(s) {
		return b.comparer.request(s), nil
	}
	to := s.lead.load().broker
	if to == 0 || to == b.self() {
		return 0, notHere(s.topic, number, "it has no leader at the moment")
	}
	var passes uint64
	err := b.request(ctx, to, subjectCompare, statusWait, s.shard, &passes)
	return passes, err
}

func (b *Broker) answerCompare(_ context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	var shard uint64
	if err := json.Unmarshal(req, &shard); err != nil {
		return nil, badRequest("malformed request to compare")
	}
	if err := b.notStarted(); err != nil {
		return nil, err
	}
	s := b.slotOf(shard)
	if s == nil || !b.leadsNow(s) {
		return nil, notHere("", 0, "this broker does not lead it")
	}
	return json.Marshal(b.comparer.request(s))
}

func (d *difference) verdict(v ballot) string {
	if d.What == whatState {
		return fmt.Sprintf("its state at entry %d is not what the other replicas have: %s", d.State.Index, v.Digest)
	}
	if v.Digest == d.Good {
		return fmt.Sprintf("compared with the other replicas: %s", v.Odd)
	}
	return fmt.Sprintf("offsets %d to %d are not what the other replicas have", d.From, d.To-1)
}
