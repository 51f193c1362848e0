package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/parleymq/parley/client/wire"
)

// Types of the administrative calls. They are JSON on the wire, with the keys
// that `parley … -o json` prints.
type (
	TopicSpec            = wire.TopicSpec
	TopicAlter           = wire.TopicAlter
	TopicChange          = wire.TopicChange
	TopicSummary         = wire.TopicSummary
	TopicDescription     = wire.TopicDescription
	PartitionDescription = wire.PartitionDescription
	PartitionComparison  = wire.PartitionComparison
	Metadata             = wire.Metadata
	ClusterStatus        = wire.ClusterStatus
	ClusterHealth        = wire.ClusterHealth
	BrokerDescription    = wire.BrokerDescription
	BrokerDetails        = wire.BrokerDetails
	PartitionChange      = wire.PartitionChange
	BrokerChange         = wire.BrokerChange
	RecoverRequest       = wire.RecoverRequest
	PartitionRecovery    = wire.PartitionRecovery
	BalancePlan          = wire.BalancePlan
	LevelChange          = wire.LevelChange
	EpochDescription     = wire.EpochDescription
)

// Bounds of a partition: it holds the offsets from Start up to, not including,
// Next.
type Bounds struct {
	Start int64
	Next  int64
}

// callPatience bounds a call whose context has no deadline.
const callPatience = 30 * time.Second

// CreateTopic makes a topic. It fails with ErrTopicExists, ErrSubjectOverlap,
// ErrInvalidTopic or ErrInvalidConfig.
//
// All administrative calls are tried again after a lost connection and on retriable
// errors until ctx ends, or for 30 s when it has no deadline. A change whose
// answer got lost and that turns out to be made already is a success.
func (c *Client) CreateTopic(ctx context.Context, spec TopicSpec) (TopicChange, error) {
	out, unsure, err := call(ctx, c, wire.APITopicCreate, spec, func(out *TopicChange) *Error { return out.Error })
	if unsure && errors.Is(err, ErrTopicExists) {
		return TopicChange{Name: spec.Name, Change: "created"}, nil
	}
	return out, err
}

// ListTopics iterates over the topics in the order of their names, fetching pages
// as it goes. An error ends it.
func (c *Client) ListTopics(ctx context.Context) iter.Seq2[TopicSummary, error] {
	return c.listTopics(ctx, false)
}

// ListDeletedTopics iterates over the topics that were deleted and can still be
// restored.
func (c *Client) ListDeletedTopics(ctx context.Context) iter.Seq2[TopicSummary, error] {
	return c.listTopics(ctx, true)
}

func (c *Client) listTopics(ctx context.Context, deleted bool) iter.Seq2[TopicSummary, error] {
	return func(yield func(TopicSummary, error) bool) {
		after := ""
		for {
			page, _, err := call(ctx, c, wire.APITopicList, wire.ListRequest{After: after, Deleted: deleted},
				func(out *wire.TopicList) *Error { return out.Error })
			if err != nil {
				yield(TopicSummary{}, err)
				return
			}
			for _, t := range page.Topics {
				if !yield(t, nil) {
					return
				}
				after = t.Name
			}
			if !page.More || len(page.Topics) == 0 {
				return
			}
		}
	}
}

// DescribeTopic describes a topic and its partitions, or fails with
// ErrTopicNotFound.
func (c *Client) DescribeTopic(ctx context.Context, name string) (TopicDescription, error) {
	out, _, err := call(ctx, c, wire.APITopicDescribe, wire.NameRequest{Name: name}, func(out *TopicDescription) *Error { return out.Error })
	return out, err
}

// AlterTopic changes what it names and leaves the rest.
func (c *Client) AlterTopic(ctx context.Context, a TopicAlter) (TopicChange, error) {
	out, _, err := call(ctx, c, wire.APITopicAlter, a, func(out *TopicChange) *Error { return out.Error })
	return out, err
}

