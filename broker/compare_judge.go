package broker

import (
	"fmt"
	"slices"
	"strings"
)

// ballot is what one replica says of something that all replicas should have alike.
type ballot struct {
	Broker  uint64 `json:"broker"`
	Replica uint64 `json:"replica"`
	Digest  string `json:"digest"`
	// Odd says which of its own records the replica contradicts; "" none.
	Odd string `json:"odd,omitempty"`
}

// judgement is what ballots come to.
type judgement struct {
	same bool   // those that were asked have the same, and none contradicts itself
	good string // the digest of the majority; "" there is none
	bad  []ballot
}

// judge decides by majority: of all the replicas that there are, voters, not just of those that could be asked, or
// two that are wrong in one way would be the majority of three while two of five are away. Those that contradict
// themselves are wrong where the others are enough, and don't count for a majority. Without
// one nobody is wrong, as nobody knows who is.
func judge(all []ballot, voters int) judgement {
	j := judgement{same: true}
	good := map[string]int{}
	for _, v := range all {
		if v.Digest != all[0].Digest || v.Odd != "" {
			j.same = false
		}
		if v.Odd == "" {
			good[v.Digest]++
		}
	}
	if j.same {
		return j
	}
	for digest, n := range good {
		if n > voters/2 {
			j.good = digest
		}
	}
	if j.good == "" {
		return j
	}
	for _, v := range all {
		if v.Digest != j.good || v.Odd != "" {
			j.bad = append(j.bad, v)
		}
	}
	return j
}

// ballotText lists who has what.
func ballotText(all []ballot, name func(uint64) string) string {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b ballot) int { return strings.Compare(name(a.Broker), name(b.Broker)) })
	var parts []string
	for _, v := range sorted {
		text := name(v.Broker) + " has " + v.Digest
		if v.Odd != "" {
			text += fmt.Sprintf(" (%s)", v.Odd)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}
