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

// PartitionDescription is one partition of a topic.
type PartitionDescription struct {
	Topic       string   `json:"topic,omitempty"`
	Partition   int32    `json:"partition"`
	Leader      string   `json:"leader"` // "" while there is none
	Term        uint64   `json:"term"`
	Replicas    []string `json:"replicas"`
	InSync      []string `json:"in_sync"`
	StartOffset int64    `json:"start_offset"`
	NextOffset  int64    `json:"next_offset"`
	Bytes       int64    `json:"bytes"`
	Problem     string   `json:"problem,omitempty"`
	// Damaged names brokers whose replica has lost something, or holds what doesn't verify. It serves
	// nothing and is being replaced where the others have a majority.
	Damaged []string `json:"damaged,omitempty"`
	// Move is set while the partition moves to other brokers.
	Move *PartitionMove `json:"move,omitempty"`
	// Comparison of the replicas, unless its leader can't be asked.
	Comparison *PartitionComparison `json:"comparison,omitempty"`
	Error      *Error               `json:"error,omitempty"`
}

// PartitionComparison is how the comparison of a partition's replicas stands: their logs are read back from disk,
// and their state is looked at, in the background.
type PartitionComparison struct {
	// Result of the last whole comparison: never (there was none), same, incomplete (what was compared is the same, but Missing
	// could not be, in a part of the log at least), different (see Differences).
	Result  string   `json:"result"`
	Ended   string   `json:"ended,omitempty"` // RFC 3339
	From    int64    `json:"from"`            // offsets
	UpTo    int64    `json:"up_to"`           // excluded
	Bytes   int64    `json:"bytes"`
	Missing []string `json:"missing,omitempty"` // brokers
	State   bool     `json:"state"`             // producers, groups and position were compared too
	Passes  uint64   `json:"passes"`            // whole comparisons so far
	// Running: one is under way, and has come to the offset At.
	Running     bool                `json:"running"`
	At          int64               `json:"at,omitempty"`
	Differences []ReplicaDifference `json:"differences,omitempty"`
	More        int                 `json:"more,omitempty"`  // differences that are not listed
	Event       string              `json:"event,omitempty"` // the last one
	EventAt     string              `json:"event_at,omitempty"`
}

// ReplicaDifference is something that the replicas of a partition don't have alike.
type ReplicaDifference struct {
	What     string          `json:"what"`           // records, state
	From     int64           `json:"from,omitempty"` // offsets of records
	To       int64           `json:"to,omitempty"`   // excluded
	Found    string          `json:"found"`          // RFC 3339
	Replicas []ReplicaDigest `json:"replicas"`
	// Verdict: replaced (those that differ from a majority are, or are to be, by fresh ones) or undecided (there is no
	// majority: nothing is done before somebody decides).
	Verdict string `json:"verdict"`
	Detail  string `json:"detail"` // what to do
}

// ReplicaDigest is what one replica has.
type ReplicaDigest struct {
	Broker string `json:"broker"`
	Digest string `json:"digest"`
	// Odd says which of its own records the replica contradicts, "" none.
	Odd string `json:"odd,omitempty"`
	Bad bool   `json:"bad,omitempty"` // it differs from the majority
}

// CompareBegun says that a partition's replicas are being compared: it is done when PartitionComparison.Passes is above
// Passes.
type CompareBegun struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Passes    uint64 `json:"passes"`
	Error     *Error `json:"error,omitempty"`
}

// PartitionMove is how far a partition's move is, as its leader knows it.
type PartitionMove struct {
	// Phase is one of waiting, adding, copying, promoting, "handing over", removing, finishing.
	Phase    string        `json:"phase"`
	Detail   string        `json:"detail,omitempty"` // what it waits for, or what failed last
	Target   []string      `json:"target"`           // brokers, the preferred leader's first
	Adding   []ReplicaCopy `json:"adding"`           // replicas that are to come
	Removing []string      `json:"removing"`         // brokers whose replicas are to go
	Seconds  float64       `json:"seconds"`          // since this leader took it up
}

