package broker_test

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymq/parley/broker"
	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// TestTwoOperators: two operators move one partition at the same moment, by the same broker and by two, or when a replica that the other one
// wants is about to be added. The later epoch holds, its operator is told what it replaced, the history has both, and of the other move
// nothing is left.
func TestTwoOperators(t *testing.T) {
	t.Parallel()
	var hook atomic.Pointer[func(step string)]
	c := brokertest.StartCluster(t, 4, quickTrash, unkept, func(c *broker.Config) {
		c.OnMoveStep = func(_ string, _ int32, step string) {
			if h := hook.Load(); h != nil {
				(*h)(step)
			}
		}
	})
	createOn(t, c, "t", "b1", "b2", "b3")
	load := brokertest.StartLoad(t, c.URLs(), "t", 2)
	load.More(50)
	for _, round := range []struct {
		asked [2]string // brokers
		to    [2][]string
		at    string // step of the first one's move, before which the second one comes; "": at once
	}{
		{[2]string{"b1", "b3"}, [2][]string{{"b1", "b2", "b4"}, {"b4", "b2", "b3"}}, ""},
		{[2]string{"b2", "b2"}, [2][]string{{"b3", "b1", "b2"}, {"b4", "b1", "b3"}}, ""},
		{[2]string{"b3", "b4"}, [2][]string{{"b2", "b3", "b4"}, {"b2", "b3", "b4"}}, ""},
		{[2]string{"b2", "b4"}, [2][]string{{"b2", "b3", "b1"}, {"b2", "b4", "b3"}}, "add"},
	} {
		before := c.Partition("t", 0)
		var res [2]wire.PartitionChange
		var errs [2]error
		var asking sync.WaitGroup
		there, asked := make(chan struct{}), make(chan struct{})
		if round.at == "" {
			close(there)
		} else {
			once := func(step string) {
				if step == round.at {
					hook.Store(nil)
					close(there)
					<-asked
				}
			}
			hook.Store(&once)
		}
		for i := range res {
			api := c.Member(round.asked[i]).API()
			asking.Go(func() {
				if i == 1 {
					defer close(asked)
					select {
					case <-there:
					case <-time.After(brokertest.Wait):
						t.Errorf("no step %s was taken", round.at)
					}
				}
				res[i], errs[i] = api.PartitionMove(t.Context(), wire.MoveRequest{Topic: "t", To: round.to[i]})
			})
		}
		asking.Wait()
		first, last := 0, 1
		if errs[1] != nil || errs[0] == nil && res[0].Epoch > res[1].Epoch || res[0].Change == "unchanged" {
			first, last = 1, 0
		}
		moved := res[first].Change == "moving"
		switch same := slices.Equal(round.to[0], round.to[1]); {
		case errs[last] != nil:
			t.Fatalf("%v: %v, %v", round, errs[0], errs[1])
		case errs[first] != nil: // they share an epoch
			if want := "has partition t/0 move to " + strings.Join(round.to[last], ","); same || !strings.Contains(errs[first].Error(), want) || res[last].Change != "moving" {
				t.Errorf("told is %v and %+v", errs[first], res[last])
			}
		case same:
			if change := res[last].Change; !moved || change != "unchanged" && (change != "moving" || res[first].Epoch != res[last].Epoch) {
				t.Errorf("both want the same, and are told %+v and %+v", res[first], res[last])
			}
		default:
			if res[first].Epoch == res[last].Epoch || !moved || res[last].Change != "moving" {
				t.Errorf("told is %+v and %+v", res[first], res[last])
			}
			if !strings.Contains(res[last].Detail, "replaces the move to "+strings.Join(round.to[first], ",")) {
				through := false // before the other one came
				for n := res[first].Epoch + 1; n < res[last].Epoch; n++ {
					e, err := c.Brokers[0].API().EpochShow(t.Context(), wire.EpochRequest{Epoch: &n})
					through = through || err == nil && strings.Contains(e.Change, "has moved to")
				}
				if !through {
					t.Errorf("who replaced %v by %v is told %q", round.to[first], round.to[last], res[last].Detail)
				}
			}
			for i := range res {
				n := res[i].Epoch
				e, err := c.Brokers[1].API().EpochShow(t.Context(), wire.EpochRequest{Epoch: &n})
				if err != nil || !strings.Contains(e.Change, "t/0 is to move to "+strings.Join(round.to[i], ",")) {
					t.Errorf("epoch %d says %q, %v", n, e.Change, err)
				}
			}
		}
		c.Moved("t")
		if got := c.Describe("t").Partitions[0].Replicas; !slices.Equal(got, round.to[last]) {
			t.Errorf("from %v it was to move to %v, and then to %v: it is on %v", before.Replicas, round.to[first], round.to[last], got)
		}
		load.More(20)
		clean(t, c, "t")
		agree(t, c, "t")
	}
	load.Check(c.URLs())
}
