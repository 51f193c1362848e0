package main

// What a broker's log and its last words say of the damage that was done to its files.

import (
	"encoding/json"
	"strconv"
	"strings"
)

// unclear says whether a log ends with a crash.
func unclear(text string) bool { return crash(text) != lastOf(text) }

// crash is the line that tells of a crash, or the last one.
func crash(text string) string {
	for line := range strings.Lines(text) {
		for _, sign := range []string{"panic: ", "fatal error: ", "SIGBUS", "SIGSEGV"} {
			if strings.HasPrefix(line, sign) || strings.HasPrefix(line, "["+sign) {
				return strings.TrimSpace(line)
			}
		}
	}
	return lastOf(text)
}

// lastLines is what a broker says as it ends.
func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "\n")
}

// withoutItsOnly is what is said where a directory has lost its only file of a kind, so that nobody can tell the file's name.
var withoutItsOnly = map[string]string{
	"epoch-journal": "its epochs directory",
	"raft-journal":  "there is no segment beside it",
}

// named finds the corruption whose file a text names first.
func named(all []*corruption, text string) (first *corruption) {
	for _, exact := range []bool{false, true} { // what can't name its file may name another one that is whole
		where := len(text)
		for _, c := range all {
			name := c.file.path
			if !exact {
				if name = withoutItsOnly[c.file.kind.name]; c.size > 0 || name == "" {
					continue
				}
			}
			if at := strings.Index(text, name); c.outcome == "" && at >= 0 && at < where {
				first, where = c, at
			}
		}
		if first != nil {
			return first
		}
	}
	return nil
}

// logLine is a line of a broker's log.
type logLine struct {
	Level     string `json:"level"`
	Message   string `json:"message"`
	Topic     string `json:"topic"`
	Partition *int32 `json:"partition"`
	Log       string `json:"log"`
	Damage    string `json:"damage"`
	Error     string `json:"error"`
}

// damagedIn lists what a log says of damaged replicas, by partition: the first word on each.
func damagedIn(text string) map[int32]string {
	found := map[int32]string{}
	for line := range strings.Lines(text) {
		var l logLine
		if json.Unmarshal([]byte(line), &l) != nil || l.Level != "error" && l.Level != "warn" {
			continue
		}
		what := l.Damage
		if what == "" {
			what = l.Error
		}
		if what == "" {
			continue
		}
		n := int32(-1)
		if l.Topic == corruptionTopic && l.Partition != nil {
			n = *l.Partition
		} else if parts := strings.Split(l.Log, "-"); len(parts) == 3 && strings.HasPrefix(parts[1], "p") {
			if v, err := strconv.Atoi(parts[1][1:]); err == nil {
				n = int32(v)
			}
		}
		if n >= 0 && found[n] == "" && (l.Damage != "" || strings.Contains(l.Message, "could not be opened")) {
			found[n] = what
		}
	}
	return found
}

// foundBy tells how damage was found by what was said of it.
func foundBy(what string) string {
	switch {
	case strings.Contains(what, "reading the log back"), strings.Contains(what, "not what the other replicas have"):
		return outcomeScrub
	case strings.Contains(what, "are missing on this broker's disk: restore"), strings.Contains(what, "start replica"), strings.Contains(what, "could not all be read"),
		strings.Contains(what, "open partition"):
		return outcomeStart
	}
	return outcomeRead
}

// namedIn is the first warning or error that names a file.
func namedIn(text, path string) string {
	for line := range strings.Lines(text) {
		var l logLine
		if json.Unmarshal([]byte(line), &l) == nil && (l.Level == "error" || l.Level == "warn") && strings.Contains(line, path) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
