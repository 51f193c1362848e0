package raft

import (
	"net"
	"sync"
	"time"
)

const (
	// complainEvery is how often one remote host, or one peer that is dialled,
	// gets a log line; what comes in between is counted in the next.
	complainEvery = 10 * time.Second
	// maxComplaints bounds how many hosts are told apart; beyond it they share a line.
	maxComplaints = 256
)

// complaints keeps what strangers do from filling the log.
type complaints struct {
	mu    sync.Mutex
	of    map[string]*complaint
	clock func() time.Time // time.Now but in tests
}

type complaint struct {
	last    time.Time
	skipped int
}

func newComplaints() *complaints {
	return &complaints{of: make(map[string]*complaint), clock: time.Now}
}

// due says whether a line about who is due, and how many were left out since the
// last one.
func (c *complaints) due(who string) (skipped int, ok bool) {
	now := c.clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.of[who]
	if k == nil {
		if len(c.of) >= maxComplaints {
			c.sweep(now)
		}
		if len(c.of) >= maxComplaints {
			who = "" // everybody else
			k = c.of[who]
		}
		if k == nil {
			c.of[who] = &complaint{last: now}
			return 0, true
		}
	}
	if now.Sub(k.last) < complainEvery {
		k.skipped++
		return 0, false
	}
	skipped, k.skipped, k.last = k.skipped, 0, now
	return skipped, true
}

func (c *complaints) sweep(now time.Time) {
	for who, k := range c.of {
		if now.Sub(k.last) >= complainEvery {
			delete(c.of, who)
		}
	}
}

// remoteHost is a link's other end without its port, which changes with each try.
func remoteHost(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}
