// Package api answers the $PARLEY.API requests: bytes in, a response of
// client/wire out. It knows no transport; broker and admin call it.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/rs/zerolog"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/placement"
	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// Limits of a request.
const (
	MaxRequest = 256 << 10 // bytes of a request's body
	MaxPage    = 256       // items of one page
	MaxParts   = 1024      // partitions of one page
	maxNames   = 1024      // topics in one metadata request
)

// Runtime is what a broker knows beyond the epochs.
type Runtime interface {
	// Partitions tells how partitions do, as their leaders say: the result is in
	// the order of the question. Leaders are asked at the same time, for a
	// bounded time each; where one gives no answer, Problem says so.
	Partitions(ctx context.Context, parts []Part) []PartitionStatus
	// Leader is the broker that leads a partition as far as this one knows, 0
	// while there is none.
	Leader(topic uint64, number int32) uint64
	// Term is the newest term of a partition that this broker has heard of.
	Term(topic uint64, number int32) uint64
	// Bounds asks a partition's leader for the first and the next offset, and, with
	// timeMS, for an offset by log time: *wire.Error when it can't.
	Bounds(ctx context.Context, topic uint64, number int32, timeMS *int64) (wire.OffsetResponse, error)
	// Carried waits until the brokers have carried out the epoch, so that what it
	// created can be used; it gives up quietly when ctx ends.
	Carried(ctx context.Context, epoch uint64)
	// Compare has a partition's replicas compared from the beginning of its log, by its leader, and returns how many
	// times they had been compared before.
	Compare(ctx context.Context, topic uint64, number int32) (passes uint64, err error)
	// Transfer moves a partition's leadership to a broker that has a replica.
	Transfer(ctx context.Context, topic uint64, number int32, to uint64) error
	// Survivors asks the brokers of all replicas of a partition what they have of it.
	Survivors(ctx context.Context, part Part) []Survivor
	// Reach tells how this broker reaches another one, or itself.
	Reach(broker uint64) Reach
	// Levels asks all brokers for the newest feature levels that they know, for a bounded time; by broker id,
	// without those that gave no answer.
	Levels(ctx context.Context) map[uint64]uint32
	// Problems lists what is wrong with this broker itself.
	Problems() []string

	Groups
}

// Part names a partition by its topic's id.
type Part struct {
	Topic  uint64
	Number int32
}

// Reach of another broker.
type Reach struct {
	Up      bool
	RTT     time.Duration
	Version string // "" while unknown
	Problem string
}

// Survivor is what is left of one replica of a partition.
type Survivor struct {
	Replica uint64 `json:"replica"`
	Broker  uint64 `json:"broker"`
	// Term and Index are of the last entry in its own Raft log: the greater they are, the more it has.
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
	// Start, Next and Bytes are what it has applied, 0 where it isn't open.
	Start int64 `json:"start"`
	Next  int64 `json:"next"`
	Bytes int64 `json:"bytes"`
	// Away: its broker gave no answer.
	Away bool `json:"away,omitempty"`
	// Problem says why it should not be gone on with.
	Problem string `json:"problem,omitempty"`
}

// PartitionStatus of one partition.
type PartitionStatus struct {
	Leader uint64   `json:"leader"` // broker id, 0 while there is none
	Term   uint64   `json:"term"`
	InSync []uint64 `json:"in_sync"` // broker ids
	// Late replicas' brokers: not in sync, but they were a moment ago, or the leader is too new to know. Nothing is wrong yet.
	Late    []uint64 `json:"late,omitempty"`
	Start   int64    `json:"start"`
	Next    int64    `json:"next"`
	Bytes   int64    `json:"bytes"`
	Problem string   `json:"problem,omitempty"`
	// Damaged replicas' brokers, as the leader knows.
	Damaged []uint64 `json:"damaged,omitempty"`
	// Groups that can't go on, as the leader knows: a text each.
	Groups []string `json:"groups,omitempty"`
	// Move is set by the leader while the partition moves.
	Move *MoveStatus `json:"move,omitempty"`
	// Comparison of the replicas, as the leader knows it.
	Comparison *ComparisonStatus `json:"comparison,omitempty"`
}

