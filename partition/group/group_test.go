package group

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// However members come and go: even to within one, nobody gives up more than that takes, and it is the same everywhere.
func TestAssignIsEvenAndSticky(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		owner := make([]int32, 1+rng.IntN(70))
		for p := range owner {
			owner[p] = -1
		}
		members := 0
		for range 20 {
			before := slices.Clone(owner)
			if members > 0 && rng.IntN(2) == 0 { // one leaves, those behind it move up
				gone := int32(rng.IntN(members))
				for p := range before {
					if before[p] == gone {
						before[p] = -1
					} else if before[p] > gone {
						before[p]--
					}
				}
				members--
			} else {
				members++
			}
			owner = slices.Clone(before)
			Assign(owner, members)
			again := slices.Clone(before)
			Assign(again, members)
			if !slices.Equal(owner, again) {
				t.Fatalf("seed %d: %v and %v", seed, owner, again)
			}
			if members == 0 {
				continue
			}
			has, had, kept := make([]int, members), make([]int, members), make([]int, members)
			for p := range owner {
				if owner[p] < 0 {
					t.Fatalf("seed %d: nobody has partition %d", seed, p)
				}
				has[owner[p]]++
				if before[p] >= 0 {
					had[before[p]]++
					if before[p] == owner[p] {
						kept[owner[p]]++
					}
				}
			}
			if slices.Max(has)-slices.Min(has) > 1 {
				t.Fatalf("seed %d: %v", seed, has)
			}
			for m := range has {
				// Who has less than before keeps only what it had; who hasn't keeps all.
				if kept[m] != min(has[m], had[m]) {
					t.Fatalf("seed %d: member %d had %d, has %d, kept %d", seed, m, had[m], has[m], kept[m])
				}
			}
			// As few as can be: whoever had more than the higher share gave up the difference only.
			moved, least := 0, 0
			odd := len(owner) % members
			slices.SortFunc(had, func(a, b int) int { return b - a })
			for i, h := range had {
				share := len(owner) / members
				if i < odd {
					share++
				}
				least += max(0, h-share)
			}
			for p := range owner {
				if before[p] >= 0 && before[p] != owner[p] {
					moved++
				}
			}
			if moved != least {
				t.Fatalf("seed %d: %d partitions moved, %d would do", seed, moved, least)
			}
		}
	}
}

// One member takes all keys while another waits: the other gets its share as soon as keys come free.
func TestNoMemberStarvesForKeys(t *testing.T) {
	t.Parallel()
	s := NewState()
	var e Entry
	o := Options{Mode: KeyOrdered}.WithDefaults(KeyOrdered)
	e.Reset(nil)
	e.Make("g", &o, 0)
	e.Open("g")
	index := uint64(1)
	if _, err := s.Apply(Context{Index: index}, e.Bytes()); err != nil {
		t.Fatal(err)
	}
	d, _ := NewDispatcher(s, "g", 0, 0, 0)
	got := map[string]int{}
	hand := map[string][][]Delivery{} // pulls not acked yet
	queue := []string{"a"}            // pulls that wait, as the partition serves them
	d.Wait("a", 1)
	for turn := range 200 {
		now := int64(turn)
		d.Advance(d.next + 40)
		for d.Hungry() {
			h := make([]uint64, d.next-d.Cursor())
			for i := range h {
				h[i] = uint64(d.Cursor()+int64(i))%4 + 1
			}
			d.Feed(h)
		}
		if turn == 10 {
			queue = append(queue, "b")
			d.Wait("b", 1)
		}
		for i := 0; i < len(queue); {
			m := queue[i]
			ds := d.Take(nil, m, 20, now)
			if len(ds) == 0 {
				i++
				continue
			}
			for _, v := range ds {
				got[m] += int(v.Last - v.First + 1)
			}
			queue = slices.Delete(queue, i, i+1)
			d.Wait(m, -1)
			hand[m] = append(hand[m], ds)
		}
		// Each asks for more before it acks what it has, so that its keys are never free by themselves.
		for _, m := range []string{"a", "b"} {
			if len(hand[m]) > 0 && !slices.Contains(queue, m) {
				queue = append(queue, m)
				d.Wait(m, 1)
			}
			if len(hand[m]) > 1 || len(hand[m]) == 1 && turn%3 == 0 {
				for _, v := range hand[m][0] {
					if refused := d.Ack(nil, m, []AckItem{{Kind: Ack, First: v.First, Last: v.Last, Token: v.Token}}, now); len(refused) > 0 {
						t.Fatal(refused)
					}
				}
				hand[m] = hand[m][1:]
			}
		}
		e.Reset(nil)
		d.Change(&e, "g", now, 0)
		index++
		if _, err := s.Apply(Context{Index: index, Next: d.next}, e.Bytes()); err != nil {
			t.Fatal(err)
		}
		d.Applied(index, now)
	}
	if got["a"] < 500 || got["b"] < 500 {
		t.Fatalf("%v", got)
	}
}

