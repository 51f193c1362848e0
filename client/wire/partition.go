package wire

// What partitions and their replicas are, how they are compared, moved and recovered.

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
