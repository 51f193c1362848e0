package broker

import (
	"testing"

	"github.com/parleymq/parley/broker/interest"
	"github.com/parleymq/parley/replication/epoch/config"
)

// FuzzSubjectRules: what an epoch accepts can be bound. An epoch that a broker
// can't carry out would be worse than a refused request.
func FuzzSubjectRules(f *testing.F) {
	for _, pair := range [][2]string{{"a.*.b", "a.>"}, {"a", "a.b"}, {"orders.*", "orders.>"}, {"a.$x", "a.*"}, {"é.ü", "é.*"}} {
		f.Add(pair[0], pair[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if config.CheckTopicName(a) == nil && config.CheckSubject(a) != nil {
			t.Fatalf("%q is a topic's name and no subject", a)
		}
		if config.CheckSubject(a) != nil || config.CheckSubject(b) != nil {
			return
		}
		if !interest.ValidFilter(a) {
			t.Fatalf("%q is accepted and can't be bound", a)
		}
		var bindings interest.Bindings[int]
		if err := bindings.Bind(a, 1); err != nil {
			t.Fatal(err)
		}
		if err := bindings.Bind(b, 2); (err != nil) != config.SubjectsOverlap(a, b) {
			t.Fatalf("%q and %q: overlap %v, bind says %v", a, b, config.SubjectsOverlap(a, b), err)
		}
	})
}
