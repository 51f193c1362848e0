package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// longProof leaves a proof that works with processes of their own to the run without the race detector, which sees nothing of them.
func longProof(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: its brokers are other processes")
	}
}

// buildParleyd builds the broker under test.
func buildParleyd(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "parleyd")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/parleymq/parley/cmd/parleyd").CombinedOutput(); err != nil {
		t.Fatalf("build parleyd: %v\n%s", err, out)
	}
	return path
}

// TestChaosProof is the short form of "parley proof chaos". Its faults are those that take
// little time; the documented command takes minutes and makes them all.
func TestChaosProof(t *testing.T) {
	parleyd := buildParleyd(t)
	t.Setenv("TMPDIR", t.TempDir())
	o := processTool(t, "proof", "chaos", "--parleyd", parleyd, "--duration", "3s", "--partitions", "4", "--producers", "2",
		"--faults", "kill,kill-leader", "-o", "json")
	t.Log(strings.TrimSpace(o.stderr)) // the seed, and what happened
	if o.code != exitDone {
		t.Fatalf("exit %d\n%s", o.code, o.stdout)
	}
	r := decode(t, o.stdout)
	for _, key := range []string{"lost", "duplicated", "reordered", "phantom", "two_values", "vanished", "holes", "stale_ends", "stale_epochs", "failures", "different_replicas"} {
		if r[key] != 0.0 {
			t.Errorf("%s: %v", key, r[key])
		}
	}
	groups, _ := r["groups"].(map[string]any)
	for _, name := range []string{groupExclusive, groupShared, groupKeyed} {
		v, _ := groups[name].(map[string]any)
		for _, key := range []string{"unhandled", "undone", "reordered", "two_live", "old_tokens", "letters"} {
			if v[key] != 0.0 {
				t.Errorf("group %s, %s: %v", name, key, v[key])
			}
		}
		if v["handled"] == 0.0 {
			t.Errorf("group %s: %v", name, v)
		}
	}
	if n, _ := r["replicas"].(float64); n < 24 || r["acked"] == 0.0 || r["faults"] == 0.0 || r["live_read"] == 0.0 {
		t.Errorf("%v", r)
	}
}

// TestChaosMoves is the short form of "parley proof chaos --moves 200 --brokers 4".
func TestChaosMoves(t *testing.T) {
	longProof(t)
	parleyd := buildParleyd(t)
	t.Setenv("TMPDIR", t.TempDir())
	o := processTool(t, "proof", "chaos", "--parleyd", parleyd, "--duration", "1s", "--brokers", "4", "--partitions", "4", "--producers", "2",
		"--moves", "8", "--faults", "kill,cut-pair", "-o", "json")
	t.Log(strings.TrimSpace(o.stderr))
	if o.code != exitDone {
		t.Fatalf("exit %d\n%s", o.code, o.stdout)
	}
	r := decode(t, o.stdout)
	for _, key := range []string{"lost", "duplicated", "reordered", "phantom", "two_values", "vanished", "holes", "failures", "different_replicas"} {
		if r[key] != 0.0 {
			t.Errorf("%s: %v", key, r[key])
		}
	}
	moves, _ := r["moves"].(map[string]any)
	// Three of each partition that moves, three of each that groups work on, and some of dead letters.
	if replicas, _ := r["replicas"].(float64); r["acked"] == 0.0 || replicas < 24 || moves["count"] != 8.0 {
		t.Errorf("%v", r)
	}
}

// TestChaosMembers is the short form of "parley proof chaos --faults join,drain,wipe,corrupt,disk-full": a broker joins, and its disk
// fills up while it gets its share.
func TestChaosMembers(t *testing.T) {
	longProof(t)
	parleyd := buildParleyd(t)
	t.Setenv("TMPDIR", t.TempDir())
	o := processTool(t, "proof", "chaos", "--parleyd", parleyd, "--seed", "3", "--duration", "1s", "--partitions", "4", "--producers", "2", "--groups=false",
		"--cut-bytes", "65536", "--faults", "join", "-o", "json")
	t.Log(strings.TrimSpace(o.stderr))
	if o.code != exitDone {
		t.Fatalf("exit %d\n%s", o.code, o.stdout)
	}
	r := decode(t, o.stdout)
	for _, key := range []string{"lost", "duplicated", "reordered", "phantom", "two_values", "vanished", "holes", "failures", "different_replicas"} {
		if r[key] != 0.0 {
			t.Errorf("%s: %v", key, r[key])
		}
	}
	members, _ := r["members"].(map[string]any)
	if members["joined"] != 1.0 || members["disks_filled"] != 1.0 || members["snapshots_restored"] == 0.0 || r["acked"] == 0.0 {
		t.Errorf("%v", r)
	}
}

