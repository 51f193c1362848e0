package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCorruptionProof is the short form of "parley proof corruption --count 1000": one round, or two.
func TestCorruptionProof(t *testing.T) {
	longProof(t)
	t.Setenv(asTool, "1")
	t.Setenv("TMPDIR", t.TempDir())
	// A damaged manifest may have tables set aside before something else is found: what is taken back then isn't all that changed.
	kinds := slices.DeleteFunc(fileKindNames(), func(name string) bool { return name == "manifest" })
	o := processTool(t, "proof", "corruption", "--files", strings.Join(kinds, ","), "--count", "20", "--at-once", "40", "--partitions", "6", "-o", "json")
	t.Log(strings.TrimSpace(o.stderr)) // the seed, and what became of each
	if o.code != exitDone {
		t.Fatalf("exit %d\n%s", o.code, o.stdout)
	}
	r := decode(t, o.stdout)
	for _, key := range []string{"not_detected", "ended_unclearly", "not_healed", "served_wrong", "lost", "different_replicas"} {
		if r[key] != 0.0 {
			t.Errorf("%s: %v", key, r[key])
		}
	}
	if n, _ := r["corruptions"].(float64); n < 20 || r["detected"] == 0.0 || r["detected"] != r["healed"] || r["read"] == 0.0 || r["replicas"] != 18.0 {
		t.Errorf("%v", r)
	}
}

// TestDamages: each kind of damage changes a file, is known to hit what it hits, and can be taken back.
func TestDamages(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 1))
	path := filepath.Join(t.TempDir(), "file")
	whole := make([]byte, 3*pageBytes+77)
	for i := range whole {
		whole[i] = byte(rng.Uint32()) | 1
	}
	seen := map[string]int{}
	for range 400 {
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		f := &storedFile{kind: &fileKind{name: "value-log", refers: true}, path: path, size: int64(len(whole)),
			spans: []span{{100, 200, 1}, {pageBytes, 2 * pageBytes, 2}, {2 * pageBytes, 2*pageBytes + 50, 1}}}
		c, err := corrupt(f, rng, true, false)
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			continue
		}
		c.state = brokerStopped
		seen[c.how]++
		now, err := os.ReadFile(path)
		if err != nil && c.size >= 0 {
			t.Fatal(err)
		}
		hit := func(from, to int) bool { return len(now) < to || string(now[from:to]) != string(whole[from:to]) }
		one, two := hit(100, 200) || hit(2*pageBytes, 2*pageBytes+50), hit(pageBytes, 2*pageBytes)
		var parts [3]bool
		for _, n := range c.parts {
			parts[n] = true
		}
		if c.hit != (one || two) || parts[1] != one || parts[2] != two {
			t.Fatalf("%s: hit %v, partitions %v; partition 1 was hit: %v, 2: %v", c, c.hit, c.parts, one, two)
		}
		if string(now) == string(whole) {
			t.Fatalf("%s changes nothing", c)
		}
		if there, err := c.there(); err != nil || !there {
			t.Fatalf("%s: there %v, %v", c, there, err)
		}
		if err := c.undo(); err != nil {
			t.Fatal(err)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != string(whole) {
			t.Fatalf("%s was not taken back: %v", c, err)
		}
	}
	if len(seen) != len(damages) {
		t.Errorf("%v", seen)
	}
}

// TestNamedFile: a broker's last words are matched with the file that they name.
func TestNamedFile(t *testing.T) {
	t.Parallel()
	file := func(name string) *storedFile { return &storedFile{kind: &fileKind{name: name}, path: "/d/" + name} }
	all := []*corruption{{file: file("a"), size: 5}, {file: file("b"), size: 5, outcome: outcomeRefused}, {file: file("epoch-journal"), size: -1},
		{file: file("c"), size: -1}, {file: file("raft-journal"), size: -1}, {file: file("JOURNAL"), size: 5}}
	for text, want := range map[string]*corruption{
		"open /d/a: damaged": all[0], "open /d/b: damaged": nil, "/d/c is missing, and there is /d/a": all[3], "nothing in particular": nil,
		"data directory /d holds logs, but its epochs directory is empty":                     all[2],
		"/d/JOURNAL at offset 0: there is no segment beside it, though every journal has one": all[4], "/d/JOURNAL at offset 0: it isn't one": all[5],
	} {
		if got := named(all, text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	log := `{"level":"error","topic":"ledger","partition":3,"damage":"reading the log back: x"}
{"level":"error","log":"t1-p5-r9","damage":"offsets 1 to 2 are missing on this broker's disk: restore"}
{"level":"info","topic":"ledger","partition":4,"damage":"no"}
`
	if found := damagedIn(log); len(found) != 2 || foundBy(found[3]) != outcomeScrub || foundBy(found[5]) != outcomeStart {
		t.Errorf("%v", found)
	}
	if crash("x\npanic: boom\n\ngoroutine 1\n") != "panic: boom" || !unclear("panic: boom\n\ngoroutine 1") || unclear("parleyd: /d/a is damaged") {
		t.Error("a crash isn't told from a line that says why")
	}
}
