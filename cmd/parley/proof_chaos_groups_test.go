package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// groupModel is a broker with one partition of one group, in a few lines: what a group's audit is
// tried with. Its faults are what the audit must find.
type groupModel struct {
	rng     *rand.Rand
	keyed   bool
	fault   string
	index   uint64 // of the log
	token   uint64 // of deliveries from now on
	records []modelRecord
	leased  map[string]uint64 // exclusive: token by member, as they know it
}

type modelRecord struct {
	key    string
	holder string // "" nobody
	token  uint64
	acked  bool
}

const (
	grantTwice = "a lease is granted twice"
	ackLost    = "acks are lost when the leader changes"
	noKeyLock  = "keys are not locked"
	oldToken   = "old tokens are good"
)

func newGroupModel(seed uint64, keyed bool, fault string) *groupModel {
	m := &groupModel{rng: rand.New(rand.NewPCG(seed, 1)), keyed: keyed, fault: fault, index: 1, token: 1, leased: map[string]uint64{}}
	for range 200 {
		m.records = append(m.records, modelRecord{key: fmt.Sprint("k", m.rng.IntN(4))})
	}
	return m
}

// pull hands a record to a member; -1: there is none for it.
func (m *groupModel) pull(member string) int64 {
	for i := range m.records {
		r := &m.records[i]
		twice := m.fault == grantTwice && !m.keyed && r.holder != "" && r.holder != member && m.rng.IntN(50) == 0
		if r.acked || r.holder != "" && !twice || m.keyed && !m.free(i, member) {
			continue
		}
		r.holder, r.token = member, m.token
		return int64(i)
	}
	return -1
}

// free: no other member has a record of the key, and no earlier one waits.
func (m *groupModel) free(at int, member string) bool {
	if m.fault == noKeyLock {
		return true
	}
	for i := range m.records {
		r := &m.records[i]
		if r.key == m.records[at].key && !r.acked && (r.holder != "" && r.holder != member || i < at && r.holder == "") {
			return false
		}
	}
	return true
}

func (m *groupModel) ack(member string, offset int64, token uint64) bool {
	r := &m.records[offset]
	if m.fault == oldToken {
		r.acked = true
		return true
	}
	if r.acked || r.holder != member || r.token != token {
		return false
	}
	r.acked = true
	return true
}

// expire brings records back.
func (m *groupModel) expire(some bool) {
	m.index++
	m.token = m.index
	for i := range m.records {
		if r := &m.records[i]; !r.acked && (!some || m.rng.IntN(3) == 0) {
			r.holder = ""
		}
	}
	if !some && m.fault == ackLost {
		for i := range m.records {
			if m.rng.IntN(8) == 0 {
				m.records[i].acked, m.records[i].holder = false, ""
			}
		}
	}
}

// runShared is members that take, keep for a while, ack, and forget.
func runShared(m *groupModel, a *groupAudit, rounds int) {
	type held struct {
		member string
		offset int64
		token  uint64
	}
	var in []held
	for round := range rounds {
		member := fmt.Sprint("m", m.rng.IntN(3))
		last := round > rounds-2500 // then everything is done that is left
		switch n := m.rng.IntN(10); {
		case n < 5:
			asked := a.now()
			if off := m.pull(member); off >= 0 {
				a.delivered(asked, member, m.records[off].key, groupPlace{0, off}, m.records[off].token)
				in = append(in, held{member, off, m.records[off].token})
			}
		case n < 9 && len(in) > 0:
			i := m.rng.IntN(len(in))
			h := in[i]
			in = slices.Delete(in, i, i+1)
			if !last && m.rng.IntN(10) == 0 {
				continue // forgotten
			}
			w := a.answering(h.member, groupPlace{0, h.offset}, h.token, true)
			if m.ack(h.member, h.offset, h.token) {
				a.taken(w, true, false)
			}
		case n == 9 && m.rng.IntN(4) == 0:
			m.expire(m.rng.IntN(3) > 0)
		}
	}
}

