package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/record"
)

// A dead letter is the record as it was, key and headers too, under headers that say
// where it comes from and why it is here. It has a message id, so that one that is
// written again, by the next leader or after an answer that was lost, stays one.

const (
	// lettersAtOnce bounds the dead letters of one call that are under way.
	lettersAtOnce = 32
	// letterRoom is what a dead letter's own headers may take beyond the largest
	// record: a record that was taken must be takeable again.
	letterRoom = record.AddedBytes
)

// deadLetters keeps two partitions from creating the same topic at a time.
type deadLetters struct {
	creating sync.Mutex
}

// writeDeadLetters is the partitions' partition.DeadLetterFunc.
func (b *Broker) writeDeadLetters(ctx context.Context, letters []partition.DeadLetter) []error {
	first := &letters[0]
	name := deadLetterTopic(first.Topic, first.Group, first.Target)
	failures := make([]error, len(letters))
	failed := false
	fail := func(i int, err error) {
		failures[i], failed = fmt.Errorf("dead-letter topic %s: %w", name, err), true
	}
	t, err := b.deadLetterTopic(ctx, first.Topic, name)
	if err != nil {
		for i := range letters {
			fail(i, err)
		}
		return failures
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	room := make(chan struct{}, lettersAtOnce)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range letters {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			if err := b.writeDeadLetter(ctx, t, &letters[i]); err != nil {
				mu.Lock()
				defer mu.Unlock()
				fail(i, err)
			}
		})
	}
	wg.Wait()
	if !failed {
		return nil
	}
	return failures
}

// deadLetterTopic returns the topic, made when it is needed for the first time: one
// partition, as many replicas as the topic that the letters come from.
func (b *Broker) deadLetterTopic(ctx context.Context, source, name string) (*topic, error) {
	if t := b.routes.Load().byName[name]; t != nil {
		return t, nil
	}
	b.groups.letters.creating.Lock()
	defer b.groups.letters.creating.Unlock()
	r := b.routes.Load()
	if t := r.byName[name]; t != nil {
		return t, nil
	}
	spec := wire.TopicSpec{Name: name, Partitions: 1}
	if t := r.byName[source]; t != nil {
		spec.Replicas = int32(len(t.parts[0].replicas()))
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	change, err := b.api.TopicCreate(ctx, spec)
	var w *wire.Error
	switch {
	case errors.As(err, &w) && w.Reason == wire.ReasonTopicExists: // made meanwhile, with other settings
	case err != nil:
		return nil, err
	case change.Change == "created":
		b.c.Logger.Info().Str("topic", source).Str("dead_letters", name).Msg("dead-letter topic created")
	}
	if t := b.routes.Load().byName[name]; t != nil {
		return t, nil
	}
	return nil, notHere(name, 0, "the epoch that creates it is being carried out")
}

func (b *Broker) writeDeadLetter(ctx context.Context, t *topic, d *partition.DeadLetter) error {
	r := d.Record
	r.Headers = letterHeaders(d)
	number := int32(0)
	if r.Key != nil {
		number = record.PartitionOf(r.Key, int32(len(t.parts)))
	}
	return b.publishRecord(ctx, t.name, number, &r)
}

// letterHeaders are the dead letter's own, then the record's. A message id that the
// record has is kept under another name: the letter has its own.
func letterHeaders(d *partition.DeadLetter) []record.Header {
	add := func(h []record.Header, name, v string) []record.Header {
		return append(h, record.Header{Key: []byte(name), Value: []byte(v)})
	}
	h := make([]record.Header, 0, len(d.Record.Headers)+8)
	h = add(h, wire.HeaderMsgID, fmt.Sprintf("%s/%s/%d/%d", d.Group, d.Topic, d.Partition, d.Record.Offset))
	h = add(h, wire.HeaderTopic, d.Topic)
	h = add(h, wire.HeaderPart, strconv.Itoa(int(d.Partition)))
	h = add(h, wire.HeaderOffset, strconv.FormatInt(d.Record.Offset, 10))
	h = add(h, wire.HeaderGroup, d.Group)
	h = add(h, wire.HeaderDeliveries, strconv.Itoa(int(d.Deliveries)))
	h = add(h, wire.HeaderReason, d.Reason[:min(len(d.Reason), wire.MaxMemberText)])
	for _, o := range d.Record.Headers {
		switch {
		case foldEqual(o.Key, wire.HeaderMsgID):
			if !hasHeader(d.Record.Headers, wire.HeaderOriginalID) {
				h = append(h, record.Header{Key: []byte(wire.HeaderOriginalID), Value: o.Value})
			}
		case isLetterHeader(o.Key):
			// Of an earlier life as a dead letter, or the producer's: there can be one only.
		default:
			h = append(h, o)
		}
	}
	return h
}

func hasHeader(all []record.Header, name string) bool {
	return slices.ContainsFunc(all, func(h record.Header) bool { return foldEqual(h.Key, name) })
}

// isLetterHeader: it is one of those that make a record a dead letter.
func isLetterHeader(name []byte) bool {
	for _, own := range [...]string{
		wire.HeaderTopic, wire.HeaderPart, wire.HeaderOffset, wire.HeaderGroup, wire.HeaderDeliveries, wire.HeaderReason,
		wire.HeaderTime, // members write it too
	} {
		if foldEqual(name, own) {
			return true
		}
	}
	return false
}

var builders = sync.Pool{New: func() any {
	return record.NewBuilder(record.None, record.Limits{MaxRecordBytes: wire.MaxRecord + letterRoom, MaxHeaders: record.DefaultLimits.MaxHeaders})
}}

// publishRecord publishes one record, as a batch of its own, and returns once it is acked. A
// message id among its headers counts.
func (b *Broker) publishRecord(ctx context.Context, topic string, number int32, r *record.Record) error {
	builder := builders.Get().(*record.Builder)
	builder.Reset()
	err := builder.Append(r)
	var batch []byte
	if err == nil {
		batch, err = builder.Finish(nil, record.NoProducer)
	}
	builders.Put(builder)
	if err != nil {
		return fmt.Errorf("make a batch of offset %d: %w", r.Offset, err)
	}
	a, err := b.loop.call(ctx, wire.PubPrefix+topic+"."+strconv.Itoa(int(number)), batch)
	if err != nil {
		return err
	}
	var ack wire.PubAck
	if err := json.Unmarshal(a.payload, &ack); err != nil {
		return fmt.Errorf("decode ack: %w", err)
	}
	return nil
}
