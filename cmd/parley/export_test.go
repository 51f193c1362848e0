package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/partition/record"
)

// exporter has a broker with a topic, and the tool.
type exporter struct {
	t   *testing.T
	b   *brokertest.Broker
	env map[string]string
}

func newExporter(t *testing.T, records int) *exporter {
	b := brokertest.Start(t)
	x := &exporter{t: t, b: b, env: map[string]string{"PARLEY_SERVER": b.URL()}}
	b.CreateTopic(wire.TopicSpec{Name: "orders", Partitions: 3, Config: map[string]string{"max_bytes": "10GiB"}})
	var lines strings.Builder
	for i := range records {
		fmt.Fprintf(&lines, "k%d:value %d %s\n", i%17, i, strings.Repeat("x", i%300))
	}
	o := call{env: x.env, stdin: lines.String()}.run(t, "pub", "orders", "--key-sep", ":", "--header", "a=b")
	if o.code != exitDone {
		t.Fatalf("pub: %s", o.stderr)
	}
	return x
}

func (x *exporter) ok(args ...string) string {
	x.t.Helper()
	o := call{env: x.env}.run(x.t, args...)
	if o.code != exitDone {
		x.t.Fatalf("parley %s: exit %d\n%s%s", strings.Join(args, " "), o.code, o.stdout, o.stderr)
	}
	return o.stdout
}

func (x *exporter) refused(want string, args ...string) {
	x.t.Helper()
	if o := (call{env: x.env}).run(x.t, args...); o.code != exitFailed || !strings.Contains(o.stderr, want) {
		x.t.Errorf("parley %s: exit %d, want %q in\n%s", strings.Join(args, " "), o.code, want, o.stderr)
	}
}

// records of a topic, all that there is to them but the topic's name.
func (x *exporter) records(topic string) []string {
	x.t.Helper()
	var all []string
	for line := range strings.Lines(x.ok("sub", topic, "--from", "earliest", "--until-end", "-o", "json")) {
		r := decode(x.t, line)
		delete(r, "topic")
		all = append(all, fmt.Sprint(r))
	}
	slices.Sort(all)
	return all
}

func TestExportImport(t *testing.T) {
	t.Parallel()
	x := newExporter(t, 2000)
	dir := filepath.Join(t.TempDir(), "export")
	done := decode(t, x.ok("topic", "export", "orders", dir, "-o", "json"))
	if done["records"] != 2000.0 || done["partitions"] != 3.0 {
		t.Errorf("exported: %v", done)
	}
	x.refused("holds a complete export", "topic", "export", "orders", dir)
	m, err := readManifest(dir)
	if err != nil || !m.Complete || m.Topic != "orders" || m.Config["max_bytes"] != "10GiB" {
		t.Fatalf("manifest %+v, %v", m, err)
	}
	if text := x.ok("topic", "import", dir, "copy"); !strings.Contains(text, "topic copy imported: 2,000 records") {
		t.Errorf("import: %q", text)
	}
	want := x.records("orders")
	if got := x.records("copy"); !slices.Equal(got, want) || len(got) != 2000 {
		t.Errorf("%d records, %d were exported, or they differ", len(got), len(want))
	}
	// Again: nothing is there to do.
	x.ok("topic", "import", dir, "copy")
	if got := x.records("copy"); !slices.Equal(got, want) {
		t.Errorf("%d records after a second import", len(got))
	}
	x.refused("are not this export's first ones", "topic", "import", dir, x.stranger())
}

// stranger is a topic with as many partitions and records of its own.
func (x *exporter) stranger() string {
	x.b.CreateTopic(wire.TopicSpec{Name: "other", Partitions: 3})
	for p := range 3 {
		x.ok("pub", "other", "something else", "--partition", fmt.Sprint(p))
	}
	return "other"
}

