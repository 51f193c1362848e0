package group

import "testing"

// TestKeyWaitsForAnswers: one take hands out several records of a key, the next one none before those are
// answered: the answer to the first may have been lost, and its member would get later records without the earlier ones.
func TestKeyWaitsForAnswers(t *testing.T) {
	t.Parallel()
	s := NewState()
	o := Options{Mode: KeyOrdered}.WithDefaults(KeyOrdered)
	e := &Entry{}
	e.Reset(nil)
	e.Make("g", &o, 0)
	e.Open("g")
	if _, err := s.Apply(Context{Index: 1}, e.Bytes()); err != nil {
		t.Fatal(err)
	}
	d, _ := NewDispatcher(s, "g", 0, 0, 0)
	d.Advance(6)
	d.Feed([]uint64{7, 7, 8, 7, 8, 7})
	offsets := func(member string, most int) (all []int64) {
		for _, v := range d.Take(nil, member, most, 0) {
			for off := v.First; off <= v.Last; off++ {
				all = append(all, off)
			}
		}
		return all
	}
	equal := func(what string, got []int64, want ...int64) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("%s: %v, want %v", what, got, want)
			}
		}
	}
	ack := func(member string, first, last int64) {
		t.Helper()
		if refused := d.Ack(nil, member, []AckItem{{Kind: Ack, First: first, Last: last, Token: 1}}, 0); len(refused) > 0 {
			t.Fatal(refused)
		}
	}
	equal("one take, two of the key", offsets("a", 2), 0, 1)
	equal("the next take has another key, all of it", offsets("a", 10), 2, 4)
	equal("nothing more", offsets("a", 10))
	equal("nor for another member", offsets("b", 10))
	ack("a", 0, 0)
	equal("one is not answered yet", offsets("a", 10))
	ack("a", 1, 1)
	equal("answered, and the key is still the member's", offsets("b", 10))
	equal("its owner goes on", offsets("a", 1), 3)
	equal("and waits again", offsets("a", 10))
	if refused := d.Ack(nil, "", []AckItem{{Kind: Return, First: 3, Last: 3, Token: 1}}, 0); len(refused) > 0 {
		t.Fatal(refused)
	}
	equal("given back, it is the first again", offsets("a", 10), 3, 5)
}

// TestAckRepeatedToANewLeader: the ack was committed, its answer lost with the leader. Who repeats it hears that the
// record is done, whether or not the new leader has looked at the record's key.
func TestAckRepeatedToANewLeader(t *testing.T) {
	t.Parallel()
	for _, mode := range []Mode{Shared, KeyOrdered} {
		s := NewState()
		o := Options{Mode: mode}.WithDefaults(mode)
		apply := func(index uint64, write func(e *Entry)) {
			t.Helper()
			e := &Entry{}
			e.Reset(nil)
			write(e)
			out, err := s.Apply(Context{Index: index, Next: 4}, e.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			for i := range len(out) / ResultSize {
				if code, _, ok := Result(out, i); !ok || code != OK {
					t.Fatalf("entry %d: %d", index, code)
				}
			}
		}
		apply(1, func(e *Entry) { e.Make("g", &o, 0); e.Open("g") })
		d, _ := NewDispatcher(s, "g", 0, 0, 0)
		d.Advance(4)
		if mode == KeyOrdered {
			d.Feed([]uint64{1, 2, 3, 4})
		}
		d.Take(nil, "a", 4, 0)
		item := []AckItem{{Kind: Ack, First: 2, Last: 2, Token: 1}}
		if refused := d.Ack(nil, "a", item, 0); len(refused) > 0 {
			t.Fatal(refused)
		}
		apply(2, func(e *Entry) { d.Change(e, "g", 0, 0) })
		for leader := range uint64(3) { // older and older
			apply(3+leader, func(e *Entry) { e.Open("g") })
			d, _ = NewDispatcher(s, "g", 4, 0, 0)
			if refused := d.Ack(nil, "a", item, 0); len(refused) != 1 || refused[0].Reason != AlreadyDone {
				t.Errorf("%s: %+v", mode, refused)
			}
		}
	}
}
