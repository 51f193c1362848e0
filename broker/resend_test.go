package broker_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// plainLoad is a plain NATS client that publishes numbered records, many of them under way at once.
type plainLoad struct {
	name string
	nc   *nats.Conn
	mu   sync.Mutex
	room *sync.Cond
	sent int
	at   []time.Time   // when each was sent
	acks map[int]int64 // number to offset; -1: its outcome isn't known, -2: it was given up
	bad  []string
}

// plainUnderway is so much that new records come while others are refused.
const plainUnderway = 1000

func startPlain(t *testing.T, name string, nc *nats.Conn, topic string, more func() bool, wg *sync.WaitGroup) *plainLoad {
	t.Helper()
	l := &plainLoad{name: name, nc: nc, acks: map[int]int64{}}
	l.room = sync.NewCond(&l.mu)
	inbox := nats.NewInbox()
	sub, err := nc.Subscribe(inbox+".*", func(m *nats.Msg) {
		number, _ := strconv.Atoi(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:])
		var ack wire.PubAck
		var failure struct{ Error *wire.Error }
		_ = json.Unmarshal(m.Data, &failure)
		err := json.Unmarshal(m.Data, &ack)
		l.mu.Lock()
		defer l.mu.Unlock()
		_, twice := l.acks[number]
		offset := ack.Offset
		switch e := failure.Error; {
		case err != nil || twice:
			l.bad = append(l.bad, fmt.Sprintf("record %d: %s (answered before: %v)", number, m.Data, twice))
		case e == nil:
		case e.Outcome == wire.OutcomeUnknown: // Raft elects where nobody asked it to when the machine is busy
			offset = -1
		case e.Retriable && time.Since(l.at[number]) > resendFor:
			offset = -2
		default:
			l.bad = append(l.bad, fmt.Sprintf("record %d, %v after it was sent: %s", number, time.Since(l.at[number]), m.Data))
			offset = -2
		}
		l.acks[number] = offset
		l.room.Broadcast()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	wg.Go(func() {
		pace := time.NewTicker(200 * time.Microsecond)
		defer pace.Stop()
		for more() {
			<-pace.C
			l.mu.Lock()
			for l.sent-len(l.acks) >= plainUnderway {
				l.room.Wait()
			}
			n := l.sent
			l.sent++
			l.at = append(l.at, time.Now())
			l.mu.Unlock()
			if err := nc.PublishRequest(topic, inbox+"."+strconv.Itoa(n), fmt.Appendf(nil, "%s/%d", name, n)); err != nil {
				t.Errorf("publish %d: %v", n, err)
				return
			}
		}
	})
	return l
}

func (l *plainLoad) answered() (sent, answered int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent, len(l.acks)
}

// resendFor is for how long a broker sends a publish again: broker/resend.go.
const resendFor = 5 * time.Second

// TestPlainClientsSeeNoTransfer: leadership moves from broker to broker under load of plain clients, one at each broker. None
// of them is told to try again; every record is there once, where its ack said, and in its client's order.
func TestPlainClientsSeeNoTransfer(t *testing.T) {
	t.Parallel()
	c := brokertest.StartCluster(t, 3)
	createR3(t, c, "t", 1)
	var stop sync.Once
	stopped := make(chan struct{})
	more := func() bool {
		select {
		case <-stopped:
			return false
		default:
			return true
		}
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { stop.Do(func() { close(stopped) }); wg.Wait() })
	var loads []*plainLoad
	for _, m := range c.Brokers {
		loads = append(loads, startPlain(t, m.Name, m.Connect(), "t", more, &wg))
	}
	admin := c.Brokers[0].Connect()
	for round := range 6 {
		to := c.Brokers[round%3].Name
		var res wire.PartitionChange
		brokertest.Eventually(t, "a transfer to "+to, func() bool {
			return brokertest.Call(admin, wire.APIPartitionTransfer, wire.PartitionTransfer{Topic: "t", To: to}, &res) == nil
		})
		for _, l := range loads { // the load goes on under each of them
			_, before := l.answered()
			brokertest.Eventually(t, "more acks", func() bool { _, n := l.answered(); return n >= before+100 })
		}
	}
	stop.Do(func() { close(stopped) })
	wg.Wait()
	for _, l := range loads {
		brokertest.Eventually(t, "all answered", func() bool { sent, n := l.answered(); return n == sent })
	}
	all, err := brokertest.ReadAll(admin, "t", 0)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int64{}
	last := map[string]int{}
	disorder, twice := 0, 0
	for offset, r := range all {
		if _, is := at[string(r.Value)]; is {
			twice++
		}
		at[string(r.Value)] = int64(offset)
		name, number, _ := strings.Cut(string(r.Value), "/")
		n, _ := strconv.Atoi(number)
		if before, is := last[name]; is && n <= before {
			disorder++
		}
		last[name] = n
	}
	sum, unknown, givenUp := 0, 0, 0
	for _, l := range loads {
		l.mu.Lock()
		defer l.mu.Unlock()
		sum += l.sent
		if len(l.bad) > 0 {
			t.Errorf("%s: %d bad answers, the first is %s", l.name, len(l.bad), l.bad[0])
		}
		for n, offset := range l.acks {
			got, is := at[fmt.Sprintf("%s/%d", l.name, n)]
			switch {
			case offset == -1:
				unknown++
			case offset == -2 && is:
				t.Errorf("%s: record %d was refused and is at %d", l.name, n, got)
			case offset == -2:
				givenUp++
			case !is || got != offset:
				t.Errorf("%s: record %d was acked at %d and is at %d (there: %v)", l.name, n, offset, got, is)
			}
		}
	}
	if disorder+twice > 0 {
		t.Errorf("of %d records %d are there, %d twice, %d out of order", sum, len(all), twice, disorder)
	}
	if unknown+givenUp > sum/2 {
		t.Errorf("of %d records %d were given up, and the outcome of %d is unknown", sum, givenUp, unknown)
	}
	resent := 0.0
	for _, m := range c.Brokers {
		resent += scrape(t, m)["parley_resent_total"]
	}
	t.Logf("%d records, %v sent again, %d given up, outcome of %d unknown", sum, resent, givenUp, unknown)
}
