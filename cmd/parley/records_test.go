package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parleymq/parley/broker"
)

func TestPubAndSub(t *testing.T) {
	t.Parallel()
	name := topic(t)
	var in strings.Builder
	for n := range 20_000 {
		fmt.Fprintf(&in, "line %d\r\n", n)
	}
	in.WriteString("\n\x00\xff\nlast without a line feed")
	o := tool(t, in.String(), "pub", name, "-o", "json", "--compression", "zstd")
	if r := decode(t, o.stdout); r["acked"] != 20_003.0 || r["failed"] != 0.0 {
		t.Fatalf("pub: %v", r)
	}
	if got := tool(t, "", "sub", name, "--until-end").stdout; got != in.String()+"\n" {
		t.Errorf("%d bytes came back, %d were sent", len(got), in.Len()+1)
	}
	if got := tool(t, "", "sub", name, "--from", "19999", "--count", "2").stdout; got != "line 19999\r\n\n" {
		t.Errorf("from an offset: %q", got)
	}
	if got := tool(t, "", "sub", name, "--from", "20001", "--count", "1", "-o", "json").stdout; decode(t, got)["value_base64"] != "AP8=" {
		t.Errorf("not UTF-8: %s", got)
	}
	if got := tool(t, "", "sub", name, "--from", "latest", "--until-end").stdout; got != "" {
		t.Errorf("from the latest: %q", got)
	}
	if got := tool(t, "", "sub", name, "--from", "-1h", "--count", "1").stdout; got != "line 0\r\n" {
		t.Errorf("from an hour ago: %q", got)
	}
	e := decode(t, fails(t, exitFailed, "sub", name, "--from", "99999999", "--count", "1", "-o", "json").stdout)
	if e["error"].(map[string]any)["reason"] != "offset_out_of_range" {
		t.Errorf("beyond the end: %v", e)
	}
}

func TestPubKeys(t *testing.T) {
	t.Parallel()
	name := topic(t, "--partitions", "4")
	tool(t, "a:1\nb:2\na:3:x\n", "pub", name, "--key-sep", ":", "--header", "x=1", "--header", "x=2", "--header", "y=é")
	tool(t, `{"user":{"id":"a"},"n":4}`+"\n", "pub", name, "--key-field", "user.id")
	tool(t, "", "pub", name, "5", "--key", "a")
	tool(t, "", "pub", name, "two\nlines", "--partition", "3")
	byKey := map[string][]string{}
	partitions := map[string]float64{}
	for line := range strings.Lines(tool(t, "", "sub", name, "--until-end", "-o", "json").stdout) {
		r := decode(t, line)
		wantKeys(t, r, "topic", "partition", "offset", "key", "value", "headers", "time", "deliveries")
		key, _ := r["key"].(string)
		byKey[key] = append(byKey[key], r["value"].(string))
		if p, seen := partitions[key]; seen && p != r["partition"] {
			t.Errorf("records of key %q are in partitions %v and %v", key, p, r["partition"])
		}
		partitions[key] = r["partition"].(float64)
		if r["value"] == "2" {
			if h, _ := json.Marshal(r["headers"]); string(h) != `{"x":["1","2"],"y":["é"]}` {
				t.Errorf("headers %s", h)
			}
		}
	}
	if got := fmt.Sprint(byKey["a"]); got != `[1 3:x {"user":{"id":"a"},"n":4} 5]` {
		t.Errorf("key a, in order: %s", got)
	}
	if partitions[""] != 3 || fmt.Sprint(byKey[""]) != "[two\nlines]" {
		t.Errorf("partition 3 holds %q", byKey[""])
	}
}

func TestPubFailuresAreCountedAndNamed(t *testing.T) {
	t.Parallel()
	name := topic(t)
	in := "k:1\nno separator\nk:" + strings.Repeat("x", 1<<20) + "\nk:2\n"
	o := call{stdin: in, env: map[string]string{"PARLEY_SERVER": shared.url(t)}}.run(t, "pub", name, "--key-sep", ":", "-o", "json")
	if o.code != exitFailed {
		t.Fatalf("exit %d: %+v", o.code, o)
	}
	if r := decode(t, o.stdout); r["acked"] != 2.0 || r["failed"] != 2.0 {
		t.Errorf("counts: %v", r)
	}
	for _, want := range []string{"line 2", "line 3", "2 FAILED"} {
		if !strings.Contains(o.stderr, want) {
			t.Errorf("stderr doesn't say %q: %s", want, o.stderr)
		}
	}
	if got := tool(t, "", "sub", name, "--until-end").stdout; got != "1\n2\n" {
		t.Errorf("came through: %q", got)
	}
	if o := fails(t, exitFailed, "pub", name, "v", "--partition", "7"); !strings.Contains(o.stderr, "partition 7") || !strings.Contains(o.stderr, "0 records acked, 0B") {
		t.Errorf("partition that isn't there: %s", o.stderr)
	}
	if o := fails(t, exitFailed, "pub", "no-such-topic", "v"); !strings.Contains(o.stderr, "no-such-topic") {
		t.Errorf("topic that isn't there: %s", o.stderr)
	}
}

