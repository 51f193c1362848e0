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

// TestMembersLeaveKeysFree: with many keys, members together leave a third of them free, so that what is next in the log lies side by
// side for whoever comes; a member that has its part waits for a good piece of it, rather than to go on with its own keys far ahead.
// Acks that are to make room for it are urgent.
func TestMembersLeaveKeysFree(t *testing.T) {
	t.Parallel()
	s, d, e := keyedDispatcher(t)
	const keys, part = 6000, 6000 * 5 / (6 * 2)
	hashes := make([]uint64, 3*keys)
	for i := range hashes {
		hashes[i] = uint64(i%keys) + 1
	}
	d.Advance(int64(len(hashes)))
	for d.Hungry() {
		d.Feed(hashes[d.Cursor():])
	}
	d.Wait("a", 1)
	d.Wait("b", 1)
	take := func(member string) Delivery {
		t.Helper()
		ds := d.Take(nil, member, 4096, 0)
		if len(ds) > 1 {
			t.Fatalf("%s: %+v lie apart", member, ds)
		}
		if len(ds) == 0 {
			return Delivery{First: 0, Last: -1}
		}
		return ds[0]
	}
	a, b := take("a"), take("b")
	if a.First != 0 || a.Last != part-1 || b.First != part || b.Last != 2*part-1 {
		t.Fatalf("a %+v, b %+v, want %d each", a, b, part)
	}
	ack := func(first, last int64) {
		t.Helper()
		if refused := d.Ack(nil, "a", []AckItem{{Kind: Ack, First: first, Last: last, Token: a.Token}}, 0); len(refused) > 0 {
			t.Fatal(refused)
		}
	}
	ack(0, part/8)
	if more := take("a"); more.Last >= more.First {
		t.Fatalf("a goes on with %+v before the acks are committed", more)
	}
	if !d.Urgent(keys) {
		t.Fatal("a waits for its acks, and nobody hurries")
	}
	commit := func(index uint64) {
		t.Helper()
		e.Reset(nil)
		d.Change(e, "g", 0, 0)
		if _, err := s.Apply(Context{Index: index, Next: int64(len(hashes))}, e.Bytes()); err != nil {
			t.Fatal(err)
		}
		d.Applied(index, 0)
	}
	commit(2)
	if more := take("a"); more.Last >= more.First {
		t.Fatalf("a gets %+v, a few at a time", more)
	}
	ack(part/8+1, part/2)
	commit(3)
	if more := take("a"); more.First != 2*part || more.Last != 2*part+part/2 {
		t.Fatalf("a goes on with %+v", more)
	}
	// Few keys are all given.
	_, d, _ = keyedDispatcher(t)
	d.Advance(1000)
	d.Feed(hashes[:1000])
	d.Wait("b", 1)
	if a = take("a"); a.Last != 499 { // its share, as b has none
		t.Fatalf("%+v", a)
	}
	if b = take("b"); b.Last != 999 {
		t.Fatalf("%+v", b)
	}
}

func keyedDispatcher(t *testing.T) (*State, *Dispatcher, *Entry) {
	t.Helper()
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
	return s, d, e
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
