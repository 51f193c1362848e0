package raft

import (
	"flag"
	"syscall"
	"testing"
	"time"
)

// go test ./replication/raft -run TestIdle -v -idle.logs 1000
var (
	idleLogs      = flag.Int("idle.logs", 0, "logs of TestIdle; 0 leaves it out")
	idleHeartbeat = flag.Uint64("idle.heartbeat", 1, "heartbeat ticks")
)

// What many logs on three hosts cost while nothing happens.
func TestIdle(t *testing.T) {
	if *idleLogs == 0 {
		t.Skip("give -idle.logs")
	}
	start := time.Now()
	c := newTrio(t, *idleLogs)
	for {
		n := 0
		for i := range c.logs {
			if _, l := c.leader(i); l != nil {
				n++
			}
		}
		if n == c.logs {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("%d logs led after %v", c.logs, time.Since(start))
	<-time.After(5 * time.Second)
	before, terms := cpu(t), c.terms()
	const span = 15 * time.Second
	<-time.After(span)
	t.Logf("tick %v, heartbeat %d ticks: %.1f %% of a core for each of the three hosts, %d elections", *failoverTick, *idleHeartbeat,
		float64(cpu(t)-before)/float64(span)/3*100, c.terms()-terms)
}

func cpu(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
