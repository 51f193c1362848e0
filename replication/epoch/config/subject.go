package config

import (
	"fmt"
	"strings"
)

// CheckTopicName says what is wrong with a topic's name. A name is
// [A-Za-z0-9-][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*, at most 200 bytes.
func CheckTopicName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("topic name is empty")
	case len(name) > MaxTopicName:
		return fmt.Errorf("topic name of %d bytes is too long, at most %d are allowed", len(name), MaxTopicName)
	case name[0] == '_':
		return fmt.Errorf("topic name %q must not begin with _", name)
	}
	start := true // of a token
	for i := 0; i < len(name); i++ {
		ch := name[i]
		switch {
		case ch == '.':
			if start {
				return fmt.Errorf("topic name %q has an empty token: dots must separate something", name)
			}
			start = true
			continue
		case ch >= 'a' && ch <= 'z', ch >= 'A' && ch <= 'Z', ch >= '0' && ch <= '9', ch == '_', ch == '-':
		default:
			return fmt.Errorf("topic name %q has the character %q, allowed are letters, digits, -, _ and dots between them", name, ch)
		}
		start = false
	}
	if start {
		return fmt.Errorf("topic name %q ends with a dot", name)
	}
	return nil
}

// CheckSubject says what is wrong with a subject that a topic is to bind: a
// NATS subject, wildcards allowed except as its first token. Subjects that
// begin with $ or _ are the system's own.
func CheckSubject(subject string) error {
	if subject == "" || len(subject) > MaxSubject {
		return fmt.Errorf("subject of %d bytes: 1 to %d are allowed", len(subject), MaxSubject)
	}
	tokens := strings.Split(subject, ".")
	for i, t := range tokens {
		switch {
		case t == "":
			return fmt.Errorf("subject %q has an empty token", subject)
		case i == 0 && (t == "*" || t == ">"):
			return fmt.Errorf("subject %q begins with a wildcard, it would take in replies and requests of others", subject)
		case i == 0 && (t[0] == '$' || t[0] == '_'):
			return fmt.Errorf("subject %q begins with %c, such subjects are reserved", subject, t[0])
		case t == ">" && i != len(tokens)-1:
			return fmt.Errorf("subject %q has > before its end", subject)
		}
		for j := 0; j < len(t); j++ {
			if t[j] <= ' ' || t[j] == 0x7f {
				return fmt.Errorf("subject %q has a space or a control character", subject)
			}
			if (t[j] == '*' || t[j] == '>') && len(t) > 1 {
				return fmt.Errorf("subject %q has %c inside a token, a wildcard stands alone", subject, t[j])
			}
		}
	}
	return nil
}

// DefaultSubjects of a topic: its own name and everything below it.
func DefaultSubjects(name string) []string { return []string{name, name + ".>"} }

// SubjectsOverlap says whether some subject matches both patterns.
func SubjectsOverlap(a, b string) bool {
	for {
		ta, resta, morea := strings.Cut(a, ".")
		tb, restb, moreb := strings.Cut(b, ".")
		if ta == ">" || tb == ">" {
			return true
		}
		if ta != tb && ta != "*" && tb != "*" {
			return false
		}
		if !morea || !moreb {
			return morea == moreb
		}
		a, b = resta, restb
	}
}
