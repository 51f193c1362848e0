package group

import "testing"

func benchGroup(b *testing.B, mode Mode) (*State, *Dispatcher, *Entry) {
	b.Helper()
	s := NewState()
	o := Options{Mode: mode}.WithDefaults(mode)
	e := &Entry{}
	e.Reset(nil)
	e.Make("g", &o, 0)
	e.Open("g")
	if _, err := s.Apply(Context{Index: 1}, e.Bytes()); err != nil {
		b.Fatal(err)
	}
	d, ok := NewDispatcher(s, "g", 0, 0, 0)
	if !ok {
		b.Fatal("no dispatcher")
	}
	return s, d, e
}

// One operation is one record, from Take to the applied ack: four members pull 256 at a time, acks of eight pulls make
// one entry.
func BenchmarkDeliverAndAck(b *testing.B) {
	for _, mode := range []Mode{Shared, KeyOrdered} {
		b.Run(mode.String(), func(b *testing.B) {
			s, d, e := benchGroup(b, mode)
			members := []string{"a", "b", "c", "d"}
			var ds []Delivery
			var items []AckItem
			hashes := make([]uint64, 8192)
			next, index := int64(0), uint64(1)
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; {
				next += 2048
				d.Advance(next)
				for d.Hungry() {
					n := min(len(hashes), int(next-d.Cursor()))
					for i := range n {
						hashes[i] = uint64((d.Cursor()+int64(i))*7919)%10_000 + 1
					}
					d.Feed(hashes[:n])
				}
				for turn := range 8 {
					m := members[turn%4]
					ds = d.Take(ds[:0], m, 256, int64(done)/1000)
					items = items[:0]
					for _, v := range ds {
						done += int(v.Last - v.First + 1)
						items = append(items, AckItem{Kind: Ack, First: v.First, Last: v.Last, Token: v.Token})
					}
					if refused := d.Ack(nil, m, items, int64(done)/1000); len(refused) > 0 {
						b.Fatal(refused)
					}
				}
				e.Reset(e.Bytes()[:0])
				d.Change(e, "g", int64(done)/1000, 0)
				index++
				if _, err := s.Apply(Context{Index: index, Next: next}, e.Bytes()); err != nil {
					b.Fatal(err)
				}
				d.Applied(index, int64(done)/1000)
			}
		})
	}
}

// One operation is one record of a plain client: pulled and acked alone, a thousand in flight.
func BenchmarkDeliverAndAckSingly(b *testing.B) {
	for _, mode := range []Mode{Shared, KeyOrdered} {
		b.Run(mode.String(), func(b *testing.B) {
			s, d, e := benchGroup(b, mode)
			var ds, out []Delivery
			hashes := make([]uint64, 1024)
			next, index := int64(0), uint64(1)
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; {
				next += 1024
				d.Advance(next)
				for d.Hungry() {
					for i := range hashes {
						hashes[i] = uint64((d.Cursor()+int64(i))*7919)%10_000 + 1
					}
					d.Feed(hashes[:next-d.Cursor()])
				}
				out = out[:0]
				for range 1024 {
					ds = d.Take(ds[:0], "a", 1, int64(done)/1000)
					out = append(out, ds...)
				}
				for i := range out {
					v := out[(i*389)%len(out)]
					it := [1]AckItem{{Kind: Ack, First: v.First, Last: v.Last, Token: v.Token}}
					if refused := d.Ack(nil, "a", it[:], int64(done)/1000); len(refused) > 0 {
						b.Fatal(refused)
					}
					done++
				}
				e.Reset(e.Bytes()[:0])
				d.Change(e, "g", int64(done)/1000, 0)
				index++
				if _, err := s.Apply(Context{Index: index, Next: next}, e.Bytes()); err != nil {
					b.Fatal(err)
				}
				d.Applied(index, int64(done)/1000)
			}
		})
	}
}
