package nats

import "sync/atomic"

// Stats of a front end. Counters only grow, the first two apart.
type Stats struct {
	Connections   int64 // now
	Subscriptions int64 // now

	Accepted      uint64 // connections ever
	Refused       uint64 // over the limit of connections
	InMsgs        uint64
	InBytes       uint64 // payloads and headers
	OutMsgs       uint64
	OutBytes      uint64
	SlowConsumers uint64 // cut
	Stalls        uint64 // times that a producer waited for a congested consumer
	AuthErrors    uint64 // failed or late authentications, missing TLS
	Violations    uint64 // permission errors
	ParseErrors   uint64 // connections closed for what they sent
	Stale         uint64 // connections closed for unanswered pings
}

type counters struct {
	connections, subscriptions atomic.Int64

	accepted, refused, inMsgs, inBytes, outMsgs, outBytes, slowConsumers, stalls,
	authErrors, violations, parseErrors, stale atomic.Uint64
}

func (c *counters) read() Stats {
	return Stats{
		Connections:   c.connections.Load(),
		Subscriptions: c.subscriptions.Load(),
		Accepted:      c.accepted.Load(),
		Refused:       c.refused.Load(),
		InMsgs:        c.inMsgs.Load(),
		InBytes:       c.inBytes.Load(),
		OutMsgs:       c.outMsgs.Load(),
		OutBytes:      c.outBytes.Load(),
		SlowConsumers: c.slowConsumers.Load(),
		Stalls:        c.stalls.Load(),
		AuthErrors:    c.authErrors.Load(),
		Violations:    c.violations.Load(),
		ParseErrors:   c.parseErrors.Load(),
		Stale:         c.stale.Load(),
	}
}

func (c *counters) lost(e *protocolError) {
	switch e.kind {
	case kindParse:
		c.parseErrors.Add(1)
	case kindAuth:
		c.authErrors.Add(1)
	case kindStale:
		c.stale.Add(1)
	}
}
