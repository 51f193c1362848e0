package broker_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/broker/brokertest"
	"github.com/parleymq/parley/client/wire"
)

// TestDamage flips bits in, and cuts, files of a data directory in turn. The
// broker may refuse to start, or serve what verifies and refuse the rest; it
// must never serve anything that wasn't published, nor skip a record in silence.
// By default it takes one or two files of each kind; with PARLEY_DAMAGE=all each
// file in each way, and -v tells what came of it (a minute).
func TestDamage(t *testing.T) {
	t.Parallel()
	const records = 300
	b := brokertest.Start(t)
	b.CreateTopic(wire.TopicSpec{Name: "t"})
	nc := b.Connect()
	value := func(i int) string { return fmt.Sprintf("%d-%s", i, strings.Repeat("v", 2000)) }
	for i := range records {
		if _, err := brokertest.Publish(nc, &nats.Msg{Subject: "t", Data: []byte(value(i))}); err != nil {
			t.Fatal(err)
		}
	}
	b.Stop()
	var files []string
	err := filepath.WalkDir(b.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && d.Type().IsRegular() && info.Size() > 0 && d.Name() != "lock" && d.Name() != "LOCK" {
			rel, _ := filepath.Rel(b.Dir(), path)
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	type damage struct {
		name string
		do   func(b []byte) []byte
	}
	content := func(b []byte) int { // files are laid out larger than they are filled
		return max(1, len(bytes.TrimRight(b, "\x00")))
	}
	all := os.Getenv("PARLEY_DAMAGE") == "all"
	short := map[string]bool{
		"journal, cut in the middle": true, "journal, a flipped bit in the middle": true, "id, a flipped bit in the middle": true,
		"checkpoints, a flipped bit in the middle": true, "000001.vlog, a flipped bit in the middle": true,
		"MANIFEST, cut in the middle": true,
	}
	seen := map[string]bool{}
	for _, file := range files {
		for _, d := range []damage{
			{"a flipped bit in the middle", func(b []byte) []byte { b[content(b)/2] ^= 4; return b }},
			{"a flipped bit near the end", func(b []byte) []byte { b[content(b)-1] ^= 4; return b }},
			{"cut in the middle", func(b []byte) []byte { return b[:content(b)/2] }},
		} {
			if !all && !short[filepath.Base(file)+", "+d.name] {
				continue
			}
			seen[filepath.Base(file)+", "+d.name] = true
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(dir, os.DirFS(b.Dir())); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, file)
			bytesOf, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, d.do(bytesOf), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			got := outcome(t, dir, records, value)
			t.Logf("%s, %s: %s", file, d.name, got)
			if strings.HasPrefix(file, "epochs") && !strings.HasPrefix(got, "refused") {
				t.Errorf("the broker started on damaged epochs")
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(seen) < len(short) {
		t.Errorf("files have other names now: of %v there are %v", short, seen)
	}
}

// outcome starts a broker on a damaged directory and tells what came of it.
func outcome(t *testing.T, dir string, records int, value func(int) string) string {
	t.Helper()
	var stderr bytes.Buffer
	p, err := brokertest.TryProcess(t, dir, &stderr)
	if err != nil {
		if stderr.Len() == 0 {
			t.Error("the broker did not start and did not say why")
		}
		said := strings.TrimSpace(stderr.String())
		return fmt.Sprintf("refused: %.300q", said)
	}
	defer p.Kill()
	nc := p.Connect()
	defer nc.Close()
	all, err := brokertest.ReadAll(nc, "t", 0)
	for i, r := range all {
		if r.Offset != int64(i) || string(r.Value) != value(i) {
			t.Errorf("record %d is at %d: %.20q", i, r.Offset, r.Value)
			break
		}
	}
	var e *wire.Error
	switch {
	case err == nil && len(all) == records:
		return "all served"
	case err == nil:
		t.Errorf("%d of %d records are served, as if there were no more", len(all), records)
		return "records lost in silence"
	case errors.As(err, &e):
		return fmt.Sprintf("%d served, then: %v", len(all), e)
	}
	t.Errorf("reading: %v", err)
	return "no answer"
}
