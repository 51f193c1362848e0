package paxos

// rules are the decisions that the safety of everything rests on, each a function
// of its own: tests break one at a time and see that the simulator notices.
type rules struct {
	// quorum of n acceptors that decides on the epoch after base.
	quorum func(base uint64, n int) int
	// readQuorum is how many of n acceptors a read has to hear.
	readQuorum func(base uint64, n int) int
	// promise: may an acceptor promise b?
	promise func(b, promised Ballot) bool
	// accept: may an acceptor vote at b?
	accept func(b, promised Ballot) bool
	// report is what a promise tells of the acceptor's last vote.
	report func(Accepted) Accepted
	// adopt: does found take the place of best as the value to propose?
	adopt func(found, best Accepted) bool
	// follows: may an acceptor at newest handle a message about in.Epoch?
	follows func(in *Message, newest *Entry) bool
	// links: may e be learned after newest?
	links func(e, newest *Entry) bool
	// council whose votes decide on what is proposed after base.
	council func(base, proposed *Facts) []Member
	// same: is the voter who the council's member is?
	same func(member, voter Member) bool
	// based: is a value with this epoch and previous hash planned on newest?
	based func(epoch uint64, previous Hash, newest *Entry) bool
	// open: must a read that found these votes finish what they began?
	open func(found bool) bool
	// round of the next ballot, above every round that was seen.
	round func(seen uint64) uint64
}

func majority(n int) int { return n/2 + 1 }

// quorumOf: epoch 1 needs everybody, since a disk that was wiped before it votes
// again under a name that epoch 0 can't tell from the old one.
func quorumOf(base uint64, n int) int {
	if base < firstEpoch {
		return n
	}
	return majority(n)
}

var paxosRules = rules{
	quorum:     quorumOf,
	readQuorum: quorumOf,
	// Equal is a repeated message of the one proposer that owns the ballot.
	promise: func(b, promised Ballot) bool { return b.Compare(promised) >= 0 },
	accept:  func(b, promised Ballot) bool { return b.Compare(promised) >= 0 },
	report:  func(a Accepted) Accepted { return a },
	adopt:   func(found, best Accepted) bool { return found.Ballot.Compare(best.Ballot) > 0 },
	follows: func(in *Message, newest *Entry) bool {
		return in.Epoch == newest.Epoch+1 && in.Previous == newest.Hash
	},
	links: func(e, newest *Entry) bool {
		return e.Epoch == newest.Epoch+1 && e.Previous == newest.Hash
	},
	council: func(base, _ *Facts) []Member { return base.Council },
	same:    Member.names,
	based: func(epoch uint64, previous Hash, newest *Entry) bool {
		return epoch == newest.Epoch+1 && previous == newest.Hash
	},
	open:  func(found bool) bool { return found },
	round: func(seen uint64) uint64 { return seen + 1 },
}