// DeleteTopic deletes a topic. RestoreTopic brings it back within the broker's
// grace period.
func (c *Client) DeleteTopic(ctx context.Context, name string) (TopicChange, error) {
	out, unsure, err := call(ctx, c, wire.APITopicDelete, wire.NameRequest{Name: name}, func(out *TopicChange) *Error { return out.Error })
	if unsure && errors.Is(err, ErrTopicNotFound) {
		return TopicChange{Name: name, Change: "deleted"}, nil
	}
	return out, err
}

// RestoreTopic undoes DeleteTopic.
func (c *Client) RestoreTopic(ctx context.Context, name string) (TopicChange, error) {
	out, unsure, err := call(ctx, c, wire.APITopicRestore, wire.NameRequest{Name: name}, func(out *TopicChange) *Error { return out.Error })
	if unsure && (errors.Is(err, ErrTopicExists) || errors.Is(err, ErrTopicNotFound)) {
		// Deleted topics no longer list it: look whether it lives.
		if _, again := c.DescribeTopic(ctx, name); again == nil {
			return TopicChange{Name: name, Change: "restored"}, nil
		}
	}
	return out, err
}

// Status is the cluster at a glance.
func (c *Client) Status(ctx context.Context) (ClusterStatus, error) {
	out, _, err := call(ctx, c, wire.APIClusterStatus, struct{}{}, func(out *ClusterStatus) *Error { return out.Error })
	return out, err
}

// Health lists what is wrong with the cluster and what is merely unwise.
func (c *Client) Health(ctx context.Context) (ClusterHealth, error) {
	out, _, err := call(ctx, c, wire.APIClusterHealth, struct{}{}, func(out *ClusterHealth) *Error { return out.Error })
	return out, err
}

// Brokers lists the brokers.
func (c *Client) Brokers(ctx context.Context) ([]BrokerDescription, error) {
	out, _, err := call(ctx, c, wire.APIBrokerList, struct{}{}, func(out *wire.BrokerList) *Error { return out.Error })
	return out.Brokers, err
}

// DescribeBroker describes one broker and what it holds.
func (c *Client) DescribeBroker(ctx context.Context, name string) (BrokerDetails, error) {
	out, _, err := call(ctx, c, wire.APIBrokerDescribe, wire.NameRequest{Name: name}, func(out *BrokerDetails) *Error { return out.Error })
	return out, err
}

// Partitions iterates over the partitions of a topic, or of all topics when topic
// is empty, by topic and number, fetching pages as it goes. An error ends it.
func (c *Client) Partitions(ctx context.Context, topic string) iter.Seq2[PartitionDescription, error] {
	return func(yield func(PartitionDescription, error) bool) {
		after := ""
		for {
			page, _, err := call(ctx, c, wire.APIPartitionList, wire.PartitionListRequest{Topic: topic, After: after},
				func(out *wire.PartitionList) *Error { return out.Error })
			if err != nil {
				yield(PartitionDescription{}, err)
				return
			}
			for _, p := range page.Partitions {
				if !yield(p, nil) {
					return
				}
				after = fmt.Sprintf("%s/%d", p.Topic, p.Partition)
			}
			if !page.More || len(page.Partitions) == 0 {
				return
			}
		}
	}
}

// DescribePartition describes one partition.
func (c *Client) DescribePartition(ctx context.Context, topic string, partition int32) (PartitionDescription, error) {
	type answer struct {
		PartitionDescription
		Error *Error `json:"error"`
	}
	out, _, err := call(ctx, c, wire.APIPartitionDescribe, wire.PartitionRequest{Topic: topic, Partition: partition},
		func(out *answer) *Error { return out.Error })
	return out.PartitionDescription, err
}

// ComparePartition has the replicas of a partition compared, from the beginning of its log. It returns when
// that is to begin: DescribePartition tells how far it is, and it is done when PartitionComparison.Passes is above the number
// returned.
func (c *Client) ComparePartition(ctx context.Context, topic string, partition int32) (passes uint64, err error) {
	out, _, err := call(ctx, c, wire.APIPartitionCompare, wire.PartitionRequest{Topic: topic, Partition: partition},
		func(out *wire.CompareBegun) *Error { return out.Error })
	return out.Passes, err
}