// TestChaosAuditFinds: each thing that can be wrong is found.
func TestChaosAuditFinds(t *testing.T) {
	t.Parallel()
	a := newChaosAudit("c1", 2, 2, 1, func(string, ...any) {})
	value := func(stream int, n int64) []byte {
		l := a.lane(stream, 0)
		l.sent.Store(max(l.sent.Load(), n+1))
		return chaosValue("c1", stream, 0, n)
	}
	a.acked(0, 0, 0, receipt{}, value(0, 0))
	a.observed(0, 0, value(0, 0))
	if a.twoValues.Load() != 0 {
		t.Error("the same value twice is no finding")
	}
	a.observed(0, 0, value(1, 0))
	if a.twoValues.Load() != 1 {
		t.Error("two values at one offset were not found")
	}
	if a.acked(0, 0, 1, receipt{part: 3, offset: 1}, value(0, 1)); a.failures.Load() != 1 {
		t.Error("an ack of another partition was not found")
	}
	if a.acked(0, 0, 2, receipt{offset: 2, epoch: 4, floor: 5}, value(0, 2)); a.stale.Load() != 1 {
		t.Error("an ack of an older epoch was not found")
	}
	if a.endTold(0, a.ends[0].Load(), 3, "b1"); a.staleEnd.Load() != 0 {
		t.Error("the partition's end is no finding")
	}
	if a.endTold(0, a.ends[0].Load(), 2, "b1"); a.staleEnd.Load() != 1 {
		t.Error("an end before what was acked was not found")
	}
	if s, n, ok := a.number(value(1, 7), 0); !ok || s != 1 || n != 7 {
		t.Errorf("a value is taken apart as %d, %d, %v", s, n, ok)
	}
	changed := value(1, 7)
	changed[len(changed)-1] ^= 1
	for what, v := range map[string][]byte{
		"a changed byte": changed, "a number that was not sent": chaosValue("c1", 1, 0, 8), "another run's": chaosValue("c2", 1, 0, 7),
		"another partition's": chaosValue("c1", 1, 1, 7), "an unknown stream's": chaosValue("c1", 2, 0, 0), "nothing": nil,
	} {
		if _, _, ok := a.number(v, 0); ok {
			t.Errorf("%s is taken for a record", what)
		}
	}
}

// TestReplicasDiffer: what must be the same on all replicas is compared.
func TestReplicasDiffer(t *testing.T) {
	t.Parallel()
	batch := func(base int64, sum byte) storedBatch {
		return storedBatch{base: base, last: base + 1, sum: [32]byte{sum}}
	}
	a := &storedPartition{broker: "b1", next: 4, batches: []storedBatch{batch(0, 1), batch(2, 2)}}
	for want, b := range map[string]*storedPartition{
		"":            {broker: "b2", next: 4, batches: []storedBatch{batch(0, 1), batch(2, 2)}},
		"other bytes": {broker: "b2", next: 4, batches: []storedBatch{batch(0, 1), batch(2, 3)}},
		"batches":     {broker: "b2", next: 4, batches: []storedBatch{batch(0, 1)}},
		"holds":       {broker: "b2", next: 2, batches: []storedBatch{batch(0, 1)}},
	} {
		if got := differ(a, b); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestNetworkCuts: who dialled is known, what is stalled arrives later, what is dead breaks, and
// other pairs don't notice.
func TestNetworkCuts(t *testing.T) {
	t.Parallel()
	n := newNetwork(2, func(broker int) int { return []int{os.Getpid(), 0}[broker] })
	defer n.close()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() { // ends with the listener
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	address, err := n.proxy(1, echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	say := func(word string, wait time.Duration) error {
		if _, err := io.WriteString(c, word); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		got := make([]byte, len(word))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if string(got) != word {
			return fmt.Errorf("heard %q", got)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := say("one", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	n.set(1, 2, true, false, 0) // another pair
	if err := say("two", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	n.set(0, 1, true, false, 0)
	if err := say("three", 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("through a stalled link: %v", err)
	}
	n.heal()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	late := make([]byte, len("three"))
	if _, err := io.ReadFull(c, late); err != nil || string(late) != "three" {
		t.Fatalf("after it was healed: %q, %v", late, err)
	}
	begin := time.Now()
	n.set(0, 1, false, false, 50*time.Millisecond)
	if err := say("four", 10*time.Second); err != nil || time.Since(begin) < 50*time.Millisecond {
		t.Fatalf("through a slow link: %v after %s", err, time.Since(begin))
	}
	n.set(0, 1, false, true, 0)
	for say("five", time.Second) == nil {
		if ctx.Err() != nil {
			t.Fatal("a dead link carries")
		}
	}
}
