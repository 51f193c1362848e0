package broker

import (
	"fmt"
	"slices"

	"github.com/parleymq/parley/replication"
	"github.com/parleymq/parley/replication/epoch/config"
)

// stepKind is what a partition's leader does next to bring the Raft group in line with the
// newest epoch.
type stepKind uint8

const (
	stepDone     stepKind = iota // the members are those that the epoch wants
	stepWait                     // for what step.why says
	stepAdd                      // as a non-voting member
	stepPromote                  // to a voter
	stepTransfer                 // the leadership, to step.replica
	stepRemove                   // a member
	stepRenew                    // Raft has banned the replica's id: an epoch has to give a fresh one
)

func (k stepKind) String() string {
	switch k {
	case stepDone:
		return "done"
	case stepWait:
		return "wait"
	case stepAdd:
		return "add"
	case stepPromote:
		return "promote"
	case stepTransfer:
		return "transfer"
	case stepRemove:
		return "remove"
	case stepRenew:
		return "renew"
	}
	return "none"
}

// step is one such step.
type step struct {
	kind    stepKind
	replica config.Replica
	phase   string // for people: what the move is about
	why     string
}

// moveView is what a step follows from.
type moveView struct {
	part    *config.Partition      // as the newest epoch has it
	members replication.Membership // as Raft has committed it
	self    uint64                 // the replica that leads
	room    bool                   // one more replica may be copied
	opened  func(config.Replica) bool
	caught  func(config.Replica) bool // it has what the leader had a moment ago
}

// nextStep is the order in which a partition moves:
//
//  1. Non-voting members that nobody wants are removed; they count for nothing.
//  2. Replicas that are wanted are added as non-voting members, and promoted once they
//     have caught up.
//  3. While there are more voters than before and after the move, or when all that are wanted
//     are voters, one that isn't wanted is removed: the dead ones first, and the leader
//     only after it has handed over.
//
// Nothing is promoted or removed unless a majority of the voters that there are then is
// live: the leader itself, and those that are in sync.
func nextStep(v *moveView) step {
	wanted := v.part.Wanted()
	byID := map[uint64]config.Replica{}
	for _, r := range v.part.Running() {
		byID[r.ID] = r
	}
	named := func(id uint64) config.Replica {
		if r, ok := byID[id]; ok {
			return r
		}
		return config.Replica{ID: id} // of an epoch that is over
	}
	isWanted := func(id uint64) bool {
		return slices.ContainsFunc(wanted, func(r config.Replica) bool { return r.ID == id })
	}
	for _, id := range ordered(v.members.NonVoting) {
		if !isWanted(id) {
			return step{kind: stepRemove, replica: named(id), phase: phaseRemoving}
		}
	}
	var extra, missing []config.Replica
	for _, id := range ordered(v.members.Voters) {
		if !isWanted(id) {
			extra = append(extra, named(id))
		}
	}
	for _, r := range wanted {
		if _, ok := v.members.Voters[r.ID]; !ok {
			missing = append(missing, r)
		}
	}
	most := max(len(wanted), len(v.part.Replicas))
	if len(extra) > 0 && (len(missing) == 0 || len(v.members.Voters) > most) {
		return v.removal(extra, wanted, byID)
	}
	if len(missing) == 0 {
		return step{kind: stepDone}
	}
	return v.addition(missing, byID)
}

// removal removes one voter.
func (v *moveView) removal(extra, wanted []config.Replica, byID map[uint64]config.Replica) step {
	slices.SortStableFunc(extra, func(a, b config.Replica) int { return v.rank(a) - v.rank(b) })
	out := extra[0]
	if out.ID == v.self {
		for _, r := range wanted {
			if _, voter := v.members.Voters[r.ID]; voter && v.caught(r) {
				return step{kind: stepTransfer, replica: r, phase: phaseLeading}
			}
		}
		return step{kind: stepWait, replica: out, phase: phaseLeading, why: "the leader leaves, and no replica that stays is in sync"}
	}
	live, all := v.live(byID, out.ID)
	if live <= all/2 {
		return step{kind: stepWait, replica: out, phase: phaseRemoving,
			why: fmt.Sprintf("without replica %d only %d of %d voters are live", out.ID, live, all)}
	}
	return step{kind: stepRemove, replica: out, phase: phaseRemoving}
}

// rank orders who is removed: who isn't live, who is, who leads.
func (v *moveView) rank(r config.Replica) int {
	switch {
	case r.ID == v.self:
		return 2
	case r.Broker != 0 && v.caught(r):
		return 1
	}
	return 0
}

// addition brings one wanted replica a step further: the first one that can go on.
func (v *moveView) addition(missing []config.Replica, byID map[uint64]config.Replica) step {
	wait := step{kind: stepDone}
	for _, r := range missing {
		s := v.admit(r, byID)
		if s.kind != stepWait {
			return s
		}
		// Of those that wait the one that is being copied is worth telling.
		if wait.kind == stepDone || wait.phase != phaseCopying && s.phase == phaseCopying {
			wait = s
		}
	}
	return wait
}

func (v *moveView) admit(r config.Replica, byID map[uint64]config.Replica) step {
	if _, banned := v.members.Removed[r.ID]; banned {
		return step{kind: stepRenew, replica: r, phase: phaseAdding, why: "its id was removed from the Raft group before"}
	}
	if _, added := v.members.NonVoting[r.ID]; !added {
		switch {
		case !v.opened(r):
			return step{kind: stepWait, replica: r, phase: phaseAdding, why: "its broker has not opened it"}
		case !v.room:
			return step{kind: stepWait, replica: r, phase: phaseWaiting, why: "as many replicas as may be copied at once are being copied"}
		}
		return step{kind: stepAdd, replica: r, phase: phaseAdding}
	}
	if !v.caught(r) {
		return step{kind: stepWait, replica: r, phase: phaseCopying, why: "it is catching up"}
	}
	live, all := v.live(byID, 0)
	if live, all = live+1, all+1; live <= all/2 { // it would be one of them
		return step{kind: stepWait, replica: r, phase: phasePromoting, why: fmt.Sprintf("with it only %d of %d voters would be live", live, all)}
	}
	return step{kind: stepPromote, replica: r, phase: phasePromoting}
}

// live counts the voters without one of them, and those that can be relied on.
func (v *moveView) live(byID map[uint64]config.Replica, without uint64) (live, all int) {
	for id := range v.members.Voters {
		if id == without {
			continue
		}
		all++
		if r, ok := byID[id]; id == v.self || ok && v.caught(r) {
			live++
		}
	}
	return live, all
}

// ordered lists ids, so that steps don't depend on a map's order.
func ordered(members map[uint64]string) []uint64 {
	ids := make([]uint64, 0, len(members))
	for id := range members {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Phases of a move, as they are told.
const (
	phaseWaiting   = "waiting"
	phaseAdding    = "adding"
	phaseCopying   = "copying"
	phasePromoting = "promoting"
	phaseLeading   = "handing over"
	phaseRemoving  = "removing"
	phaseFinishing = "finishing"
)
