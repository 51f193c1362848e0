// Package wire names what clients and brokers say to each other: subjects,
// headers and JSON bodies. It is a leaf: the SDK, the broker and the front end
// share it and nothing else.
//
// Requests go to subjects below $PARLEY. Answers are JSON unless said
// otherwise; a failure is {"error":{…}} (see Error).
package wire

import (
	"strconv"
	"strings"
)

// Subjects. A topic's name may hold dots, so the partition is the last token.
const (
	Prefix = "$PARLEY."

	// PubPrefix + topic + "." + partition: payload is one record batch v2,
	// the answer a PubAck whose offset is the batch's first.
	PubPrefix = "$PARLEY.PUB."

	// FetchPrefix + topic + "." + partition: payload is a FetchRequest; the
	// answer carries whole record batches as they are stored, and the bounds in
	// headers (HeaderStart, HeaderNext). A failure has HeaderError and a JSON body.
	FetchPrefix = "$PARLEY.FETCH."

	// APIPrefix: administrative requests, JSON in and out.
	APIPrefix = "$PARLEY.API."

	APITopicCreate   = "$PARLEY.API.TOPIC.CREATE"   // TopicSpec -> TopicChange
	APITopicList     = "$PARLEY.API.TOPIC.LIST"     // ListRequest -> TopicList
	APITopicDescribe = "$PARLEY.API.TOPIC.DESCRIBE" // NameRequest -> TopicDescription
	APITopicAlter    = "$PARLEY.API.TOPIC.ALTER"    // TopicAlter -> TopicChange
	APITopicDelete   = "$PARLEY.API.TOPIC.DELETE"   // NameRequest -> TopicChange
	APITopicRestore  = "$PARLEY.API.TOPIC.RESTORE"  // NameRequest -> TopicChange
	APIMetadata      = "$PARLEY.API.METADATA"       // MetadataRequest -> Metadata
	APIOffset        = "$PARLEY.API.OFFSET"         // OffsetRequest -> OffsetResponse
	APIClusterStatus = "$PARLEY.API.CLUSTER.STATUS" // {} -> ClusterStatus
	APIClusterHealth = "$PARLEY.API.CLUSTER.HEALTH" // {} -> ClusterHealth
	APIBrokerList    = "$PARLEY.API.BROKER.LIST"    // {} -> BrokerList
	APIEpochShow     = "$PARLEY.API.EPOCH.SHOW"     // EpochRequest -> EpochDescription
	APIEpochList     = "$PARLEY.API.EPOCH.LIST"     // ListRequest -> EpochList

	APIBrokerDescribe    = "$PARLEY.API.BROKER.DESCRIBE"    // NameRequest -> BrokerDetails
	APIPartitionList     = "$PARLEY.API.PARTITION.LIST"     // PartitionListRequest -> PartitionList
	APIPartitionDescribe = "$PARLEY.API.PARTITION.DESCRIBE" // PartitionRequest -> PartitionDescription
	APIPartitionTransfer = "$PARLEY.API.PARTITION.TRANSFER" // PartitionTransfer -> PartitionChange
	APIPartitionCompare  = "$PARLEY.API.PARTITION.COMPARE"  // PartitionRequest -> CompareBegun
	APIPartitionMove     = "$PARLEY.API.PARTITION.MOVE"     // MoveRequest -> PartitionChange
	APIPartitionRecover  = "$PARLEY.API.PARTITION.RECOVER"  // RecoverRequest -> PartitionRecovery
	APIBrokerDrain       = "$PARLEY.API.BROKER.DRAIN"       // NameRequest -> BrokerChange
	APIBrokerResume      = "$PARLEY.API.BROKER.RESUME"      // NameRequest -> BrokerChange
	APIBrokerRemove      = "$PARLEY.API.BROKER.REMOVE"      // NameRequest -> BrokerChange
	APIClusterBalance    = "$PARLEY.API.CLUSTER.BALANCE"    // BalanceRequest -> BalancePlan
	APIClusterLevel      = "$PARLEY.API.CLUSTER.LEVEL"      // LevelRequest -> LevelChange
)

// Headers of NATS messages.
const (
	HeaderKey     = "Parley-Key"
	HeaderMsgID   = "Nats-Msg-Id"
	HeaderExpect  = "Parley-Expect-Offset" // append only if the partition's next offset is this
	HeaderPart    = "Parley-Partition"     // publish to this partition whatever the key says
	HeaderSubject = "Parley-Subject"       // in a stored record: the subject it was published to
	HeaderStart   = "Parley-Start-Offset"
	HeaderNext    = "Parley-Next-Offset"
	HeaderEpoch   = "Parley-Epoch"
	HeaderError   = "Parley-Error" // the error's reason
)

