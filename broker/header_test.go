package broker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/replication/epoch/config"
)

func TestHeaders(t *testing.T) {
	t.Parallel()
	for block, want := range map[string]string{
		"":                                      "",
		"NATS/1.0\r\n\r\n":                      "",
		"NATS/1.0 503 No Responders\r\n\r\n":    "",
		"NATS/1.0\r\na: 1\r\nA:2\r\na:\r\n\r\n": "a=1|A=2|a=|",
		"NATS/1.0\r\na:  x y \t\r\n\r\nb: 2":    "a=x y|",
		"NATS/1.0\r\nnonsense\r\n: x\r\nb:2":    "b=2|",
		"NATS/1.0\na:b:c\n\n":                   "a=b:c|",
	} {
		got := ""
		for rest, ok := headerLines([]byte(block)), true; ; {
			var h header
			if h, rest, ok = nextHeader(rest); !ok {
				break
			}
			got += fmt.Sprintf("%s=%s|", h.name, h.value)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", block, got, want)
		}
	}
	for name, want := range map[string]headerKind{
		"Parley-Key": headerKey, "parley-key": headerKey, "PARLEY-KEY": headerKey, "Parley_Key": headerPlain,
		"Nats-Msg-Id": headerMsgID, "Nats-Rollup": headerUnsupported, "Nats-TTL": headerUnsupported,
		"Parley-Partition": headerPartition, "Parley-Subject": headerSubject, "Parley-Expect-Offset": headerExpect,
		"Nats-Expected-Stream": headerStream, "Nats-Expected-Last-Sequence": headerLastSeq,
		"Nats-Expected-Last-Msg-Id": headerUnsupported, "Nats-Expected-Last-Subject-Sequence": headerUnsupported,
		"": headerPlain, "Parley-Kex": headerPlain, "Traceparent": headerPlain, "Nats-Msg-I\x04": headerPlain,
	} {
		if got := kindOf([]byte(name)); got != want {
			t.Errorf("%q: %d, want %d", name, got, want)
		}
	}
	for s, want := range map[string]int64{"0": 0, "42": 42, "": -1, "-1": -1, "+1": -1, "1x": -1, "9999999999999999999": -1, "999999999999999999": 999999999999999999} {
		got, ok := number64([]byte(s))
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, want %d", s, got, want)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	f.Add([]byte("NATS/1.0\r\na: 1\r\nParley-Key: k\r\n\r\n"))
	f.Fuzz(func(t *testing.T, block []byte) {
		total := 0
		for rest, ok := headerLines(block), true; ; {
			var h header
			if h, rest, ok = nextHeader(rest); !ok {
				break
			}
			_ = kindOf(h.name)
			if len(h.name) == 0 || bytes.ContainsAny(h.value, "\n") {
				t.Fatalf("header %q: %q", h.name, h.value)
			}
			total += len(h.name) + len(h.value)
		}
		if total > len(block) {
			t.Fatalf("%d bytes of headers in %d", total, len(block))
		}
	})
}

// TestAck holds the encoder against the JSON of the wire's own types.
func TestAck(t *testing.T) {
	t.Parallel()
	for _, want := range []wire.PubAck{
		{Topic: "orders", Partition: 3, Offset: 41, Epoch: 7, Stream: "orders", Seq: 42},
		{Topic: "a.b-c_D", Partition: 0, Offset: -1, Epoch: 0, Stream: "a.b-c_D", Seq: 0, Duplicate: true},
		{Topic: "x", Partition: 1023, Offset: 1 << 60, Epoch: 1 << 63, Stream: "x", Seq: 1<<60 + 1},
	} {
		b := appendAck(nil, want.Topic, want.Partition, want.Offset, want.Epoch, want.Duplicate)
		std, err := json.Marshal(want)
		if err != nil || string(b) != string(std) {
			t.Errorf("%s, the standard library says %s (%v)", b, std, err)
		}
	}
	var back struct{ Error *wire.Error }
	e := &wire.Error{Code: 503, Reason: "not_leader", Retriable: true, Outcome: "unknown", Description: "a \"quoted\"\ntext"}
	if err := json.Unmarshal(appendError(nil, e), &back); err != nil || *back.Error != *e {
		t.Errorf("%+v, %v", back.Error, err)
	}
}

func TestKeyRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ rule, subject, want string }{
		{"subject", "t", ""}, {"subject", "t.a.b", "t.a.b"}, {"none", "t.a", ""},
		{"token:1", "t.a.b", "t"}, {"token:2", "t.a.b", "a"}, {"token:3", "t.a.b", "b"}, {"token:4", "t.a.b", ""},
	} {
		parsed, err := config.ParseTopicConfig(map[string]string{"key": c.rule})
		if err != nil {
			t.Fatal(err)
		}
		top := topic{name: "t", config: parsed}
		if got := top.keyOf([]byte(c.subject)); string(got) != c.want {
			t.Errorf("%s of %s: %q, want %q", c.rule, c.subject, got, c.want)
		}
	}
}
