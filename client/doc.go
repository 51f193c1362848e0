// Package client is the Go SDK of Parley.
//
// Connect opens a Client. From it come the administrative calls (CreateTopic,
// DescribeTopic, …), Producers that publish to a topic and Readers that read
// one:
//
//	c, err := client.Connect(ctx, "nats://127.0.0.1:4222")
//	…
//	p, err := c.NewProducer(ctx, "orders")
//	ack, err := p.Publish(ctx, client.Record{Key: []byte("k"), Value: []byte("v")})
//	…
//	r, err := c.NewReader(ctx, "orders", client.FromEarliest(), client.UntilEnd())
//	for m, err := range r.Messages(ctx) { … }
//
// # What holds
//
// An Ack means that a majority of the partition's replicas has the record on
// disk, fsynced. Within one Producer and one partition, records are stored in
// the order in which they were sent, each at most once, however often a batch
// had to be sent again. A broker that restarts or a connection that breaks is
// no error: calls wait and try again until the context ends or the give-up time
// has passed. A failure that remains is an *Error (see errors.go) whose Outcome
// says whether the record may be in the log after all.
//
// # Concurrency
//
// A Client and a Producer may be used by any number of goroutines. A Reader is
// for one goroutine at a time; its Close may be called from any.
package client
