package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestKeyField(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ path, in, want, fails string }{
		{path: "id", in: `{"id":"a"}`, want: "a"},
		{path: "id", in: ` { "x" : [1,{"id":"no"}] , "id" : 17 } `, want: "17"},
		{path: "user.id", in: `{"user":{"name":"}\"{","id":"u-1"},"id":"x"}`, want: "u-1"},
		{path: "a.b.c", in: `{"a":{"b":{"c":true}}}`, want: "true"},
		{path: "id", in: `{"id":"a\u0062\n"}`, want: "ab\n"},
		{path: "k", in: `{"\u006b":1.5e3}`, want: "1.5e3"},
		{path: "id", in: `{"id":1,"id":2}`, want: "2"},
		{path: "id", in: `{"id":""}`, want: ""},
		{path: "id", in: `{}`, fails: `no field "id"`},
		{path: "a.b", in: `{"a":1}`, fails: `no field "a.b"`},
		{path: "id", in: `[1]`, fails: "no field"},
		{path: "id", in: `{"id":null}`, fails: "null"},
		{path: "id", in: `{"id":{}}`, fails: "no string"},
		{path: "id", in: `{"id":`, fails: "not a JSON value"},
		{path: "id", in: ``, fails: "not a JSON value"},
	} {
		k, err := newKeyField(c.path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.find([]byte(c.in))
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s in %s: %q, %v; want an error with %q", c.path, c.in, got, err, c.fails)
			}
		} else if err != nil || string(got) != c.want {
			t.Errorf("%s in %s: %q, %v; want %q", c.path, c.in, got, err, c.want)
		}
	}
	for _, bad := range []string{"", ".", "a..b", "a."} {
		if _, err := newKeyField(bad); err == nil {
			t.Errorf("path %q is taken", bad)
		}
	}
}

// FuzzKeyField holds the walker against encoding/json.
func FuzzKeyField(f *testing.F) {
	f.Add(`{"id":"a","x":[{},"}"]}`)
	f.Add(`{"x":{"id":1},"id":"\\\""}`)
	f.Fuzz(func(t *testing.T, in string) {
		k, _ := newKeyField("id")
		got, err := k.find([]byte(in))
		var fields map[string]json.RawMessage
		if json.Unmarshal([]byte(in), &fields) != nil || fields["id"] == nil {
			if err == nil {
				t.Fatalf("%q: got %q where encoding/json finds nothing", in, got)
			}
			return
		}
		raw := fields["id"]
		switch raw[0] {
		case '"':
			var s string
			if e := json.Unmarshal(raw, &s); e != nil || err != nil {
				t.Fatalf("%q: %v, %v", in, e, err)
			}
			// encoding/json replaces bad UTF-8; a key keeps its bytes.
			if s != string(got) && s != strings.ToValidUTF8(string(got), "\ufffd") && !strings.ContainsRune(s, '\ufffd') {
				t.Fatalf("%q: got %q, want %q", in, got, s)
			}
		case '{', '[', 'n':
			if err == nil {
				t.Fatalf("%q: got %q from %s", in, got, raw)
			}
		default:
			if err != nil || string(raw) != string(got) {
				t.Fatalf("%q: got %q, %v; want %s", in, got, err, raw)
			}
		}
	})
}

func BenchmarkKeyField(b *testing.B) {
	line := []byte(`{"time":"2024-05-01T12:00:00Z","level":"info","user":{"name":"someone","id":"u-123456"},"text":"a line of some length as they are found in logs"}`)
	k, _ := newKeyField("user.id")
	b.ReportAllocs()
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		if _, err := k.find(line); err != nil {
			b.Fatal(err)
		}
	}
}
