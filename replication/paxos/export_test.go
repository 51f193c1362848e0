package paxos

// Mutants of the rules: each leaves out what one line of the algorithm asks for.
var Mutants = map[string]func(*rules){
	"a quorum is half": func(r *rules) {
		r.quorum = func(base uint64, n int) int {
			if base < firstEpoch {
				return n
			}
			return max(1, n/2)
		}
	},
	"epoch 1 by a majority": func(r *rules) { r.quorum = func(_ uint64, n int) int { return majority(n) } },
	"a read asks one":       func(r *rules) { r.readQuorum = func(uint64, int) int { return 1 } },
	"a read ignores what is half done": func(r *rules) {
		r.open = func(bool) bool { return false }
	},
	"promise any ballot":     func(r *rules) { r.promise = func(_, _ Ballot) bool { return true } },
	"accept below a promise": func(r *rules) { r.accept = func(_, _ Ballot) bool { return true } },
	"forget the vote in a promise": func(r *rules) {
		r.report = func(Accepted) Accepted { return Accepted{} }
	},
	"adopt the lowest vote": func(r *rules) {
		r.adopt = func(found, best Accepted) bool {
			return !found.Ballot.None() && (best.Ballot.None() || found.Ballot.Compare(best.Ballot) < 0)
		}
	},
	"adopt nothing": func(r *rules) { r.adopt = func(_, _ Accepted) bool { return false } },
	"vote without the epoch before": func(r *rules) {
		r.follows = func(in *Message, newest *Entry) bool { return in.Epoch > newest.Epoch }
		r.based = func(epoch uint64, _ Hash, newest *Entry) bool { return epoch > newest.Epoch }
	},
	"learn without the epoch before": func(r *rules) {
		r.links = func(e, newest *Entry) bool { return e.Epoch > newest.Epoch }
	},
	"every broker is on the council": func(r *rules) {
		r.council = func(base, _ *Facts) []Member { return base.Members }
	},
	"the proposed council decides": func(r *rules) {
		r.council = func(_, proposed *Facts) []Member { return proposed.Council }
	},
	"a wiped disk votes under its old name": func(r *rules) {
		r.same = func(member, voter Member) bool { return member.ID == voter.ID }
	},
	"a stale read authorises a change": func(r *rules) {
		r.based = func(uint64, Hash, *Entry) bool { return true }
	},
	"a ballot is used again": func(r *rules) { r.round = func(seen uint64) uint64 { return max(1, seen) } },
}

// NewMutant makes machines that break a rule.
func NewMutant(name string) func(Options) (*Machine, error) {
	mutate := Mutants[name]
	return func(o Options) (*Machine, error) {
		m, err := New(o)
		if m != nil {
			mutate(&m.rules)
		}
		return m, err
	}
}