// ComparisonStatus is how the comparison of a partition's replicas stands. Times are Unix milliseconds, 0 never.
type ComparisonStatus struct {
	Passes      uint64             `json:"passes"`
	EndedMS     int64              `json:"ended_ms"` // the last pass
	From        int64              `json:"from"`
	UpTo        int64              `json:"up_to"` // excluded
	Bytes       int64              `json:"bytes"`
	Missing     []uint64           `json:"missing,omitempty"` // brokers that it could not compare, in some of the log at least
	State       bool               `json:"state"`             // compared too
	Running     bool               `json:"running"`
	At          int64              `json:"at"` // offset where the pass under way is
	Differences []DifferenceStatus `json:"differences,omitempty"`
	More        int                `json:"more,omitempty"` // differences that are not listed
	Event       string             `json:"event,omitempty"`
	EventMS     int64              `json:"event_ms,omitempty"`
}

// DifferenceStatus is something that replicas don't have alike.
type DifferenceStatus struct {
	What    string        `json:"what"` // records, state
	From    int64         `json:"from"`
	To      int64         `json:"to"`
	FoundMS int64         `json:"found_ms"`
	Good    string        `json:"good,omitempty"` // the majority's digest
	Votes   []ReplicaVote `json:"votes"`
}

// ReplicaVote is what one replica has.
type ReplicaVote struct {
	Broker  uint64 `json:"broker"`
	Replica uint64 `json:"replica"`
	Digest  string `json:"digest"`
	Odd     string `json:"odd,omitempty"`
}

// MoveStatus of a partition that moves, as its leader knows it.
type MoveStatus struct {
	Phase   string          `json:"phase"`
	Detail  string          `json:"detail,omitempty"`
	Seconds float64         `json:"seconds"` // since this leader took it up
	Adding  []ReplicaStatus `json:"adding"`
	// NoRoom: a broker that is to have a replica has too little free disk space for a copy, as Detail says.
	NoRoom bool `json:"no_room,omitempty"`
}

// ReplicaStatus of a replica that a move adds.
type ReplicaStatus struct {
	Replica uint64 `json:"replica"`
	Broker  uint64 `json:"broker"`
	Bytes   int64  `json:"bytes"`
	OfBytes int64  `json:"of_bytes"`
	Behind  uint64 `json:"behind"`
	InSync  bool   `json:"in_sync"`
}

// Handlers answer requests from one broker's view.
type Handlers struct {
	Store   epoch.Store
	Runtime Runtime
	Version string
	Clock   func() time.Time
	// MaxRecord is the largest record that this broker takes.
	MaxRecord int64
	Logger    zerolog.Logger
}

type handler func(h *Handlers, ctx context.Context, req []byte) (any, error)

var requests = map[string]handler{
	wire.APITopicCreate:       with((*Handlers).TopicCreate),
	wire.APITopicList:         with((*Handlers).TopicList),
	wire.APITopicDescribe:     with((*Handlers).TopicDescribe),
	wire.APITopicAlter:        with((*Handlers).TopicAlter),
	wire.APITopicDelete:       with((*Handlers).TopicDelete),
	wire.APITopicRestore:      with((*Handlers).TopicRestore),
	wire.APIMetadata:          with((*Handlers).Metadata),
	wire.APIOffset:            with((*Handlers).Offset),
	wire.APIClusterStatus:     with((*Handlers).ClusterStatus),
	wire.APIClusterHealth:     with((*Handlers).ClusterHealth),
	wire.APIBrokerList:        with((*Handlers).BrokerList),
	wire.APIBrokerDescribe:    with((*Handlers).BrokerDescribe),
	wire.APIPartitionList:     with((*Handlers).PartitionList),
	wire.APIPartitionDescribe: with((*Handlers).PartitionDescribe),
	wire.APIPartitionTransfer: with((*Handlers).PartitionTransfer),
	wire.APIPartitionCompare:  with((*Handlers).PartitionCompare),
	wire.APIPartitionMove:     with((*Handlers).PartitionMove),
	wire.APIPartitionRecover:  with((*Handlers).PartitionRecover),
	wire.APIBrokerDrain:       with((*Handlers).BrokerDrain),
	wire.APIBrokerResume:      with((*Handlers).BrokerResume),
	wire.APIBrokerRemove:      with((*Handlers).BrokerRemove),
	wire.APIClusterBalance:    with((*Handlers).ClusterBalance),
	wire.APIClusterLevel:      with((*Handlers).ClusterLevel),
	wire.APIGroupList:         with((*Handlers).GroupList),
	wire.APIGroupDescribe:     with((*Handlers).GroupDescribe),
	wire.APIGroupReset:        with((*Handlers).GroupReset),
	wire.APIGroupDelete:       with((*Handlers).GroupDelete),
	wire.APIGroupRedrive:      with((*Handlers).GroupRedrive),
	wire.APIEpochShow:         with((*Handlers).EpochShow),
	wire.APIEpochList:         with((*Handlers).EpochList),
}