// TestExportGoesOn: what was written before an end in the middle of a batch is not fetched again,
// and what comes out is the same.
func TestExportGoesOn(t *testing.T) {
	t.Parallel()
	x := newExporter(t, 3000)
	dir := filepath.Join(t.TempDir(), "export")
	x.ok("topic", "export", "orders", dir)
	whole, err := readManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	broken := whole
	broken.Complete = false
	broken.Partitions = slices.Clone(whole.Partitions)
	for n := range broken.Partitions {
		p := &broken.Partitions[n]
		p.First, p.Records, p.Bytes, p.SHA256 = -1, 0, 0, ""
	}
	if err := broken.save(dir); err != nil {
		t.Fatal(err)
	}
	for n, keep := range []int64{0, whole.Partitions[1].Bytes / 2, whole.Partitions[2].Bytes - 1} {
		if err := os.Truncate(filepath.Join(dir, partitionFile(n)), keep); err != nil {
			t.Fatal(err)
		}
	}
	x.refused("was not finished", "topic", "import", dir, "copy")
	x.ok("pub", "orders", "later") // is not in the export
	if done := decode(t, x.ok("topic", "export", "orders", dir, "-o", "json")); done["resumed"] != true || done["records"] != 3000.0 {
		t.Errorf("exported: %v", done)
	}
	again, err := readManifest(dir)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(whole) {
		t.Errorf("%v\n%+v\n%+v", err, again, whole)
	}
}

// TestImportGoesOn: what is there is left out, so that each record is there once.
func TestImportGoesOn(t *testing.T) {
	t.Parallel()
	x := newExporter(t, 2000)
	dir := filepath.Join(t.TempDir(), "export")
	x.ok("topic", "export", "orders", dir)
	x.b.CreateTopic(wire.TopicSpec{Name: "copy", Partitions: 3, Config: map[string]string{"max_bytes": "10GiB"}})
	c, err := client.Connect(t.Context(), x.b.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background()) //nolint:errcheck // the test is over
	// The first batches of one partition, and all of another, are there already.
	for n, batches := range map[int]int{1: 2, 2: 1 << 30} {
		f, err := os.Open(filepath.Join(dir, partitionFile(n)))
		if err != nil {
			t.Fatal(err)
		}
		have := newBatchFile(f.Name(), f)
		for i, at := 0, int64(0); i < batches; i++ {
			b, err := have.batch()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := b.SetProducer(record.NoProducer); err != nil {
				t.Fatal(err)
			}
			if err := c.AppendBatch(t.Context(), "copy", int32(n), b, b.Count(), at); err != nil {
				t.Fatal(err)
			}
			if err := c.AppendBatch(t.Context(), "copy", int32(n), b, b.Count(), at); err == nil {
				t.Error("the same batch was taken twice")
			}
			at += int64(b.Count())
		}
		f.Close()
	}
	x.ok("topic", "import", dir, "copy")
	if got, want := x.records("copy"), x.records("orders"); !slices.Equal(got, want) || len(got) != 2000 {
		t.Errorf("%d records, %d were exported, or they differ", len(got), len(want))
	}
}

// TestDamagedExport: nothing of it is imported.
func TestDamagedExport(t *testing.T) {
	t.Parallel()
	x := newExporter(t, 500)
	dir := filepath.Join(t.TempDir(), "export")
	x.ok("topic", "export", "orders", dir)
	path := filepath.Join(dir, partitionFile(1))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func([]byte) []byte{
		"checksum mismatch":    func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"ends within a batch":  func(b []byte) []byte { return b[:len(b)-3] },
		"is not the file that": func([]byte) []byte { return nil },
		"begins at offset 0":   func(b []byte) []byte { return append(b, whole...) },
		"no batch at byte":     func(b []byte) []byte { return append(b, make([]byte, 100)...) },
	} {
		if err := os.WriteFile(path, spoil(slices.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		x.refused(want, "topic", "import", dir, "copy")
	}
	x.refused("there is no topic", "topic", "describe", "copy")
	if err := os.Remove(filepath.Join(dir, manifestName)); err != nil {
		t.Fatal(err)
	}
	x.refused(manifestName, "topic", "import", dir, "copy")
}