// TransferPartition moves a partition's leadership to a broker that has a replica of
// it, where it stays: it becomes the preferred leader.
func (c *Client) TransferPartition(ctx context.Context, topic string, partition int32, to string) (PartitionChange, error) {
	out, _, err := call(ctx, c, wire.APIPartitionTransfer, wire.PartitionTransfer{Topic: topic, Partition: partition, To: to},
		func(out *PartitionChange) *Error { return out.Error })
	if err == nil {
		c.topics.stale()
	}
	return out, err
}

// MovePartition has a partition's replicas moved to these brokers, the first one its preferred
// leader. It returns when that is decided: the brokers carry it out in the background, and
// DescribePartition tells how far they are.
func (c *Client) MovePartition(ctx context.Context, topic string, partition int32, to []string) (PartitionChange, error) {
	out, _, err := call(ctx, c, wire.APIPartitionMove, wire.MoveRequest{Topic: topic, Partition: partition, To: to},
		func(out *PartitionChange) *Error { return out.Error })
	return out, err
}

// RecoverPartition has a partition that has lost its majority for good go on with what is left of it. Without
// r.Accept nothing is changed: the answer says what would be done, and what may be lost.
func (c *Client) RecoverPartition(ctx context.Context, r RecoverRequest) (PartitionRecovery, error) {
	out, _, err := call(ctx, c, wire.APIPartitionRecover, r, func(out *PartitionRecovery) *Error { return out.Error })
	if err == nil {
		c.topics.stale()
	}
	return out, err
}

// DrainBroker has a broker give all its replicas to others, in the background: it is empty when
// DescribeBroker finds no replicas on it.
func (c *Client) DrainBroker(ctx context.Context, name string) (BrokerChange, error) {
	out, _, err := call(ctx, c, wire.APIBrokerDrain, wire.NameRequest{Name: name}, func(out *BrokerChange) *Error { return out.Error })
	return out, err
}

// ResumeBroker undoes DrainBroker: the broker gets its share again.
func (c *Client) ResumeBroker(ctx context.Context, name string) (BrokerChange, error) {
	out, _, err := call(ctx, c, wire.APIBrokerResume, wire.NameRequest{Name: name}, func(out *BrokerChange) *Error { return out.Error })
	return out, err
}

// RemoveBroker takes a broker that is empty, or dead, out of the cluster for good. While it gives
// replicas up, or others take them over, it is tried again until ctx ends.
func (c *Client) RemoveBroker(ctx context.Context, name string) (BrokerChange, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callPatience)
		defer cancel()
	}
	for n := 0; ; n++ {
		out, unsure, err := call(ctx, c, wire.APIBrokerRemove, wire.NameRequest{Name: name}, func(out *BrokerChange) *Error { return out.Error })
		if unsure && err != nil && asError(err) != nil && asError(err).Code == 404 {
			return BrokerChange{Name: name, Change: "removed"}, nil
		}
		if err != nil || out.Change != "removing" {
			return out, err
		}
		if pause := c.pause(ctx, backoff(n)); pause != nil {
			return out, nil // it goes on without anybody waiting
		}
	}
}

// Balance plans what moves until each broker holds its share and, unless it is a dry run, has
// that begun, in the background.
func (c *Client) Balance(ctx context.Context, dryRun bool) (BalancePlan, error) {
	out, _, err := call(ctx, c, wire.APIClusterBalance, wire.BalanceRequest{DryRun: dryRun}, func(out *BalancePlan) *Error { return out.Error })
	return out, err
}

// RaiseLevel has the cluster use what needs a higher feature level: to, or with 0 the newest that all brokers know. With
// dryRun nothing changes. There is no way back to versions of the broker that don't know that level.
func (c *Client) RaiseLevel(ctx context.Context, to uint32, dryRun bool) (LevelChange, error) {
	out, _, err := call(ctx, c, wire.APIClusterLevel, wire.LevelRequest{To: to, DryRun: dryRun}, func(out *LevelChange) *Error { return out.Error })
	return out, err
}