// None is the request of a subject that asks for nothing in particular.
type None struct{}

// Failure is the answer to a request that failed.
type Failure struct {
	Error *wire.Error `json:"error"`
}

func with[Q, R any](f func(*Handlers, context.Context, Q) (R, error)) handler {
	return func(h *Handlers, ctx context.Context, req []byte) (any, error) {
		var q Q
		if len(req) > 0 {
			if err := json.Unmarshal(req, &q); err != nil {
				return nil, failf(400, wire.ReasonBadRequest, "the request is not the JSON object that is expected: %v", err)
			}
		}
		return f(h, ctx, q)
	}
}

// Handle answers the request to a subject with JSON. It always has an answer.
func (h *Handlers) Handle(ctx context.Context, subject string, req []byte) []byte {
	res, err := h.call(ctx, subject, req)
	if err == nil {
		var b []byte
		if b, err = json.Marshal(res); err == nil {
			return b
		}
	}
	b, merr := json.Marshal(Failure{AsError(err)})
	if merr != nil {
		panic(merr) // numbers, booleans and strings always marshal
	}
	return b
}

func (h *Handlers) call(ctx context.Context, subject string, req []byte) (res any, err error) {
	defer func() {
		if p := recover(); p != nil {
			h.Logger.Error().Str("subject", subject).Interface("panic", p).Bytes("stack", debug.Stack()).Msg("request handler failed")
			err = failf(500, wire.ReasonInternal, "the request failed inside the broker, its log says more")
		}
	}()
	f, ok := requests[subject]
	switch {
	case !ok:
		return nil, failf(404, wire.ReasonBadRequest, "there is no request %s; this broker's version is %s", subject, h.Version)
	case len(req) > MaxRequest:
		return nil, failf(413, wire.ReasonTooLarge, "the request has %d bytes, at most %d are allowed", len(req), MaxRequest)
	}
	return f(h, ctx, req)
}

// AsError makes a wire error of any error.
func AsError(err error) *wire.Error {
	var w *wire.Error
	var overlap *config.OverlapError
	switch {
	case errors.As(err, &w):
		return w
	case errors.As(err, &overlap):
		return failf(409, wire.ReasonSubjectOverlap, "%v", overlap)
	case errors.Is(err, config.ErrInvalid):
		return failf(400, wire.ReasonInvalidConfig, "%v", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return retriable(504, wire.ReasonTimeout, "the broker did not finish in time: %v", err)
	case errors.Is(err, placement.ErrNoBroker):
		return failf(400, wire.ReasonInvalidConfig, "%v", err)
	case errors.Is(err, epoch.ErrNotNamed):
		return retriable(503, wire.ReasonUnavailable, "%v", err)
	case errors.Is(err, epoch.ErrClosed):
		return retriable(503, wire.ReasonUnavailable, "the broker is stopping")
	}
	return failf(500, wire.ReasonInternal, "%v", err)
}

func failf(code int, reason, format string, args ...any) *wire.Error {
	return &wire.Error{Code: code, Reason: reason, Description: fmt.Sprintf(format, args...)}
}

func retriable(code int, reason, format string, args ...any) *wire.Error {
	e := failf(code, reason, format, args...)
	e.Retriable = true
	return e
}

func noTopic(name string) *wire.Error {
	return failf(404, wire.ReasonTopicNotFound, "there is no topic %q", name)
}

func pageSize(limit int) (int, error) {
	if limit < 0 {
		return 0, failf(400, wire.ReasonBadRequest, "limit %d: allowed are 1 to %d", limit, MaxPage)
	}
	if limit == 0 || limit > MaxPage {
		return MaxPage, nil
	}
	return limit, nil
}
