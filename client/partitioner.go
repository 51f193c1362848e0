package client

import (
	"fmt"

	"github.com/parleymq/parley/partition/record"
)

// A Partitioner chooses among a topic's partitions, of which there are n, at
// least 1. -1 leaves the choice to the Producer, which fills one partition's batch
// after another (sticky). It is called from any goroutine that sends.
type Partitioner func(r Record, n int32) int32

// AnyPartition is what a Partitioner returns to leave the choice to the Producer.
const AnyPartition int32 = -1

// ByKey is the default: murmur2 of the key, as Kafka's clients do it, so that all
// records of a key go to one partition in order; records without a key go anywhere.
// When partitions are added, keys map anew.
func ByKey(r Record, n int32) int32 {
	if r.Key == nil {
		return AnyPartition
	}
	return record.PartitionOf(r.Key, n)
}

// ByRecord sends each record to its field Partition.
func ByRecord(r Record, _ int32) int32 { return r.Partition }

// ToPartition sends every record to one partition.
func ToPartition(partition int32) Partitioner {
	return func(Record, int32) int32 { return partition }
}

func partitionNotFound(topic string, partition, n int32) *Error {
	return &Error{Code: 404, Reason: ErrPartNotFound.(*Error).Reason, Outcome: OutcomeRejected,
		Description: fmt.Sprintf("topic %q has no partition %d: they are 0 to %d", topic, partition, n-1)}
}