// ReplicaCopy is how far a replica that a move adds has caught up.
type ReplicaCopy struct {
	Broker  string `json:"broker"`
	Replica uint64 `json:"replica"`
	Bytes   int64  `json:"bytes"`    // that it has stored
	OfBytes int64  `json:"of_bytes"` // that its leader has stored
	Behind  uint64 `json:"behind"`   // log entries that it lacks, about
	InSync  bool   `json:"in_sync"`
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

// ClusterStatus is the cluster at a glance.
type ClusterStatus struct {
	ClusterID       string              `json:"cluster_id"`
	Epoch           uint64              `json:"epoch"`
	Council         []string            `json:"council"`
	Brokers         []BrokerDescription `json:"brokers"`
	Topics          int                 `json:"topics"`
	Partitions      int                 `json:"partitions"`
	Leaderless      int                 `json:"leaderless"`
	UnderReplicated int                 `json:"under_replicated"`
	// Moving counts the partitions that get other replicas. Uneven says that replicas are yet to
	// be evened out among the brokers.
	Moving       int    `json:"moving"`
	Uneven       bool   `json:"uneven"`
	FeatureLevel uint32 `json:"feature_level"`
	Error        *Error `json:"error,omitempty"`
}

// LevelRequest asks for a higher feature level: To, or the newest that all brokers know. With DryRun, for what that would mean.
type LevelRequest struct {
	To     uint32 `json:"to,omitempty"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// LevelChange is what became, or would become, of the cluster's feature level. Once it has risen no version of the broker that doesn't know
// it can be used again.
type LevelChange struct {
	Change  string        `json:"change"` // planned (a dry run), raised, unchanged
	From    uint32        `json:"from"`
	To      uint32        `json:"to"`
	Brings  []string      `json:"brings"` // what each level in between brings
	Brokers []BrokerLevel `json:"brokers"`
	Blocked string        `json:"blocked,omitempty"` // why it can't rise now, in a dry run
	Epoch   uint64        `json:"epoch"`
	Error   *Error        `json:"error,omitempty"`
}

// BrokerLevel is the newest feature level that a broker knows.
type BrokerLevel struct {
	Name  string `json:"name"`
	State string `json:"state"`
	Told  bool   `json:"told"` // whether it answered; else Knows is 0
	Knows uint32 `json:"knows"`
}

// BrokerDescription is one broker as the newest epoch has it.
type BrokerDescription struct {
	Name     string `json:"name"`
	ID       string `json:"id"`
	State    string `json:"state"` // active, draining, dead
	Rack     string `json:"rack"`
	Weight   uint32 `json:"weight"`
	Replicas int    `json:"replicas"`
	Leaders  int    `json:"leaders"`
	Address  string `json:"address"`
	Version  string `json:"version,omitempty"`
	// Reachable says that the broker which answers has heard of it lately.
	Reachable bool `json:"reachable"`
}

// BrokerDetails describes one broker: what it holds, and how the one that
// answers reaches it.
type BrokerDetails struct {
	BrokerDescription
	Incarnation string                 `json:"incarnation"`
	PeerAddress string                 `json:"peer_address"`
	RaftAddress string                 `json:"raft_address"`
	Partitions  []PartitionDescription `json:"partitions"` // of which it has a replica
	RTTMicros   int64                  `json:"rtt_us,omitempty"`
	Problem     string                 `json:"problem,omitempty"` // why it is not reachable
	Epoch       uint64                 `json:"epoch"`
	Error       *Error                 `json:"error,omitempty"`
}

// PartitionListRequest pages through partitions by topic and number: of one
// topic, or of all. After is "TOPIC/N", the last of the page before.
type PartitionListRequest struct {
	Topic string `json:"topic,omitempty"`
	After string `json:"after,omitempty"`
	Limit int    `json:"limit,omitempty"` // default and most 1024
}

// PartitionList is one page; More says that another follows after the last one.
type PartitionList struct {
	Partitions []PartitionDescription `json:"partitions"`
	More       bool                   `json:"more"`
	Epoch      uint64                 `json:"epoch"`
	Error      *Error                 `json:"error,omitempty"`
}

// PartitionRequest names a partition.
type PartitionRequest struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
}

// PartitionTransfer asks for a partition's leadership to move to a broker that
// has a replica of it, and to stay there: it becomes the preferred leader.
type PartitionTransfer struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	To        string `json:"to"` // a broker's name
}

// PartitionChange says what changed and in which epoch.
type PartitionChange struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Change    string `json:"change"` // transferred, moving, reordered, unchanged
	Leader    string `json:"leader"`
	// Replicas are the brokers that the partition moves to, the preferred leader first.
	Replicas []string `json:"replicas,omitempty"`
	Detail   string   `json:"detail,omitempty"`
	Epoch    uint64   `json:"epoch"`
	Error    *Error   `json:"error,omitempty"`
}

// MoveRequest asks for a partition's replicas to be on other brokers, the first one its
// preferred leader.
type MoveRequest struct {
	Topic     string   `json:"topic"`
	Partition int32    `json:"partition"`
	To        []string `json:"to"` // brokers' names
}

// RecoverRequest asks for a partition that has lost its majority for good to be recovered by force, from what is left of
// it. Without Accept it is a question: what would be done, and what may be lost.
type RecoverRequest struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	// From is the broker whose replica the partition goes on with; "" for the one whose log reaches furthest.
	From string `json:"from,omitempty"`
	// Empty has it begin anew, whatever is left.
	Empty  bool `json:"empty,omitempty"`
	Accept bool `json:"accept,omitempty"` // that records are lost
}

// PartitionRecovery is what a recovery of one partition comes to.
type PartitionRecovery struct {
	Topic     string            `json:"topic"`
	Partition int32             `json:"partition"`
	Change    string            `json:"change"` // planned, recovering
	Replicas  []ReplicaSurvivor `json:"replicas"`
	// From is the broker whose replica it goes on with; "" when it begins anew, empty, on To.
	From string   `json:"from,omitempty"`
	To   []string `json:"to,omitempty"`
	// NextOffset is the next one that is given out where it begins anew: above all that can have been given out before.
	NextOffset int64  `json:"next_offset,omitempty"`
	Loss       string `json:"loss"` // what may be lost, for people
	Epoch      uint64 `json:"epoch"`
	Error      *Error `json:"error,omitempty"`
}

// ReplicaSurvivor is what is left of one replica.
type ReplicaSurvivor struct {
	Broker     string `json:"broker"`
	Replica    uint64 `json:"replica"`
	Reachable  bool   `json:"reachable"`
	Term       uint64 `json:"term"` // of the last entry of its log, and
	Index      uint64 `json:"index"`
	NextOffset int64  `json:"next_offset"` // as far as it has applied
	Bytes      int64  `json:"bytes"`
	Problem    string `json:"problem,omitempty"`
}

// BrokerChange says what a broker is meant to be from now on, and in which epoch that was decided.
type BrokerChange struct {
	Name string `json:"name"`
	// Change is draining, resumed, removing (it has yet to give replicas up: ask again), removed
	// or unchanged.
	Change   string `json:"change"`
	Detail   string `json:"detail,omitempty"`
	Replicas int    `json:"replicas"` // that it still holds, or is to get
	Epoch    uint64 `json:"epoch"`
	Error    *Error `json:"error,omitempty"`
}

// BalanceRequest asks for replicas to be evened out, or, with DryRun, what that would move.
type BalanceRequest struct {
	DryRun bool `json:"dry_run,omitempty"`
}

// BalancePlan is what moves until each broker holds its share.
type BalancePlan struct {
	Change  string        `json:"change"` // planned (a dry run), begun, unchanged
	Moves   []PlannedMove `json:"moves"`
	Leaders []PlannedMove `json:"leaders"`        // preferred leaders that change beside
	Held    []PlannedMove `json:"held,omitempty"` // what should change and can't now
	Brokers []BrokerLoad  `json:"brokers"`
	Bytes   int64         `json:"bytes"` // to be copied
	More    int           `json:"more"`  // moves and leaders that are not listed
	Epoch   uint64        `json:"epoch"`
	Error   *Error        `json:"error,omitempty"`
}

// PlannedMove is one replica that goes from one broker to another, and why. From is empty for
// one that is added, To for one that is dropped.
type PlannedMove struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	From      string `json:"from,omitempty"`
	To        string `json:"to,omitempty"`
	Reason    string `json:"reason"`
	Why       string `json:"why"`
	Bytes     int64  `json:"bytes"`
}

// BrokerLoad is what a broker holds before and after.
type BrokerLoad struct {
	Name           string `json:"name"`
	ReplicasBefore int    `json:"replicas_before"`
	ReplicasAfter  int    `json:"replicas_after"`
	BytesBefore    int64  `json:"bytes_before"`
	BytesAfter     int64  `json:"bytes_after"`
	LeadersBefore  int    `json:"leaders_before"` // preferred ones
	LeadersAfter   int    `json:"leaders_after"`
}

// BrokerList lists the brokers.
type BrokerList struct {
	Brokers []BrokerDescription `json:"brokers"`
	Error   *Error              `json:"error,omitempty"`
}

// ClusterHealth lists what is wrong and what is merely unwise.
type ClusterHealth struct {
	Healthy  bool     `json:"healthy"`
	Problems []string `json:"problems"`
	Warnings []string `json:"warnings,omitempty"`
	Error    *Error   `json:"error,omitempty"`
}

// EpochRequest asks for one epoch; nil for the newest.
type EpochRequest struct {
	Epoch *uint64 `json:"epoch,omitempty"`
}

// EpochDescription is one decided configuration.
type EpochDescription struct {
	Epoch    uint64              `json:"epoch"`
	Hash     string              `json:"hash"`
	Previous string              `json:"previous"`
	By       string              `json:"by"`
	At       string              `json:"at"` // RFC 3339
	Change   string              `json:"change"`
	Council  []string            `json:"council"`
	Brokers  []BrokerDescription `json:"brokers,omitempty"`
	Topics   []TopicSummary      `json:"topics,omitempty"`
	Error    *Error              `json:"error,omitempty"`
}

// EpochList lists epochs, newest first, without brokers and topics.
type EpochList struct {
	Epochs []EpochDescription `json:"epochs"`
	More   bool               `json:"more"`
	Error  *Error             `json:"error,omitempty"`
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