// Limits that both sides know. Sizes in bytes.
const (
	MaxRecord       = 1 << 20        // key, value and headers of one record
	MaxBatch        = 1<<20 + 64<<10 // one record batch, as sent
	MaxPayload      = MaxBatch       // INFO max_payload
	MaxBatchRecords = 65536          // records in one batch
	MaxFetch        = 1 << 20        // what one fetch returns, unless one batch alone is larger
	MaxFetchWaitMS  = 30_000
	MaxPartitions   = 1024 // of one topic
	MaxTopicName    = 200
	MaxMsgID        = 256
	MaxKey          = 64 << 10
)

// PubAck answers a publish. Seq is Offset+1, for clients that know JetStream.
// Offset is -1 for a duplicate whose first offset is no longer known.
type PubAck struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Epoch     uint64 `json:"epoch"`
	Stream    string `json:"stream"`
	Seq       uint64 `json:"seq"`
	Duplicate bool   `json:"duplicate,omitempty"`
	Error     *Error `json:"error,omitempty"`
}

// Outcome of a failed publish.
const (
	OutcomeRejected = "rejected" // it is not and never will be in the log
	OutcomeUnknown  = "unknown"  // it may be in the log
)

// Error is a failure as it crosses the wire. It is a Go error too.
type Error struct {
	Code        int    `json:"code"`   // HTTP-like
	Reason      string `json:"reason"` // one of the Reason constants
	Retriable   bool   `json:"retriable"`
	Outcome     string `json:"outcome,omitempty"`
	Description string `json:"description"`
}

func (e *Error) Error() string { return e.Description + " (" + e.Reason + ")" }

// Is makes errors.Is compare by reason.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Reason == e.Reason
}

// Reasons.
const (
	ReasonBadRequest       = "bad_request"     // 400
	ReasonInvalidTopic     = "invalid_topic"   // 400
	ReasonInvalidConfig    = "invalid_config"  // 400
	ReasonInvalidBatch     = "invalid_batch"   // 400
	ReasonTooLarge         = "too_large"       // 413
	ReasonUnauthorized     = "unauthorized"    // 401
	ReasonTopicNotFound    = "topic_not_found" // 404
	ReasonPartNotFound     = "partition_not_found"
	ReasonTopicExists      = "topic_exists"          // 409
	ReasonSubjectOverlap   = "subject_overlap"       // 409
	ReasonEpochConflict    = "epoch_conflict"        // 409, retriable
	ReasonExpectMismatch   = "offset_mismatch"       // 409: compare-and-append lost
	ReasonOutOfOrder       = "out_of_order_sequence" // 409
	ReasonProducerFenced   = "producer_fenced"       // 409: older producer epoch
	ReasonUnknownProducer  = "unknown_producer"      // 409, retriable
	ReasonOffsetOutOfRange = "offset_out_of_range"   // 416
	ReasonBusy             = "busy"                  // 429, retriable
	ReasonNotLeader        = "not_leader"            // 503, retriable
	ReasonUnavailable      = "unavailable"           // 503, retriable
	ReasonTimeout          = "timeout"               // 504, retriable
	ReasonDiskFull         = "disk_full"             // 507, retriable
	ReasonDamaged          = "damaged"               // 500
	ReasonInternal         = "internal"              // 500
)

// TopicSpec asks for a topic. Zero values mean the defaults.
type TopicSpec struct {
	Name       string            `json:"name"`
	Partitions int32             `json:"partitions,omitempty"` // default 1
	Replicas   int32             `json:"replicas,omitempty"`   // default 3, or 1 on fewer than three brokers
	Subjects   []string          `json:"subjects,omitempty"`   // default NAME and NAME.>
	Config     map[string]string `json:"config,omitempty"`     // see the Config keys
}

// Config keys of a topic and their form.
const (
	ConfigRetention  = "retention"   // duration like 7d, 12h; 0 keeps for ever (default)
	ConfigMaxBytes   = "max_bytes"   // a partition's bytes, like 10GiB; 0 no limit (default)
	ConfigMaxRecords = "max_records" // a partition's records; 0 no limit (default)
	ConfigKey        = "key"         // subject (default), none, token:N
	ConfigMaxRecord  = "max_record"  // largest record, up to 1MiB
	ConfigWorkQueue  = "work_queue"  // true: what every group has handled goes; false (default)
)

// TopicAlter changes what it names and leaves the rest.
type TopicAlter struct {
	Name       string            `json:"name"`
	Partitions int32             `json:"partitions,omitempty"`
	Replicas   int32             `json:"replicas,omitempty"`
	Subjects   []string          `json:"subjects,omitempty"`
	Config     map[string]string `json:"config,omitempty"`
}

