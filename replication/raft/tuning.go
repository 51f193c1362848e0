package raft

import (
	_ "unsafe" // for go:linkname
)

// Dragonboat makes each replica's queues as long as they may ever get, some 500 KiB. Its lengths are
// settings that it reads from a file in the directory that the process starts in, before anybody
// could set them otherwise: not for a broker that is embedded, or started by a script. So they are
// set where it keeps them (ADR 0106). Should a newer version keep them elsewhere, the names below are
// variables of nobody, which hold 0, and nothing is changed: TestQueuesAreShort tells.

//go:linkname receiveQueueLength github.com/lni/dragonboat/v4.receiveQueueLen
var receiveQueueLength uint64

//go:linkname proposalQueueLength github.com/lni/dragonboat/v4.incomingProposalsMaxLen
var proposalQueueLength uint64

//go:linkname readIndexQueueLength github.com/lni/dragonboat/v4.incomingReadIndexMaxLen
var readIndexQueueLength uint64

//go:linkname proposalShards github.com/lni/dragonboat/v4.pendingProposalShards
var proposalShards uint64

// What dragonboat has, and what a partition needs: at most a few proposals and
// barriers are under way at once (partition.maxInFlight), each as large as one likes. A
// full queue of messages loses some, as the network may; of proposals and
// barriers it is ErrBusy.
var queueLengths = []struct {
	of       *uint64
	was, new uint64
}{
	{&receiveQueueLength, 1024, 256},
	{&proposalQueueLength, 2048, 128},
	{&readIndexQueueLength, 4096, 256},
	{&proposalShards, 16, 2},
}

// Dragonboat's packages are ready by now, and no replica is.
func init() {
	for _, q := range queueLengths {
		if *q.of == q.was {
			*q.of = q.new
		}
	}
}
