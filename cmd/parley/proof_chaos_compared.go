package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The brokers of proof chaos compare their replicas all the while, as often as they may. That no difference is ever found
// between replicas that nobody has tampered with is as much a part of the proof as that there is none in the end: a false
// alarm would have a good replica thrown away.

// comparedResult is what the brokers' own comparisons came to.
type comparedResult struct {
	Passes int64 `json:"passes"`
	// Found is how many differences there were with brokers whose files were corrupted.
	Found int64 `json:"found"`
	// False is how many there were without.
	False int64 `json:"false"`
}

// comparedWithin is how long a run must last for it to be a failure that nothing was compared.
const comparedWithin = 60

// What brokers log of comparisons, at level debug or above.
const (
	loggedCompared  = "the replicas of a partition were compared"
	loggedDiffer    = "a replica differs from the majority"
	loggedUndecided = "replicas differ, and no majority of them is the same"
	loggedPassing   = "replicas differed in a run of the log"
)

// comparedIn reads the logs of all brokers there ever were. A difference is no false one where a broker that is part of
// it had its files corrupted.
func comparedIn(dir string, corrupted map[string]bool, tell func(string, ...any)) (r comparedResult, err error) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return r, err
	}
	for _, path := range logs {
		if err := r.read(path, corrupted, tell); err != nil {
			return r, fmt.Errorf("read a broker's log: %w", err)
		}
	}
	return r, nil
}

func (r *comparedResult) read(path string, corrupted map[string]bool, tell func(string, ...any)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const longest = 16 << 20
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, longest)
	for lines.Scan() {
		line := lines.Bytes()
		if bytes.Contains(line, []byte(loggedCompared)) {
			r.Passes++
			continue
		}
		if !slices.ContainsFunc([]string{loggedDiffer, loggedUndecided, loggedPassing}, func(s string) bool { return bytes.Contains(line, []byte(s)) }) {
			continue
		}
		var said struct {
			Brokers string `json:"brokers"`
			Bad     string `json:"bad"`
		}
		if err := json.Unmarshal(line, &said); err != nil {
			return err
		}
		part := said.Bad
		if part == "" {
			part = said.Brokers
		}
		if slices.ContainsFunc(strings.Split(part, ","), func(name string) bool { return corrupted[name] }) {
			r.Found++
			continue
		}
		r.False++
		tell("replicas that nobody tampered with were found to differ: %s", line)
	}
	return lines.Err()
}

func (r *comparedResult) table(t *table) {
	t.row(str("comparisons of a partition's replicas"), num(r.Passes))
	t.row(str("differences that corruption made"), num(r.Found))
}
