package main

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
)

// TestJoinTargets: a target that was missed is named and ends the proof with a failure.
func TestJoinTargets(t *testing.T) {
	t.Parallel()
	met := joinResult{MovedRatio: 1, SpeedRatio: 0.6, P99Ratio: 1.4, HealSlack: 2}
	for _, c := range []struct {
		missed string
		change func(*joinResult)
	}{
		{"", func(*joinResult) {}},
		{"bytes moved", func(r *joinResult) { r.MovedRatio = 1.2 }},
		{"speed", func(r *joinResult) { r.SpeedRatio = 0.4 }},
		{"publish p99", func(r *joinResult) { r.P99Ratio = 2.1 }},
		{"whole again", func(r *joinResult) { r.HealSlack = 11 }},
	} {
		var out bytes.Buffer
		r := met
		c.change(&r)
		err := r.print(&app{surroundings: surroundings{stdout: &out, lookup: func(string) (string, bool) { return "", false }}})
		if c.missed == "" {
			if err != nil || len(r.Missed) > 0 || strings.Contains(out.String(), "missed") {
				t.Errorf("all targets met: %v, %v\n%s", err, r.Missed, &out)
			}
			continue
		}
		if !errors.Is(err, errReported) || len(r.Missed) != 1 || !strings.Contains(r.Missed[0], c.missed) || strings.Count(out.String(), ", missed") != 1 {
			t.Errorf("%s: %v, missed %v\n%s", c.missed, err, r.Missed, &out)
		}
	}
}

func TestMachineSeconds(t *testing.T) {
	t.Parallel()
	got, err := machineSeconds("cpu  100 20 30 4000 500 6 7 8 90 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
	if err != nil || math.Abs(got-171.0/clockTick) > 1e-9 {
		t.Errorf("%v, %v; want %v", got, err, 171.0/clockTick)
	}
	for _, bad := range []string{"", "cpu 1 2", "intr 1 2 3 4 5 6 7 8 9", "cpu a 2 3 4 5 6 7 8"} {
		if _, err := machineSeconds(bad); err == nil {
			t.Errorf("%q gives no error", bad)
		}
	}
}
