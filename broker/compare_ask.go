package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/parleymq/parley/broker/mesh"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/replication/epoch/config"
)

// What a partition's leader asks of the other replicas to compare them, and how they answer. All
// of it goes over the data links: nothing is in a hurry.

const (
	subjectScrub    = "scrub"    // read a run of the log back, and say what it is
	subjectState    = "state"    // what the state was at a barrier
	subjectCondemn  = "condemn"  // you differ from the majority
	subjectCompared = "compared" // what is known of a partition's comparisons
	subjectCompare  = "compare"  // compare a partition that you lead, now

	// scrubsAtOnce is how many leaders' questions a broker reads its disk for at the same time.
	scrubsAtOnce = 4
	// askAgain is how often a replica that is a little behind is asked, with pauses of askPause.
	askAgain = 10
	askPause = 200 * time.Millisecond
	// askMore is what a question may take beside reading; askMost all in all.
	askMore = 10 * time.Second
	askMost = 2 * time.Minute
)

type scrubQuestion struct {
	Shard    uint64 `json:"shard"`
	Replica  uint64 `json:"replica"`
	From, To int64
}

type stateQuestion struct {
	Shard   uint64 `json:"shard"`
	Replica uint64 `json:"replica"`
	Index   uint64 `json:"index"`
}

// condemnation tells a replica that a majority has something else. It looks again before it believes it.
type condemnation struct {
	Shard   uint64 `json:"shard"`
	Replica uint64 `json:"replica"`
	Why     string `json:"why"`
	// Digest is what the majority has in the run; or State what its state was.
	From, To int64
	Digest   partition.Digest
	State    *partition.StateDigest `json:"state,omitempty"`
	Version  string                 `json:"version,omitempty"` // of the program that had that state
}

// stateAnswer is what a replica's state was, and by which program. What a program makes of a log may be mended in the next
// version: only states that the same one made are compared, or those that are upgraded first would be replaced by their majority's fault.
type stateAnswer struct {
	partition.StateDigest
	Version string `json:"version"` // earlier programs don't say
}

func (a *stateAnswer) comparable(o *stateAnswer) bool {
	return a.Version == o.Version && a.Form == o.Form && a.Index == o.Index
}

var errOtherProgram = &wire.Error{Code: 409, Reason: wire.ReasonBadRequest, Description: "the replica's state is another version's, which can't be compared"}

var errAgrees = &wire.Error{Code: 409, Reason: wire.ReasonBadRequest, Description: "the replica has what the others have"}

// local finds the replica here that a leader means.
func (b *Broker) localReplica(shard, replica uint64) (*slot, *partition.Partition, error) {
	if err := b.notStarted(); err != nil {
		return nil, nil, err
	}
	s := b.slotOf(shard)
	if s == nil || !s.local || s.replica.ID != replica {
		return nil, nil, &wire.Error{Code: 404, Reason: wire.ReasonUnavailable, Retriable: true, Description: fmt.Sprintf("replica %d is not on this broker", replica)}
	}
	p := s.partition.Load()
	if p == nil {
		return nil, nil, s.refusal()
	}
	return s, p, nil
}

func (b *Broker) answerScrub(ctx context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	var q scrubQuestion
	if err := json.Unmarshal(req, &q); err != nil {
		return nil, badRequest("malformed request to read a log back")
	}
	_, p, err := b.localReplica(q.Shard, q.Replica)
	if err != nil {
		return nil, err
	}
	k := b.comparer
	select {
	case k.room <- struct{}{}:
	default:
		return nil, busy("broker %s reads as many logs back as it may at once", b.c.Name)
	}
	defer func() { <-k.room }()
	res, err := p.Scrub(ctx, partition.ScrubRequest{From: q.From, To: q.To}, k.paced)
	if err != nil {
		return nil, supplyError(err)
	}
	return json.Marshal(res)
}

func (b *Broker) answerState(_ context.Context, _ mesh.Identity, req []byte) ([]byte, error) {
	var q stateQuestion
	if err := json.Unmarshal(req, &q); err != nil {
		return nil, badRequest("malformed request about a replica's state")
	}
	_, p, err := b.localReplica(q.Shard, q.Replica)
	if err != nil {
		return nil, err
	}
	d, err := p.StateAt(q.Index)
	if err != nil {
		return nil, supplyError(err)
	}
	return json.Marshal(stateAnswer{d, Version})
}

