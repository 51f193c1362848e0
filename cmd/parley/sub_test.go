package main

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/parleymq/parley/client"
)

func TestRecordAsJSON(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 31, 12, 0, 0, 5e6, time.UTC)
	for _, c := range []struct {
		name string
		m    client.Message
		want string
	}{
		{"plain", client.Message{Topic: "t", Deliveries: 1, Partition: 2, Offset: 41, Timestamp: at, Value: []byte("v")},
			`{"topic":"t","partition":2,"offset":41,"key":null,"value":"v","headers":{},"time":"2026-01-31T12:00:00.005Z","deliveries":1}`},
		{"empty key and value", client.Message{Topic: "t", Deliveries: 1, Timestamp: at, Key: []byte{}},
			`{"topic":"t","partition":0,"offset":0,"key":"","value":"","headers":{},"time":"2026-01-31T12:00:00.005Z","deliveries":1}`},
		{"not UTF-8", client.Message{Topic: "t", Deliveries: 1, Timestamp: at, Key: []byte{0xff}, Value: []byte("a\xfe")},
			`{"topic":"t","partition":0,"offset":0,"key_base64":"/w==","value_base64":"Yf4=","headers":{},"time":"2026-01-31T12:00:00.005Z","deliveries":1}`},
		{"of a group", client.Message{Topic: "t", Deliveries: 3, Token: 77, Timestamp: at},
			`{"topic":"t","partition":0,"offset":0,"key":null,"value":"","headers":{},"time":"2026-01-31T12:00:00.005Z","deliveries":3,"token":77}`},
		{"headers", client.Message{Topic: "t", Deliveries: 1, Timestamp: at, Headers: []client.Header{client.Text("a", "1"), client.Text("b", "2"), client.Text("a", "3")}},
			`{"topic":"t","partition":0,"offset":0,"key":null,"value":"","headers":{"a":["1","3"],"b":["2"]},"time":"2026-01-31T12:00:00.005Z","deliveries":1}`},
	} {
		got := string(appendRecord(nil, &c.m))
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if !json.Valid([]byte(got)) {
			t.Errorf("%s: no JSON: %s", c.name, got)
		}
	}
}

func FuzzAppendRecord(f *testing.F) {
	f.Add("k", "v\n\x00\"\\é\u2028", "h", "x")
	f.Add("\xff", "\xed\xa0\x80", "\x7f", "\t")
	f.Add("0", "0", "\xec\x82", "\x80") // good only together
	f.Fuzz(func(t *testing.T, key, value, name, header string) {
		m := client.Message{Topic: "t", Deliveries: 1, Key: []byte(key), Value: []byte(value), Headers: []client.Header{client.Text(name, header), client.Text(name, "2")}}
		line := appendRecord(nil, &m)
		var got map[string]any
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		for field, want := range map[string]string{"key": key, "value": value} {
			if s, ok := got[field].(string); ok {
				if s != want {
					t.Fatalf("%s: %q, want %q", field, s, want)
				}
			} else if s, _ := got[field+"_base64"].(string); s != base64.StdEncoding.EncodeToString([]byte(want)) {
				t.Fatalf("%s_base64: %q of %q", field, s, want)
			}
		}
		headers, _ := got["headers"].(map[string]any)
		want := map[string]any{strings.ToValidUTF8(name, "\ufffd"): []any{strings.ToValidUTF8(header, "\ufffd"), "2"}}
		// ToValidUTF8 makes one mark of a run of bad bytes; compare those that are good.
		if utf8.ValidString(name) && utf8.ValidString(header) && !reflect.DeepEqual(headers, want) {
			t.Fatalf("headers %v, want %v", headers, want)
		}
	})
}

func BenchmarkAppendRecord(b *testing.B) {
	m := client.Message{Topic: "orders", Partition: 1, Offset: 1234567, Timestamp: time.Now(), Key: []byte("user-17"),
		Value: []byte(strings.Repeat("some text of a line ", 6)), Headers: []client.Header{client.Text("source", "shop")}}
	var line []byte
	b.ReportAllocs()
	for b.Loop() {
		line = appendRecord(line[:0], &m)
	}
	b.SetBytes(int64(len(line)))
}

func TestFrom(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"earliest", "latest", "0", "4711", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00+01:00", "-1h", "-7d", "-90s"} {
		if _, err := start("from", good, time.Now()); err != nil {
			t.Errorf("--from %s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "now", "-5", "1.5", "2026-01-31", "--1h", "9223372036854775808"} {
		if _, err := start("from", bad, time.Now()); err == nil {
			t.Errorf("--from %q is taken", bad)
		}
	}
}