func FuzzApply(f *testing.F) {
	var e Entry
	e.Reset(nil)
	o := Options{Mode: Shared, BackoffMS: []int64{1}}.WithDefaults(Shared)
	e.Make("g", &o, 3)
	e.Open("g")
	e.Grant("x", 1, "m", 2)
	e.Commit("x", 1, 5, true)
	e.Move("g", 3)
	e.Delete("x")
	e.Forget("g")
	f.Add(e.Bytes())
	c := NewCoordinator(NewState(), "g", 0)
	c.Join(NewState(), &Join{Group: "g", Member: Member{ID: "m"}, Partitions: 3, Options: o}, 0)
	e.Reset(nil)
	c.Change(NewState(), &e)
	f.Add(e.Bytes())
	d := decoderSeed()
	e.Reset(nil)
	d.Change(&e, "g", 0, 0)
	f.Add(e.Bytes())
	f.Fuzz(func(t *testing.T, body []byte) {
		s := NewState()
		for i := range 2 {
			results, err := s.Apply(Context{Index: uint64(i + 1), LogTime: 5, Start: 2, Next: 100}, body)
			if err == nil && len(results)%ResultSize != 0 {
				t.Fatalf("results of %d bytes", len(results))
			}
		}
		enc := s.Encode(nil)
		back, err := DecodeState(enc)
		if err != nil {
			t.Fatalf("its own state: %v", err)
		}
		if again := back.Encode(nil); !bytes.Equal(enc, again) {
			t.Fatalf("%x\n%x", enc, again)
		}
	})
}

// decoderSeed is a dispatcher with acks and naks to commit.
func decoderSeed() *Dispatcher {
	s := NewState()
	var e Entry
	o := Options{Mode: Shared}.WithDefaults(Shared)
	e.Reset(nil)
	e.Make("g", &o, 0)
	e.Open("g")
	if _, err := s.Apply(Context{Index: 1, Next: 100}, e.Bytes()); err != nil {
		panic(err)
	}
	d, _ := NewDispatcher(s, "g", 100, 0, 0)
	d.Take(nil, "m", 50, 0)
	d.Ack(nil, "m", []AckItem{
		{Kind: Ack, First: 3, Last: 5, Token: 1}, {Kind: Nak, First: 7, Last: 8, Token: 1, DelayMS: 5}, {Kind: Term, First: 9, Last: 9, Token: 1, Reason: "r"},
	}, 0)
	return d
}