// answerCondemn believes only the partition's leader, and only what it finds itself, too.
func (b *Broker) answerCondemn(ctx context.Context, from mesh.Identity, req []byte) ([]byte, error) {
	var q condemnation
	if err := json.Unmarshal(req, &q); err != nil {
		return nil, badRequest("malformed word about a replica that differs")
	}
	s, p, err := b.localReplica(q.Shard, q.Replica)
	if err != nil {
		return nil, err
	}
	if lead := s.lead.load().broker; lead != from.Broker {
		return nil, notHere(s.topic, s.number, fmt.Sprintf("broker %s does not lead it as far as broker %s knows", b.brokerName(from.Broker), b.c.Name))
	}
	b.repairStep(s.topic, s.number, "condemn")
	if err := b.condemn(ctx, p, &q); err != nil {
		return nil, supplyError(err)
	}
	return []byte("true"), nil
}

// condemn looks whether this broker's replica really differs, and calls it damaged then. What becomes of it is the matter of
// quarantine.go, as with any damage.
func (b *Broker) condemn(ctx context.Context, p *partition.Partition, q *condemnation) error {
	if q.State != nil {
		d, err := p.StateAt(q.State.Index)
		switch {
		case err != nil:
			return err
		case !(&stateAnswer{d, Version}).comparable(&stateAnswer{*q.State, q.Version}):
			return errOtherProgram
		case d.Differs(*q.State) == "":
			return errAgrees
		}
		p.Condemn(0, 0, q.Why)
		return nil
	}
	res, err := p.Scrub(ctx, partition.ScrubRequest{From: q.From, To: q.To}, b.comparer.paced)
	switch {
	case err != nil:
		return err
	case res.Digest == q.Digest && res.Odd == "":
		return errAgrees
	case res.Digest == q.Digest: // its index alone is wrong
		q.From, q.To = 0, 0
	}
	p.Condemn(q.From, q.To, q.Why)
	return nil
}

// askReplica asks another broker about its replica of a partition, again while that is a little behind.
func (k *comparer) askReplica(ctx context.Context, r config.Replica, wait time.Duration, subject string, q, res any) error {
	if k.b.peers.mesh == nil {
		return mesh.ErrUnreachable
	}
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("encode request %s: %w", subject, err)
	}
	for try := 1; ; try++ {
		asking, cancel := context.WithTimeout(ctx, wait)
		answer, err := k.b.peers.mesh.RequestData(asking, r.Broker, subject, body)
		cancel()
		var e *wire.Error
		switch {
		case err == nil:
			if err := json.Unmarshal(answer, res); err != nil {
				return fmt.Errorf("decode answer to %s: %w", subject, err)
			}
			return nil
		case !errors.As(err, &e) || e.Reason != wire.ReasonBusy || try == askAgain:
			return err
		}
		pause := time.NewTimer(askPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
	}
}

// answer is what one replica said, or why it said nothing.
type answer[T any] struct {
	replica config.Replica
	value   T
	err     error
}

// others asks the other replicas that are in sync, all at once. Those that aren't answer nothing, with an error.
func others[T any](ctx context.Context, k *comparer, s *slot, wait time.Duration, subject string, q func(config.Replica) any) []answer[T] {
	var all []answer[T]
	for _, r := range s.replicas() {
		if r.ID != s.replica.ID {
			all = append(all, answer[T]{replica: r})
		}
	}
	var wg sync.WaitGroup
	for i := range all {
		a := &all[i]
		if s.inSyncFor(k.b, a.replica) < 0 {
			a.err = errNotInSync
			continue
		}
		wg.Go(func() { a.err = k.askReplica(ctx, a.replica, wait, subject, q(a.replica), &a.value) })
	}
	wg.Wait()
	return all
}

var errNotInSync = errors.New("it isn't in sync")

// reasonOf is the reason of an error that a broker answered with, "" of any other.
func reasonOf(err error) string {
	var e *wire.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
