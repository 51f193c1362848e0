package group

import (
	"fmt"
	"testing"
)

// TestSecondAnswer: an answer that comes while another one of the same delivery is on its way to the log is taken only if what
// it asks for is what happens, for the members and for any later leader, who knows only what is in the log.
func TestSecondAnswer(t *testing.T) {
	t.Parallel()
	const ackWait, expires = 100, AckKind(0)
	names := map[AckKind]string{expires: "expiry", Ack: "ack", Nak: "nak", Term: "term"}
	for _, mode := range []Mode{Shared, KeyOrdered} {
		for _, most := range []int32{1, 5} { // dead by the first failure, or not
			for _, first := range []AckKind{expires, Ack, Nak, Term} {
				for _, second := range []AckKind{Ack, Nak, Term} {
					for _, sent := range []bool{false, true} { // the entry of the first is in flight
						t.Run(fmt.Sprintf("%s, at most %d, %s, %s, sent %v", mode, most, names[first], names[second], sent), func(t *testing.T) {
							o := Options{Mode: mode, AckWaitMS: ackWait, MaxDeliveries: most}.WithDefaults(mode)
							s, e := NewState(), &Entry{}
							commit := func(index uint64) {
								t.Helper()
								if _, err := s.Apply(Context{Index: index, Next: 2}, e.Bytes()); err != nil {
									t.Fatal(err)
								}
								e.Reset(nil)
							}
							e.Reset(nil)
							e.Make("g", &o, 0)
							e.Open("g")
							commit(1)
							d, _ := NewDispatcher(s, "g", 2, 0, 0)
							feed := func() {
								if mode == KeyOrdered {
									d.Feed([]uint64{7, 8}[d.Cursor():])
								}
							}
							feed()
							if got := d.Take(nil, "a", 2, 0); len(got) != 1 || got[0].Last != 1 {
								t.Fatalf("%+v", got)
							}
							say := func(k AckKind) bool {
								return len(d.Ack(nil, "a", []AckItem{{Kind: k, First: 1, Last: 1, Token: 1}}, 1)) == 0
							}
							if first == expires {
								d.Tick(ackWait)
							} else if !say(first) {
								t.Fatalf("%s is refused", names[first])
							}
							if sent {
								d.Change(e, "g", 1, 1)
							}
							taken := say(second)
							if !sent {
								d.Change(e, "g", 1, 1)
							}
							if d.Changed() {
								t.Error("the second answer changes something")
							}
							commit(2)
							d.Applied(2, 1)
							// What a leader knows that begins with a checkpoint.
							s, err := DecodeState(s.Encode(nil))
							if err != nil {
								t.Fatal(err)
							}
							e.Open("g")
							if _, err := s.Apply(Context{Index: 3, Next: 2}, e.Bytes()); err != nil {
								t.Fatal(err)
							}
							d, _ = NewDispatcher(s, "g", 2, 10*ackWait, 10*ackWait)
							feed()
							dead := len(d.Dead(nil, 1)) == 1
							done := s.groups["g"].isDone(1, 1)
							again := false
							for _, v := range d.Take(nil, "b", 2, 1000*ackWait) {
								again = again || v.Last == 1
							}
							if n := btoi(dead) + btoi(done) + btoi(again); n != 1 {
								t.Fatalf("dead %v, handled %v, delivered again %v", dead, done, again)
							}
							want := second == Ack && done || second == Term && dead || second == Nak && !done
							if taken != want {
								t.Errorf("taken %v, want %v: dead %v, handled %v, delivered again %v", taken, want, dead, done, again)
							}
						})
					}
				}
			}
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
