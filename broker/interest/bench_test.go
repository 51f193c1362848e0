package interest

import (
	"fmt"
	"testing"
)

type nullSink struct{}

func (nullSink) Deliver(*Subscription, *Message) bool { return true }

func benchmarkRoute(b *testing.B, subject string, filters ...string) {
	r := NewRouter()
	for _, f := range filters {
		if err := r.Subscribe(&Subscription{Subject: f, Sink: nullSink{}}); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 1000 { // others, so that the trie is not empty
		if err := r.Subscribe(&Subscription{Subject: fmt.Sprintf("other.%d.*", i), Sink: nullSink{}}); err != nil {
			b.Fatal(err)
		}
	}
	p := r.Publisher()
	m := &Message{Subject: []byte(subject)}
	p.Route(m, nil)
	p.Route(m, nil)
	b.ReportAllocs()
	for b.Loop() {
		if p.Route(m, nil) != len(filters) {
			b.Fatal("not delivered")
		}
	}
}

func BenchmarkRouteOne(b *testing.B) { benchmarkRoute(b, "orders.eu.new", "orders.eu.new") }

func BenchmarkRouteWildcards(b *testing.B) {
	benchmarkRoute(b, "orders.eu.new", "orders.*.new", "orders.>", "*.eu.*", ">")
}

func BenchmarkRouteThousand(b *testing.B) {
	filters := make([]string, 1000)
	for i := range filters {
		filters[i] = "orders.eu.new"
	}
	benchmarkRoute(b, "orders.eu.new", filters...)
}

// BenchmarkRouteReply: every message to another subject, as replies go.
func BenchmarkRouteReply(b *testing.B) {
	r := NewRouter()
	for i := range 1000 {
		if err := r.Subscribe(&Subscription{Subject: fmt.Sprintf("_INBOX.%d.*", i), Sink: nullSink{}}); err != nil {
			b.Fatal(err)
		}
	}
	p := r.Publisher()
	subject := []byte("_INBOX.500.00000000")
	m := &Message{Subject: subject}
	b.ReportAllocs()
	for b.Loop() {
		for i := len(subject) - 1; ; i-- {
			if subject[i]++; subject[i] <= '9' {
				break
			}
			subject[i] = '0'
		}
		if p.Route(m, nil) != 1 {
			b.Fatal("not delivered")
		}
	}
}

func BenchmarkRouterRouteParallel(b *testing.B) {
	r := NewRouter()
	if err := r.Subscribe(&Subscription{Subject: "a.b", Sink: nullSink{}}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		m := &Message{Subject: []byte("a.b")}
		for pb.Next() {
			r.Route(m, nil)
		}
	})
}

func BenchmarkBindingsLookup(b *testing.B) {
	var bound Bindings[int]
	for i := range 1000 {
		for _, f := range []string{"topic%d", "topic%d.>"} {
			if err := bound.Bind(fmt.Sprintf(f, i), i); err != nil {
				b.Fatal(err)
			}
		}
	}
	subject := []byte("topic77.eu.new")
	b.ReportAllocs()
	for b.Loop() {
		if v, ok := bound.Lookup(subject); !ok || v != 77 {
			b.Fatal("not found")
		}
	}
}
