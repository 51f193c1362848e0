package broker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition"
	"github.com/parleymq/parley/partition/group"
	"github.com/parleymq/parley/partition/record"
)

func TestAckSubjects(t *testing.T) {
	t.Parallel()
	for _, topic := range []string{"orders", "a.b.7", "x.1.g.2.3.4"} {
		s := appendAckSubject(nil, topic, 12, "work_ers-1", 1<<40, 3, 1<<63+5)
		a, ok := parseAck(s)
		if want := (ackSubject{topic: topic, number: 12, group: "work_ers-1", offset: 1 << 40, token: 1<<63 + 5}); !ok || a != want {
			t.Errorf("%s: %+v %v", s, a, ok)
		}
	}
	for _, s := range []string{
		"$PARLEY.ACK.", "$PARLEY.ACK.orders", "$PARLEY.ACK.0.g.1.1.1", "$PARLEY.ACK.o.x.g.1.1.1", "$PARLEY.ACK.o.0.g.-1.1.1",
		"$PARLEY.ACK.o.0.g.1.1.99999999999999999999", "$PARLEY.ACK.o.5000.g.1.1.1", "$PARLEY.ACK.o.0.g.1..1", "$PARLEY.NEXT.o.0.g.1.1.1",
		"$PARLEY.ACK.o.0." + strings.Repeat("g", 65) + ".1.1.1",
	} {
		if a, ok := parseAck([]byte(s)); ok {
			t.Errorf("%s: %+v", s, a)
		}
	}
}

func TestWhatAnAckSays(t *testing.T) {
	t.Parallel()
	a := ackSubject{offset: 7, token: 9}
	for body, want := range map[string]group.AckItem{
		"":                        {Kind: group.Ack},
		"+ACK":                    {Kind: group.Ack},
		"-NAK":                    {Kind: group.Nak, DelayMS: -1},
		`-NAK {"delay_ms":1500}`:  {Kind: group.Nak, DelayMS: 1500},
		`-NAK {"delay_ms": 0}`:    {Kind: group.Nak},
		"+WPI":                    {Kind: group.Progress},
		"+TERM":                   {Kind: group.Term},
		"+TERM  no such customer": {Kind: group.Term, Reason: "no such customer"},
	} {
		want.First, want.Last, want.Token = 7, 7, 9
		if got, err := a.item([]byte(body), false); err != nil || got != want {
			t.Errorf("%q: %+v, %v", body, got, err)
		}
	}
	for _, body := range []string{"ok", "-NAK 5", `-NAK {"delay":5}`, `-NAK {"delay_ms":-1}`, "+NXT", "-RETURN"} {
		if got, err := a.item([]byte(body), false); err == nil {
			t.Errorf("%q: %+v", body, got)
		}
	}
	if got, err := a.item([]byte(ackReturn), true); err != nil || got.Kind != group.Return {
		t.Errorf("a broker gives back: %+v, %v", got, err)
	}
}

func TestPositions(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)
	for text, want := range map[string]group.Position{
		"":                            {},
		"earliest":                    {},
		"latest":                      {Kind: group.Latest},
		"17":                          {Kind: group.AtOffset, Value: 17},
		"-1h":                         {Kind: group.AtTime, Value: now.Add(-time.Hour).UnixMilli()},
		"-1d12h":                      {Kind: group.AtTime, Value: now.Add(-36 * time.Hour).UnixMilli()},
		"2026-01-31T07:00:00Z":        {Kind: group.AtTime, Value: now.Add(-time.Hour).UnixMilli()},
		"2026-01-31T09:00:00.5+01:00": {Kind: group.AtTime, Value: now.UnixMilli() + 500},
	} {
		got, err := parsePosition(text, now)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
			continue
		}
		if again, err := parsePosition(positionText(got), now); err != nil || again != got {
			t.Errorf("%q is told as %q: %+v, %v", text, positionText(got), again, err)
		}
	}
	for _, text := range []string{"first", "-5", "1.5", "-1y", "2026-01-31", "99999999999999999999"} {
		if got, err := parsePosition(text, now); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestPulledFrames(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 100, 169, 170, 4096} {
		var d []group.Delivery
		for i := range n {
			d = append(d, group.Delivery{First: 1<<62 + int64(2*i), Last: 1<<62 + int64(2*i), Deliveries: 1<<31 - 1, Token: 1<<64 - 1})
		}
		batches := bytes.Repeat([]byte("batch"), 1000)
		b := append(make([]byte, pullHead, pullSize), batches...)
		got := framePulled(b, d)
		size := binary.BigEndian.Uint32(got)
		var head wire.GroupPulled
		if err := json.Unmarshal(got[4:4+size], &head); err != nil || len(head.Deliveries) != n {
			t.Fatalf("%d deliveries: %d, %v", n, len(head.Deliveries), err)
		}
		if last := head.Deliveries[n-1]; last.First != d[n-1].First || last.Token != d[n-1].Token || last.Deliveries != d[n-1].Deliveries {
			t.Errorf("%d deliveries: %+v", n, last)
		}
		if !bytes.Equal(got[4+size:], batches) {
			t.Errorf("%d deliveries: other batches", n)
		}
	}
}