func FuzzDecodeState(f *testing.F) {
	w := newWorld(1, KeyOrdered, "")
	w.elect()
	for range 300 {
		w.step()
	}
	f.Add(w.state.Encode(nil))
	f.Add(NewState().Encode(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(b)
		if err != nil {
			return
		}
		s.Trim(7)
		if _, err := DecodeState(s.Encode(nil)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLimitsAreTold(t *testing.T) {
	t.Parallel()
	s := NewState()
	var e Entry
	o := Options{}.WithDefaults(Exclusive)
	for i := range MaxGroups + 1 {
		e.Reset(nil)
		e.Make(fmt.Sprint("g", i), &o, 0)
		results, err := s.Apply(Context{Index: uint64(i + 1)}, e.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if code, _, _ := Result(results, 0); (code == Full) != (i == MaxGroups) {
			t.Fatalf("group %d: code %d", i, code)
		}
	}
	for _, bad := range []Options{
		{Mode: 9}, {SessionMS: 5}, {SessionMS: MaxSessionMS + 1}, {AckWaitMS: -1}, {BackoffMS: make([]int64, MaxBackoffSteps+1)}, {BackoffMS: []int64{-1}},
		{MaxInFlight: MaxInFlightLimit + 1}, {MaxInFlightMember: -1}, {MaxDeliveries: -1}, {DeadLetter: strings.Repeat("x", MaxText+1)}, {From: Position{Kind: AtOffset, Value: -1}},
	} {
		if bad.Check() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	for _, name := range []string{"", "a b", "ä", "a.b", strings.Repeat("x", MaxName+1)} {
		if CheckName(name) == nil {
			t.Errorf("group %q is taken", name)
		}
	}
	have := Options{Mode: Shared, AckWaitMS: 5}.WithDefaults(Shared)
	if c := have.Conflict(&Options{AckWaitMS: 6}); c != "ack_wait_ms 5, not 6" {
		t.Error(c)
	}
	if c := have.Conflict(&Options{From: Position{Kind: Latest}}); c != "" {
		t.Error(c)
	}
}

// apply applies one entry and returns its codes.
func apply(t *testing.T, s *State, index uint64, write func(e *Entry)) (codes []Code) {
	t.Helper()
	var e Entry
	e.Reset(nil)
	write(&e)
	results, err := s.Apply(Context{Index: index, LogTime: 1, Start: 0, Next: 100}, e.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(results) / ResultSize {
		c, _, _ := Result(results, i)
		codes = append(codes, c)
	}
	return codes
}

// What an entry assumed and what is no longer so changes nothing, whatever its leader thought.
func TestStateRefusesWhatIsOld(t *testing.T) {
	t.Parallel()
	s := NewState()
	x, g := Options{}.WithDefaults(Exclusive), Options{Mode: Shared}.WithDefaults(Shared)
	want := func(got []Code, want ...Code) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Fatalf("codes %v, want %v", got, want)
		}
	}
	want(apply(t, s, 1, func(e *Entry) { e.Make("x", &x, 0); e.Make("g", &g, 0); e.Make("x", &x, 50) }), OK, OK, OK)
	want(apply(t, s, 2, func(e *Entry) { e.Grant("x", 1, "a", 1); e.Grant("x", 1, "b", 2) }), OK, Lost)
	want(apply(t, s, 3, func(e *Entry) {
		e.Commit("x", 1, 5, false)
		e.Commit("x", 2, 5, false)
		e.Commit("x", 2, 4, false)
		e.Commit("x", 2, 101, true)
	}), Lost, OK, Below, Below)
	want(apply(t, s, 4, func(e *Entry) {
		e.Grant("x", 2, "b", 2)
		e.Commit("x", 2, 9, false)
		e.Commit("x", 4, 9, true)
		e.Commit("x", 4, 10, false)
	}), OK, Lost, OK, Lost)
	if l, _ := s.Lease("x"); l.Held || l.Floor != 9 || l.Token != 4 || l.Member != "b" {
		t.Fatalf("%+v", l)
	}
	want(apply(t, s, 5, func(e *Entry) { e.Open("g"); e.Open("x"); e.Open("nobody"); e.Grant("g", 5, "a", 1) }), OK, OtherMode, Absent, OtherMode)
	d, _ := NewDispatcher(s, "g", 100, 0, 0)
	d.Take(nil, "m", 50, 0)
	d.Ack(nil, "m", []AckItem{{Kind: Ack, First: 0, Last: 9, Token: 5}, {Kind: Nak, First: 20, Last: 20, Token: 5, DelayMS: -1}}, 0)
	// The reset is in the log before the acks are.
	want(apply(t, s, 6, func(e *Entry) { e.Move("g", 3); d.Change(e, "g", 0, 0) }), OK, Lost, Lost)
	if st, _ := s.Status("g", 100); st.Committed != 3 || st.Lag != 97 || st.Token != 6 {
		t.Fatalf("%+v", st)
	}
	// Reset while the lease is held: the token is old, the cursor new.
	want(apply(t, s, 7, func(e *Entry) { e.Grant("x", 4, "a", 3); e.Move("x", 2); e.Commit("x", 7, 50, false) }), OK, OK, Lost)
	want(apply(t, s, 8, func(e *Entry) { e.Delete("g"); e.Delete("g"); e.Forget("g") }), OK, Absent, Absent)
}

// What came back goes out alone: a bad record takes no other one of its key down with it.
func TestWhatCameBackGoesOutAlone(t *testing.T) {
	t.Parallel()
	s := NewState()
	o := Options{Mode: KeyOrdered, MaxDeliveries: 3}.WithDefaults(KeyOrdered)
	apply(t, s, 1, func(e *Entry) { e.Make("g", &o, 0); e.Open("g") })
	d, _ := NewDispatcher(s, "g", 4, 0, 0)
	d.Feed([]uint64{7, 7, 7, 9})
	commit := func(index uint64) { apply(t, s, index, func(e *Entry) { d.Change(e, "g", 0, 0) }); d.Applied(index, 0) }
	take := func(want ...Delivery) {
		t.Helper()
		if got := d.Take(nil, "a", 10, 0); !slices.Equal(got, want) {
			t.Fatalf("%+v, want %+v", got, want)
		}
	}
	say := func(kind AckKind, first, last int64, token uint64, want string) {
		t.Helper()
		refused := d.Ack(nil, "a", []AckItem{{Kind: kind, First: first, Last: last, Token: token}}, 0)
		if got := len(refused) > 0; got != (want != "") || got && refused[0].Reason != want {
			t.Fatalf("%+v, want %q", refused, want)
		}
	}
	take(Delivery{0, 3, 1, 1})
	say(Nak, 0, 0, 1, "")
	say(Ack, 1, 1, 1, StaleToken)
	say(Ack, 2, 2, 1, StaleToken)
	say(Ack, 3, 3, 1, "") // another key
	commit(2)
	take(Delivery{0, 0, 2, 2})
	take()
	say(Nak, 0, 0, 2, "")
	commit(3)
	take(Delivery{0, 0, 3, 3})
	say(Nak, 0, 0, 3, "") // the third time: dead
	take()
	commit(4)
	if dead := d.Dead(nil, 9); len(dead) != 1 || dead[0].Deliveries != 3 {
		t.Fatalf("%+v", dead)
	}
	take(Delivery{1, 2, 1, 4}) // not counted against them
	say(Ack, 1, 2, 4, "")
	d.Buried(0, 0)
	commit(5)
	if st, _ := s.Status("g", 4); st.Committed != 4 {
		t.Fatalf("%+v", st)
	}
}
