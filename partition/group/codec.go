package group

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/parleymq/parley/replication/format"
)

// ErrMalformed: bytes that no version of this package wrote, or a newer one.
var ErrMalformed = errors.New("malformed group data")

// decoder reads what the append functions below wrote and remembers the first error.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("cut short")
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) flag() bool {
	v := d.byte()
	if v > 1 {
		d.fail("flag %d", v)
	}
	return v == 1
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("number cut short")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// int reads a number from 0 to 2^63-1.
func (d *decoder) int() int64 {
	v := d.uint()
	if v > 1<<63-1 {
		d.fail("number %d", v)
		return 0
	}
	return int64(v)
}

func (d *decoder) limited(what string, most int64) int64 {
	v := d.int()
	if v > most {
		d.fail("%s %d, at most %d", what, v, most)
		return 0
	}
	return v
}

func (d *decoder) string() string {
	n := int(d.limited("text of", MaxText))
	if n > len(d.b) {
		d.fail("text cut short")
		return ""
	}
	v := string(d.b[:n])
	d.b = d.b[n:]
	return v
}

func appendUint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }
func appendInt(b []byte, v int64) []byte   { return binary.AppendUvarint(b, uint64(v)) }

func appendFlag(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendString(b []byte, s string) []byte {
	s = s[:min(len(s), MaxText)]
	return append(appendUint(b, uint64(len(s))), s...)
}

func appendOptions(b []byte, o *Options) []byte {
	b = append(b, byte(o.Mode), byte(o.From.Kind))
	b = appendInt(b, max(o.From.Value, 0))
	b = appendInt(b, o.SessionMS)
	b = appendInt(b, o.AckWaitMS)
	b = appendInt(b, int64(o.MaxDeliveries))
	b = appendInt(b, int64(len(o.BackoffMS)))
	for _, ms := range o.BackoffMS {
		b = appendInt(b, ms)
	}
	b = appendInt(b, int64(o.MaxInFlight))
	b = appendInt(b, int64(o.MaxInFlightMember))
	b = appendString(b, o.DeadLetter)
	return appendInt(b, int64(o.Partitions))
}

func (d *decoder) options() (o Options) {
	o.Mode, o.From.Kind, o.From.Value = Mode(d.byte()), PositionKind(d.byte()), d.int()
	o.SessionMS, o.AckWaitMS, o.MaxDeliveries = d.int(), d.int(), int32(d.limited("deliveries", 1<<31-1))
	if n := d.limited("back-off steps", MaxBackoffSteps); n > 0 {
		o.BackoffMS = make([]int64, n)
		for i := range o.BackoffMS {
			o.BackoffMS[i] = d.int()
		}
	}
	o.MaxInFlight = int32(d.limited("in flight", MaxInFlightLimit))
	o.MaxInFlightMember = int32(d.limited("in flight of a member", MaxInFlightLimit))
	o.DeadLetter = d.string()
	o.Partitions = int32(d.limited("partitions", MaxPartitions))
	if d.err == nil && (o.Mode < Exclusive || o.Mode > KeyOrdered) {
		d.fail("mode %d", o.Mode)
	}
	return o
}

func appendMember(b []byte, m *Member) []byte {
	for _, s := range []string{m.ID, m.Name, m.Host, m.Version} {
		b = appendString(b, s)
	}
	return b
}

func (d *decoder) member() Member {
	return Member{ID: d.string(), Name: d.string(), Host: d.string(), Version: d.string()}
}

// appendBack writes what came back, without its offsets and the entry that says so.
func appendBack(b []byte, v *back) []byte {
	b = appendInt(b, int64(v.deliveries))
	b = appendInt(b, v.notBefore)
	b = appendFlag(b, v.dead)
	if v.dead {
		b = appendString(b, v.reason)
	}
	return b
}

func (d *decoder) back() (v back) {
	v.deliveries, v.notBefore, v.dead = int32(d.limited("deliveries", 1<<31-1)), d.int(), d.flag()
	if v.dead {
		v.reason = d.string()
	}
	return v
}

// Version 1 of the state: docs/format/groups.md.
const stateVersion = 1

// Encode appends the state as checkpoints and snapshots hold it. Equal states give equal bytes.
func (s *State) Encode(b []byte) []byte {
	b = append(b, stateVersion)
	groups, anchors := 0, 0
	names := s.Names()
	for _, n := range names {
		if s.groups[n] != nil {
			groups++
		}
		if s.anchors[n] != nil {
			anchors++
		}
	}
	b = appendInt(b, int64(groups))
	for _, n := range names {
		if g := s.groups[n]; g != nil {
			b = g.encode(appendString(b, n))
		}
	}
	b = appendInt(b, int64(anchors))
	for _, n := range names {
		if a := s.anchors[n]; a != nil {
			b = a.encode(appendString(b, n))
		}
	}
	return b
}

func (g *groupState) encode(b []byte) []byte {
	b = appendOptions(b, &g.options)
	b = appendUint(b, g.token)
	b = appendUint(b, g.void)
	b = appendUint(b, g.opened)
	b = appendUint(b, g.before)
	b = appendInt(b, g.floor)
	b = appendString(b, g.lease.member)
	b = appendUint(b, g.lease.generation)
	b = appendFlag(b, g.lease.held)
	// Runs as distances, so that most take two or three bytes.
	b = appendInt(b, int64(g.done.count))
	at := g.floor
	g.done.all(func(r runOf[struct{}]) bool {
		b = appendInt(b, r.first-at)
		b = appendInt(b, r.last-r.first)
		at = r.last
		return true
	})
	b = appendInt(b, int64(g.back.count))
	at = g.floor
	g.back.all(func(r runOf[back]) bool {
		b = appendInt(b, r.first-at)
		b = appendInt(b, r.last-r.first)
		b = appendBack(appendUint(b, r.v.entry), &r.v)
		at = r.last
		return true
	})
	return b
}

func (a *anchorState) encode(b []byte) []byte {
	b = appendOptions(b, &a.options)
	b = appendUint(b, a.generation)
	b = appendInt(b, a.changed)
	b = appendInt(b, int64(a.partitions))
	b = appendInt(b, int64(len(a.members)))
	for i := range a.members {
		m := &a.members[i]
		b = appendMember(b, &m.Member)
		b = appendInt(b, m.JoinedMS)
		b = appendInt(b, int64(len(m.Partitions)))
		for _, p := range m.Partitions {
			b = appendInt(b, int64(p))
		}
	}
	return b
}

// maxRuns is far above what MaxHoles and MaxInFlightLimit let come about.
const maxRuns = 1 << 20

// DecodeState reads what Encode wrote.
func DecodeState(b []byte) (*State, error) {
	d := &decoder{b: b}
	s := NewState()
	if v := d.byte(); v > stateVersion {
		return nil, format.Newer("the state of groups", "version", uint64(v), stateVersion)
	} else if d.err == nil && v != stateVersion {
		return nil, fmt.Errorf("%w: state of version %d", ErrMalformed, v)
	}
	last := ""
	name := func(i int64) string {
		n := d.string()
		if err := CheckName(n); d.err == nil && err != nil {
			d.fail("%v", err)
		}
		if i > 0 && n <= last {
			d.fail("group %q after %q", n, last)
		}
		last = n
		return n
	}
	n := d.limited("groups", MaxGroups)
	for i := int64(0); i < n && d.err == nil; i++ {
		id := name(i)
		s.groups[id] = d.group()
	}
	n = d.limited("anchors", MaxGroups)
	for i := int64(0); i < n && d.err == nil; i++ {
		id := name(i)
		s.anchors[id] = d.anchor()
	}
	if len(d.b) > 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	if d.err != nil {
		return nil, fmt.Errorf("decode groups: %w", d.err)
	}
	if !bytes.Equal(s.Encode(make([]byte, 0, len(b))), b) {
		return nil, fmt.Errorf("decode groups: %w: it is not as it would be written", ErrMalformed)
	}
	return s, nil
}

func (d *decoder) group() *groupState {
	g := &groupState{options: d.options(), token: d.uint(), void: d.uint(), opened: d.uint(), before: d.uint(), floor: d.int()}
	g.lease = leaseState{member: d.string(), generation: d.uint(), held: d.flag()}
	at := g.floor
	span := func(i int64) (first, last int64) {
		step, more := d.int(), d.int()
		if first = at + step; first < at || first+more < first || first+more >= 1<<62 || i > 0 && step == 0 {
			d.fail("run at %d%+d%+d", at, step, more)
			return 0, 0
		}
		at = first + more
		return first, at
	}
	n := d.limited("runs", maxRuns)
	for i := int64(0); i < n && d.err == nil; i++ {
		if first, last := span(i); d.err == nil {
			g.done.set(first, last, struct{}{})
		}
	}
	at = g.floor
	n = d.limited("runs", maxRuns)
	for i := int64(0); i < n && d.err == nil; i++ {
		first, last := span(i)
		entry := d.uint()
		v := d.back()
		if v.entry = entry; d.err == nil {
			g.back.set(first, last, v)
		}
	}
	return g
}

func (d *decoder) anchor() *anchorState {
	a := &anchorState{options: d.options(), generation: d.uint(), changed: d.int(), partitions: int32(d.limited("partitions", MaxPartitions))}
	n := d.limited("members", MaxMembers)
	for i := int64(0); i < n && d.err == nil; i++ {
		m := MemberStatus{Member: d.member(), JoinedMS: d.int()}
		k := d.limited("partitions of a member", MaxPartitions)
		for j := int64(0); j < k && d.err == nil; j++ {
			m.Partitions = append(m.Partitions, int32(d.limited("partition", MaxPartitions)))
		}
		a.members = append(a.members, m)
	}
	return a
}