func TestPubFile(t *testing.T) {
	t.Parallel()
	name := topic(t)
	path := filepath.Join(t.TempDir(), "in.txt")
	if err := os.WriteFile(path, []byte("a\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "not read", "pub", name, "--file", path, "--progress")
	if got := tool(t, "", "sub", name, "--until-end").stdout; got != "a\nb\n" {
		t.Errorf("got %q", got)
	}
	fails(t, exitFailed, "pub", name, "--file", path+".none")
}

func TestPubMessageID(t *testing.T) {
	t.Parallel()
	name := topic(t, "--partitions", "3")
	first := decode(t, tool(t, "", "pub", name, "v", "--msg-id", "id-1", "--key", "k", "--header", "h=1", "-o", "json").stdout)
	again := decode(t, tool(t, "", "pub", name, "v", "--msg-id", "id-1", "--key", "k", "-o", "json").stdout)
	if first["duplicate"] != nil || again["duplicate"] != true || first["offset"] != again["offset"] || first["partition"] != again["partition"] {
		t.Errorf("first %v, again %v", first, again)
	}
	r := decode(t, tool(t, "", "sub", name, "--until-end", "-o", "json").stdout)
	if r["key"] != "k" || r["value"] != "v" {
		t.Errorf("stored: %v", r)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	name := topic(t, "--partitions", "3")
	tool(t, "foreign\n", "pub", name)
	v := decode(t, tool(t, "", "check", name, "--records", "5000", "-o", "json").stdout)
	for key, want := range map[string]float64{"acked": 5000, "read": 5000, "lost": 0, "duplicated": 0, "reordered": 0} {
		if v[key] != want {
			t.Errorf("%s is %v, want %v", key, v[key], want)
		}
	}
}

// A disk that is full for longer than a record is retried ends a load at once, and
// the reason is said.
func TestLoadOnAFullDisk(t *testing.T) {
	t.Parallel()
	b := startBroker(t, broker.Config{
		FreeSpaceFloor: 2, FreeSpace: func(string) (free, total uint64, err error) { return 1, 100, nil },
	})
	c := call{env: map[string]string{"PARLEY_SERVER": b.URL()}}
	if o := c.run(t, "topic", "create", "t"); o.code != exitDone {
		t.Fatalf("create: %+v", o)
	}
	for _, args := range []string{
		"pub t v --give-up 100ms",
		"check t --records 100000000 --give-up 100ms",
		"bench pub t --plain --records 1000",
	} {
		if o := c.run(t, strings.Fields(args)...); o.code != exitFailed || !strings.Contains(o.stderr, "disk_full") {
			t.Errorf("parley %s: exit %d, stderr %q", args, o.code, o.stderr)
		}
	}
}

func TestMeterEndsWithARecordThatWasGivenUp(t *testing.T) {
	t.Parallel()
	m := newMeter(&benchFlags{records: 1000})
	if !m.claim() {
		t.Fatal("ended before it began")
	}
	m.lose(errors.New("first"))
	m.lose(errors.New("second"))
	if m.claim() || m.errors.Load() != 2 || (*m.failure.Load()).Error() != "first" {
		t.Errorf("%d errors, the first %v", m.errors.Load(), *m.failure.Load())
	}
}

func TestBench(t *testing.T) {
	t.Parallel()
	name := topic(t, "--partitions", "2")
	for _, args := range []string{
		"pub %s --records 3000 --size 256B --clients 2",
		"pub %s --duration 300ms --size 256B --rate 2000",
		"pub %s --records 2000 --size 128B --plain --outstanding 100",
		"sub %s --records 4000",
		"sub %s --duration 1s",
		"latency %s --records 20 --size 64B",
		"e2e %s --records 500 --size 64B --rate 5000",
	} {
		words := strings.Fields(fmt.Sprintf("bench "+args+" -o json", name))
		r := decode(t, tool(t, "", words...).stdout)
		wantKeys(t, r, "records", "bytes", "seconds", "records_per_s", "mb_per_s", "errors", "p50_us", "p90_us", "p99_us", "p999_us", "max_us")
		records, _ := r["records"].(float64)
		if records == 0 || r["errors"] != 0.0 {
			t.Errorf("%v: %v", words, r)
		}
		for i, w := range words {
			if w == "--records" && words[i+1] != fmt.Sprint(records) {
				t.Errorf("%v measured %v records", words, records)
			}
		}
		if words[1] != "sub" && (r["p50_us"] == 0.0 || r["max_us"].(float64) < r["p50_us"].(float64)) {
			t.Errorf("%v: latencies %v", words, r)
		}
	}
}
