package wire

// What the cluster is, its brokers and its epochs, and how they change.

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
	Epoch    uint64   `json:"epoch"`
	Hash     string   `json:"hash"`
	Previous string   `json:"previous"`
	By       string   `json:"by"`
	At       string   `json:"at"` // RFC 3339
	Change   string   `json:"change"`
	Council  []string `json:"council"`
	// A list, perhaps an empty one, where a single epoch is shown, and nil where many are listed.
	Brokers []BrokerDescription `json:"brokers,omitzero"`
	Topics  []TopicSummary      `json:"topics,omitzero"`
	Error   *Error              `json:"error,omitempty"`
}

// EpochList lists epochs, newest first, without brokers and topics.
type EpochList struct {
	Epochs []EpochDescription `json:"epochs"`
	More   bool               `json:"more"`
	Error  *Error             `json:"error,omitempty"`
}