// TestGroupAuditFinds: a model that does right passes, and each fault is found.
func TestGroupAuditFinds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		keyed  bool
		fault  string
		counts func(v groupVerdict) int64
	}{
		{false, "", nil},
		{true, "", nil},
		{false, grantTwice, func(v groupVerdict) int64 { return v.TwoLive }},
		{false, ackLost, func(v groupVerdict) int64 { return v.Undone }},
		{true, ackLost, func(v groupVerdict) int64 { return v.Undone }},
		{true, noKeyLock, func(v groupVerdict) int64 { return v.TwoLive + v.Reordered }},
		{false, oldToken, func(v groupVerdict) int64 { return v.OldToken }},
		{true, oldToken, func(v groupVerdict) int64 { return v.OldToken + v.TwoLive }},
	} {
		for seed := range uint64(20) {
			var told []string
			m := newGroupModel(seed, c.keyed, c.fault)
			a := newGroupAudit("g", c.keyed, func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) })
			runShared(m, a, 5000)
			v := a.finish([]int64{int64(len(m.records))}, nil)
			switch {
			case c.fault == "" && !v.clean():
				t.Errorf("keyed %v, seed %d: nothing is wrong: %+v\n%s", c.keyed, seed, v, strings.Join(told, "\n"))
			case c.fault != "" && c.counts(v) == 0:
				t.Errorf("keyed %v, seed %d: %s, and that is not found: %+v", c.keyed, seed, c.fault, v)
			}
		}
	}
}

// TestExclusiveAuditFinds: likewise, for leases.
func TestExclusiveAuditFinds(t *testing.T) {
	t.Parallel()
	const end = 300
	run := func(seed uint64, fault string) groupVerdict {
		rng := rand.New(rand.NewPCG(seed, 2))
		a := newGroupAudit("g", false, func(string, ...any) {})
		// Owners follow one another; a zombie comes back with its token now and then. A commit is what the
		// next owner begins at.
		cursor, token := int64(0), uint64(0)
		for cursor < end {
			old := token
			if fault != grantTwice || token == 0 {
				token++
			}
			member := fmt.Sprint("m", rng.IntN(100))
			at := cursor
			if fault == ackLost && rng.IntN(3) == 0 {
				at = min(cursor+3, end-1) // what was not handled counts as committed
			}
			n := int64(1 + rng.IntN(20))
			for ; n > 0 && at < end; n-- {
				a.handled(member, groupPlace{0, at}, token)
				at++
			}
			if rng.IntN(3) > 0 {
				cursor = at // else the next one does it again
			}
			if old > 0 && rng.IntN(2) == 0 {
				superseded := a.superseded(0, old)
				if fault == oldToken {
					a.committed(0, old, superseded)
				}
			}
		}
		return a.finish([]int64{end}, nil)
	}
	for seed := range uint64(20) {
		if v := run(seed, ""); !v.clean() || v.Handled != end {
			t.Errorf("seed %d: nothing is wrong: %+v", seed, v)
		}
		if v := run(seed, grantTwice); v.TwoLive == 0 {
			t.Errorf("seed %d: %s: %+v", seed, grantTwice, v)
		}
		if v := run(seed, ackLost); v.Unhandled == 0 {
			t.Errorf("seed %d: records are skipped: %+v", seed, v)
		}
		if v := run(seed, oldToken); v.OldToken == 0 {
			t.Errorf("seed %d: %s: %+v", seed, oldToken, v)
		}
	}
}

// TestGroupAuditCountsLetters: what was ended is a dead letter, once, and nothing else is.
func TestGroupAuditCountsLetters(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		letters map[groupPlace]int
		wrong   int64
	}{
		"right":            {map[groupPlace]int{{0, 1}: 1, {0, 2}: 1}, 0},
		"lost":             {map[groupPlace]int{{0, 2}: 1}, 1},
		"twice":            {map[groupPlace]int{{0, 1}: 2, {0, 2}: 1}, 1},
		"acked":            {map[groupPlace]int{{0, 0}: 1, {0, 1}: 1, {0, 2}: 1}, 1},
		"never heard of":   {map[groupPlace]int{{0, 1}: 1, {0, 2}: 1, {0, 9}: 1}, 1},
		"unknown and lost": {map[groupPlace]int{{0, 1}: 1}, 1},
	} {
		a := newGroupAudit("g", false, func(string, ...any) {})
		for off := range int64(3) {
			a.delivered(a.now(), "m", "", groupPlace{0, off}, 1)
		}
		a.taken(a.answering("m", groupPlace{0, 0}, 1, true), true, false)
		a.taken(a.answering("m", groupPlace{0, 1}, 1, true), true, true)
		a.unknown(a.answering("m", groupPlace{0, 2}, 1, true))
		if v := a.finish([]int64{3}, c.letters); v.Letters+v.Unhandled != c.wrong {
			t.Errorf("%s: %+v", what, v)
		}
	}
}
