package interest

import "bytes"

// A subject is a run of tokens joined by dots: none empty, no white space, no
// control characters. A filter is a subject that may hold wildcards: `*`
// stands for exactly one token, `>` for one or more and only at the end.

// MaxSubject bytes of a subject or filter.
const MaxSubject = 4096

// ValidSubject reports whether s can be published to: valid and no wildcard.
func ValidSubject[S ~string | ~[]byte](s S) bool {
	return valid(s, false)
}

// ValidFilter reports whether s can be subscribed to.
func ValidFilter[S ~string | ~[]byte](s S) bool {
	return valid(s, true)
}

func valid[S ~string | ~[]byte](s S, wildcards bool) bool {
	if len(s) == 0 || len(s) > MaxSubject {
		return false
	}
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '.' {
			if i == start {
				return false
			}
			start = i + 1
			continue
		}
		if c <= ' ' || c == 0x7f {
			return false
		}
		if (c == '*' || c == '>') && i == start && (i+1 == len(s) || s[i+1] == '.') {
			if !wildcards || c == '>' && i+1 != len(s) {
				return false
			}
		}
	}
	return start < len(s)
}

// Literal reports whether a valid filter has no wildcard.
func Literal[S ~string | ~[]byte](filter S) bool {
	return valid(filter, false)
}

// Match reports whether filter takes in subject. Both must be valid; a filter
// is also a fine subject here: Match tells then whether it is a subset.
func Match[F, S ~string | ~[]byte](filter F, subject S) bool {
	f, s := 0, 0
	for {
		fe, se := tokenEnd(filter, f), tokenEnd(subject, s)
		switch {
		case fe-f == 1 && filter[f] == '>':
			return true
		case se-s == 1 && subject[s] == '>':
			return false
		case fe-f == 1 && filter[f] == '*':
		case string(filter[f:fe]) != string(subject[s:se]):
			return false
		}
		fLast, sLast := fe == len(filter), se == len(subject)
		if fLast || sLast {
			return fLast && sLast
		}
		f, s = fe+1, se+1
	}
}

// Overlap reports whether some subject matches both filters.
func Overlap(a, b string) bool {
	i, j := 0, 0
	for {
		ae, be := tokenEnd(a, i), tokenEnd(b, j)
		at, bt := a[i:ae], b[j:be]
		if at == ">" || bt == ">" {
			return true
		}
		if at != "*" && bt != "*" && at != bt {
			return false
		}
		aLast, bLast := ae == len(a), be == len(b)
		if aLast || bLast {
			return aLast && bLast
		}
		i, j = ae+1, be+1
	}
}

func tokenEnd[S ~string | ~[]byte](s S, from int) int {
	for i := from; i < len(s); i++ {
		if s[i] == '.' {
			return i
		}
	}
	return len(s)
}

// cut splits off the first token; more tells whether others follow.
func cut(s []byte) (token, rest []byte, more bool) {
	if i := bytes.IndexByte(s, '.'); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, nil, false
}
