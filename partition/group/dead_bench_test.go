package group

import (
	"fmt"
	"testing"
)

// One operation is to look for 64 dead letters and to set them aside, beside so many that are set aside already and as many
// that are not: what that costs doesn't depend on how many there are.
func BenchmarkDead(b *testing.B) {
	for _, others := range []int64{1 << 10, 1 << 14, 1 << 17} {
		b.Run(fmt.Sprint(others), func(b *testing.B) {
			d := &Dispatcher{}
			// In runs of two, as records that failed for reasons of their own.
			reasons := []string{"one", "another"}
			for o := range 2 * others {
				d.slots.set(o, o, slot{state: dead, deliveries: 5, reason: reasons[o/2%2]})
				if o < others {
					d.aside.set(o, o, struct{}{})
				} else {
					d.dead.set(o, o, struct{}{})
				}
			}
			var letters []DeadLetter
			b.ReportAllocs()
			for b.Loop() {
				letters = d.Dead(letters[:0], 64)
				if len(letters) != 32 {
					b.Fatal(len(letters))
				}
				first, last := letters[0].First, letters[len(letters)-1].Last
				d.SetAside(first, last)
				letters = d.Aside(letters[:0], first, 64)
				d.aside.clear(first, last) // back, for the next turn
				d.dead.set(first, last, struct{}{})
			}
		})
	}
}