// NameRequest names a topic. Epoch, when not 0, is the oldest configuration
// the caller accepts an answer from.
type NameRequest struct {
	Name string `json:"name"`
}

// TopicChange says what changed and in which epoch.
type TopicChange struct {
	Name   string `json:"name"`
	Change string `json:"change"` // created, altered, deleted, restored, unchanged
	Detail string `json:"detail,omitempty"`
	Epoch  uint64 `json:"epoch"`
	Error  *Error `json:"error,omitempty"`
}

// ListRequest pages through a list: at most Limit items after the key After.
type ListRequest struct {
	After   string `json:"after,omitempty"`
	Limit   int    `json:"limit,omitempty"` // default and most 256
	Deleted bool   `json:"deleted,omitempty"`
}

// TopicSummary is a line of a TopicList.
type TopicSummary struct {
	Name       string            `json:"name"`
	Partitions int32             `json:"partitions"`
	Replicas   int32             `json:"replicas"`
	Subjects   []string          `json:"subjects"`
	Config     map[string]string `json:"config"`
	DeletedAt  int64             `json:"deleted_at,omitempty"` // Unix ms; restorable until it is purged
}

// TopicList is one page; More says that another follows after the last name.
type TopicList struct {
	Topics []TopicSummary `json:"topics"`
	More   bool           `json:"more"`
	Epoch  uint64         `json:"epoch"`
	Error  *Error         `json:"error,omitempty"`
}

// TopicDescription describes a topic whole.
type TopicDescription struct {
	Name       string                 `json:"name"`
	Partitions []PartitionDescription `json:"partitions"`
	Config     map[string]string      `json:"config"`
	Subjects   []string               `json:"subjects"`
	Epoch      uint64                 `json:"epoch"`
	Error      *Error                 `json:"error,omitempty"`
}

// MetadataRequest asks where partitions live. No topics: brokers only.
type MetadataRequest struct {
	Topics []string `json:"topics,omitempty"`
}

// Metadata tells a client whom to talk to.
type Metadata struct {
	ClusterID string          `json:"cluster_id"`
	Epoch     uint64          `json:"epoch"`
	Brokers   []BrokerAddress `json:"brokers"`
	Topics    []TopicMetadata `json:"topics"`
	Error     *Error          `json:"error,omitempty"`
}

// BrokerAddress is where clients reach a broker.
type BrokerAddress struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// TopicMetadata maps partitions to leaders; index is the partition.
type TopicMetadata struct {
	Name    string   `json:"name"`
	Leaders []string `json:"leaders"` // broker names, "" while there is none
	// Terms that the leaders lead in, as far as the answering broker knows. Where brokers
	// differ the newest term is right: one that is cut off doesn't know of its successor.
	Terms []uint64 `json:"terms,omitempty"`
	Key   string   `json:"key"`
	// Anchors is how many partitions, from the first on, may be groups' anchors: those that the topic was
	// made with. A group's anchor is the partition that its name, as a key, has among these. 0: all.
	Anchors int32  `json:"anchors,omitempty"`
	Error   *Error `json:"error,omitempty"`
}

// FetchRequest asks for batches. The first batch holds Offset: a reader skips
// the records before it.
type FetchRequest struct {
	Offset    int64 `json:"offset"`
	MaxBytes  int   `json:"max_bytes,omitempty"`   // default and most MaxFetch
	MaxWaitMS int   `json:"max_wait_ms,omitempty"` // how long to wait at the end of the log; most MaxFetchWaitMS
}

// OffsetRequest asks for an offset by log time, or for the bounds.
type OffsetRequest struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	// TimeMS is Unix milliseconds of log time; nil asks for the bounds alone.
	TimeMS *int64 `json:"time_ms,omitempty"`
}

// OffsetResponse: Offset is the first record stored at or after the asked time,
// or Next when there is none.
type OffsetResponse struct {
	Offset int64  `json:"offset"`
	Start  int64  `json:"start_offset"`
	Next   int64  `json:"next_offset"`
	Error  *Error `json:"error,omitempty"`
}

// PartitionSubject returns prefix + topic + "." + partition.
func PartitionSubject(prefix, topic string, partition int32) string {
	return prefix + topic + "." + strconv.Itoa(int(partition))
}

// SplitPartition takes apart what PartitionSubject built, the prefix removed.
func SplitPartition(rest string) (topic string, partition int32, ok bool) {
	i := strings.LastIndexByte(rest, '.')
	if i <= 0 {
		return "", 0, false
	}
	n, err := strconv.ParseInt(rest[i+1:], 10, 32)
	if err != nil || n < 0 {
		return rest[:i], -1, false
	}
	return rest[:i], int32(n), true
}
