package client_test

import (
	"context"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
)

// go test ./client -run TestManyMembers -group.members 1000
var groupMembers = flag.Int("group.members", 200, "how many members TestManyMembers has")

// Many members of one group on a broker: all join, everything is handled once, all leave.
func TestManyMembers(t *testing.T) {
	t.Parallel()
	b := brokertest.Start(t)
	c := connect(t, b.URL())
	ctx, cancel := context.WithTimeout(context.Background(), brokertest.Wait+time.Duration(*groupMembers)*brokertest.Wait/100)
	t.Cleanup(cancel)
	const records = 2000
	createTopic(t, c, "jobs", 4)
	seen := newTally()
	members := make([]*client.Subscription, *groupMembers)
	each := func(f func(i int) error) {
		t.Helper()
		began := time.Now()
		var wg sync.WaitGroup
		for i := range members {
			wg.Go(func() {
				if err := f(i); err != nil {
					t.Error(err)
				}
			})
		}
		if wg.Wait(); t.Failed() {
			t.FailNow()
		}
		t.Logf("%d members: %v", len(members), time.Since(began))
	}
	each(func(i int) (err error) {
		members[i], err = c.Subscribe(ctx, "jobs", "g", func(_ context.Context, m *client.Message) error { seen.see(m, ""); return nil },
			client.Mode(client.Shared), client.MemberName(fmt.Sprint("m", i)))
		return err
	})
	publishKeys(t, c, "jobs", 0, records, 100)
	if d := groupDone(t, c, "jobs", "g"); len(d.Members) != len(members) {
		t.Errorf("%d members are known, want %d", len(d.Members), len(members))
	}
	each(func(i int) error { return members[i].Close(ctx) })
	// One whose goodbye was not heard in time goes with its session.
	brokertest.Eventually(t, "no member is left", func() bool { return len(groupDone(t, c, "jobs", "g").Members) == 0 })
	seen.check(t, records, true)
}
