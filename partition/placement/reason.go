package placement

import "fmt"

// Code says in a word why something changes or can't.
type Code string

const (
	CodeNew    Code = "new"    // the partition has no replica yet
	CodeGrow   Code = "grow"   // it has fewer than it wants
	CodeShrink Code = "shrink" // it has more than it wants
	CodeDead   Code = "dead"   // the broker is dead, or no longer known
	CodeDrain  Code = "drain"  // the broker is to be emptied
	CodeRack   Code = "rack"   // replicas crowd in one rack
	CodeOver   Code = "over"   // a broker holds or leads more than its upper bound
	CodeUnder  Code = "under"  // a broker holds or leads less than its lower bound
	CodeLeft   Code = "left"   // the preferred leader has no replica any more, or can't lead

	CodeNoMajority Code = "no_majority" // held: too few voters are live for any change
	CodeDeferred   Code = "deferred"    // held: must wait until the plan's moves are done
	CodeNoBroker   Code = "no_broker"   // held: no other broker can take it
)

// Reason explains one line of a plan.
type Reason struct {
	Code Code
	Text string // a clause for people: names, figures and bounds
}

// cause is a reason before anybody asked for its text.
type cause struct {
	code       Code
	subject    *Broker // nil when the broker is unknown or none is meant
	id         uint64  // of the subject
	have, want int
	what       string // what is counted
}

func (c cause) reason() Reason {
	name := fmt.Sprintf("broker %d", c.id)
	if c.subject != nil {
		name = c.subject.label()
	}
	r := Reason{Code: c.code}
	switch c.code {
	case CodeNew:
		r.Text = "the partition is new"
	case CodeGrow:
		r.Text = fmt.Sprintf("the partition has %d of %d replicas", c.have, c.want)
	case CodeShrink:
		r.Text = fmt.Sprintf("the partition has %d replicas and wants %d", c.have, c.want)
	case CodeDead:
		r.Text = name + " is dead"
		if c.subject == nil {
			r.Text = name + " is no longer in the cluster"
		}
	case CodeDrain:
		r.Text = name + " is draining"
		if c.subject.State == Active {
			r.Text = name + " has weight 0"
		}
	case CodeRack:
		r.Text = fmt.Sprintf("rack %q holds %d of the replicas, another with room holds %d", c.subject.Rack, c.have, c.want)
	case CodeOver:
		r.Text = fmt.Sprintf("%s has %d %s, above its upper bound of %d", name, c.have, c.what, c.want)
	case CodeUnder:
		r.Text = fmt.Sprintf("%s has %d %s, below its lower bound of %d", name, c.have, c.what, c.want)
	case CodeLeft:
		r.Text = name + " can't lead the partition any more"
	case CodeNoMajority:
		r.Text = fmt.Sprintf("%d of its voters are live; any change needs %d", c.have, c.want)
	case CodeDeferred:
		r.Text = name + " stays until other voters are live or replaced"
	case CodeNoBroker:
		r.Text = fmt.Sprintf("%d replicas are on brokers that take them, %d are wanted; no other broker can take one", c.have, c.want)
	}
	return r
}
