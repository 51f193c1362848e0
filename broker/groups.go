package broker

import "sync/atomic"

// groups is what a broker keeps of consumer groups: nothing that would matter after a
// restart. The groups themselves are in the partitions.
type groups struct {
	requests atomic.Int32  // of members under way, those apart that wait
	turn     atomic.Uint64 // moves plain clients' requests from partition to partition
	hops     atomic.Uint64 // names what is asked of other brokers for plain clients
	letters  deadLetters
}