func batchAt(t testing.TB, base int64, codec record.Codec, records ...record.Record) []byte {
	t.Helper()
	b := record.NewBuilder(codec, record.DefaultLimits)
	for i := range records {
		if err := b.Append(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	out, err := b.Finish(nil, record.NoProducer)
	if err != nil {
		t.Fatal(err)
	}
	record.Batch(out).Stamp(base, 0)
	return out
}

// TestMessagesOfAPull: only what was delivered becomes a message, wherever it lies.
func TestMessagesOfAPull(t *testing.T) {
	t.Parallel()
	value := func(s string) record.Record { return record.Record{Value: []byte(s)} }
	batches := batchAt(t, 10, record.None, value("10"), value("11"), value("12"))
	batches = append(batches, batchAt(t, 13, record.Snappy, value("13"), value("14"), value("15"))...)
	batches = append(batches, batchAt(t, 20, record.None, record.Record{
		Key: []byte("k"), Value: []byte("20"), Timestamp: 1_700_000_000_123,
		Headers: []record.Header{{Key: []byte("a"), Value: []byte("1")}, {Key: []byte("a"), Value: []byte("2")}, {Key: []byte("bad\r\n"), Value: nil}, {Key: []byte("b"), Value: []byte("x\ny")}},
	})...)
	d := []group.Delivery{{First: 11, Last: 11, Deliveries: 1, Token: 5}, {First: 12, Last: 13, Deliveries: 2, Token: 6}, {First: 15, Last: 16, Deliveries: 1, Token: 5}, {First: 20, Last: 20, Deliveries: 1, Token: 5}}
	all, err := nextMessages("t", 3, "g", d, batches)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range all {
		got = append(got, string(m.payload)+" "+string(m.ack[len("$PARLEY.ACK.t."):]))
	}
	want := []string{"11 3.g.11.1.5", "12 3.g.12.2.6", "13 3.g.13.2.6", "15 3.g.15.1.5", "20 3.g.20.1.5"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	head := "NATS/1.0\r\na: 1\r\na: 2\r\nParley-Key: k\r\nParley-Topic: t\r\nParley-Partition: 3\r\nParley-Offset: 20\r\nParley-Group: g\r\n" +
		"Parley-Deliveries: 1\r\nParley-Token: 5\r\nParley-Time: 2023-11-14T22:13:20.123Z\r\n\r\n"
	if s := string(all[4].header); s != head {
		t.Errorf("%q", s)
	}
	again, err := readNextMessages(appendNextMessages(nil, all))
	if err != nil || len(again) != len(all) || string(again[4].header) != head || string(again[0].payload) != "11" {
		t.Errorf("over the mesh: %d, %v", len(again), err)
	}
	for n := range 20 {
		if _, err := readNextMessages(appendNextMessages(nil, all[:1])[:n+1]); err == nil {
			t.Errorf("%d bytes of a message are taken for one", n+1)
		}
	}
}

func TestLetterHeaders(t *testing.T) {
	t.Parallel()
	pair := func(k, v string) record.Header { return record.Header{Key: []byte(k), Value: []byte(v)} }
	d := partition.DeadLetter{Topic: "t", Partition: 2, Group: "g", Deliveries: 5, Reason: "bad", Record: record.Record{Offset: 41, Headers: []record.Header{
		pair("x", "1"), pair("nats-msg-id", "mine"), pair("Parley-Reason", "older"), pair("x", "2"),
	}}}
	text := func(all []record.Header) (s string) {
		for _, h := range all {
			s += string(h.Key) + "=" + string(h.Value) + " "
		}
		return s
	}
	if s := text(letterHeaders(&d)); s != "Nats-Msg-Id=g/t/2/41 Parley-Topic=t Parley-Partition=2 Parley-Offset=41 Parley-Group=g Parley-Deliveries=5 "+
		"Parley-Reason=bad x=1 Parley-Original-Msg-Id=mine x=2 " {
		t.Errorf("%q", s)
	}
}

// TestGroupCountersGrow whatever becomes of the partitions' own.
func TestGroupCountersGrow(t *testing.T) {
	t.Parallel()
	var c groupCounts
	last := groupCounts{}
	for _, now := range []groupCounts{{handled: 5}, {handled: 8}, {handled: 2} /* leads anew */, {handled: 3}} {
		c.add(now, last)
		last = now
	}
	if c.handled != 8+3 {
		t.Errorf("%d handled", c.handled)
	}
}

func BenchmarkFramePulled(b *testing.B) {
	d := []group.Delivery{{First: 1 << 40, Last: 1<<40 + 255, Deliveries: 1, Token: 1 << 40}}
	buf := append(make([]byte, pullHead, pullSize), make([]byte, 64<<10)...)
	b.ReportAllocs()
	for b.Loop() {
		framePulled(buf, d)
	}
}
