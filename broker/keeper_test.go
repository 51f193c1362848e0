package broker

import (
	"testing"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
)

// TestFlappingBrokerWaitsLonger: who comes back from the dead again and again has to stay for
// longer each time before anything is copied to it, up to a limit; all others don't.
func TestFlappingBrokerWaitsLonger(t *testing.T) {
	t.Parallel()
	k := newKeeper(&Broker{c: Config{DeadAfter: time.Minute, BalanceAfter: time.Second}})
	c := &config.Config{Brokers: []config.Broker{{ID: 1}, {ID: 2}}}
	k.observe(c)
	if got := k.settle(); len(got) != 0 {
		t.Errorf("%v before anything happened", got)
	}
	for n, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 8 * time.Minute} {
		for _, s := range []config.BrokerState{config.Dead, config.Active} {
			c = c.Clone()
			c.Brokers[1].State = s
			k.observe(c)
			k.observe(c)
		}
		if got := k.settle(); len(got) != 1 || got[2] != want.Milliseconds() {
			t.Errorf("return %d: %v, want %v", n+1, got, want)
		}
	}
	k.mu.Lock()
	k.returns[2] = comeback{times: 5, last: time.Now().Add(-flapMemory)}
	k.mu.Unlock()
	if got := k.settle(); len(got) != 0 {
		t.Errorf("%v a day later", got)
	}
	c = c.Clone()
	c.Brokers = c.Brokers[:1]
	k.observe(c)
	if len(k.returns) != 0 {
		t.Errorf("%v is remembered of a broker that is gone", k.returns)
	}
}