// Epoch describes one decided configuration; nil asks for the newest.
func (c *Client) Epoch(ctx context.Context, n *uint64) (EpochDescription, error) {
	out, _, err := call(ctx, c, wire.APIEpochShow, wire.EpochRequest{Epoch: n}, func(out *EpochDescription) *Error { return out.Error })
	return out, err
}

// Epochs iterates over the epochs, newest first, fetching pages as it goes. An
// error ends it.
func (c *Client) Epochs(ctx context.Context) iter.Seq2[EpochDescription, error] {
	return func(yield func(EpochDescription, error) bool) {
		after := ""
		for {
			page, _, err := call(ctx, c, wire.APIEpochList, wire.ListRequest{After: after}, func(out *wire.EpochList) *Error { return out.Error })
			if err != nil {
				yield(EpochDescription{}, err)
				return
			}
			for _, e := range page.Epochs {
				if !yield(e, nil) {
					return
				}
				after = fmt.Sprint(e.Epoch)
			}
			if !page.More || len(page.Epochs) == 0 {
				return
			}
		}
	}
}

// Metadata says which brokers there are and, for the topics named, who leads each
// partition. A topic that can't be looked up has its own Error.
func (c *Client) Metadata(ctx context.Context, topics ...string) (Metadata, error) {
	out, _, err := call(ctx, c, wire.APIMetadata, wire.MetadataRequest{Topics: topics}, func(out *Metadata) *Error { return out.Error })
	return out, err
}

// Bounds returns the offsets that a partition holds.
func (c *Client) Bounds(ctx context.Context, topic string, partition int32) (Bounds, error) {
	r, err := c.offset(ctx, wire.OffsetRequest{Topic: topic, Partition: partition})
	return Bounds{r.Start, r.Next}, err
}

// OffsetAt returns the offset of the first record that was stored at or after t,
// by the log's own time, or the partition's next offset when there is none.
func (c *Client) OffsetAt(ctx context.Context, topic string, partition int32, t time.Time) (int64, error) {
	ms := t.UnixMilli()
	r, err := c.offset(ctx, wire.OffsetRequest{Topic: topic, Partition: partition, TimeMS: &ms})
	return r.Offset, err
}

func (c *Client) offset(ctx context.Context, req wire.OffsetRequest) (wire.OffsetResponse, error) {
	out, _, err := call(ctx, c, wire.APIOffset, req, func(out *wire.OffsetResponse) *Error { return out.Error })
	return out, err
}

// call sends a request as JSON until it is answered with anything but a retriable
// error. failure finds the error in an answer. unsure says that an earlier try may
// have been carried out.
func call[T any](ctx context.Context, c *Client, subject string, req any, failure func(*T) *Error) (out T, unsure bool, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callPatience)
		defer cancel()
	}
	data, err := json.Marshal(req)
	if err != nil {
		return out, false, fmt.Errorf("encode request for %s: %w", subject, err)
	}
	for n := 0; ; n++ {
		out, err := try(ctx, c, subject, data, failure)
		if err == nil {
			return out, unsure, nil
		}
		e := asError(err)
		if e == nil {
			return out, unsure, fmt.Errorf("request %s: %w", subject, err)
		}
		if !e.Retriable {
			return out, unsure, e
		}
		unsure = unsure || !rejected(e)
		if pause := c.pause(ctx, backoff(n)); pause != nil {
			return out, unsure, fmt.Errorf("request %s: %w (last: %w)", subject, pause, e)
		}
	}
}

func try[T any](ctx context.Context, c *Client, subject string, data []byte, failure func(*T) *Error) (out T, err error) {
	return tryOn(ctx, c.requests(), subject, data, c.cfg.requestTimeout, failure)
}

func tryOn[T any](ctx context.Context, x exchange, subject string, data []byte, timeout time.Duration, failure func(*T) *Error) (out T, err error) {
	r, err := ask(ctx, x, subject, nil, data, timeout)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(r.data, &out); err != nil {
		return out, &Error{Code: 500, Reason: wire.ReasonInternal, Outcome: wire.OutcomeUnknown,
			Description: fmt.Sprintf("the answer to %s is no JSON of the expected form: %v", subject, err)}
	}
	if e := failure(&out); e != nil {
		return out, e
	}
	return out, nil
}
