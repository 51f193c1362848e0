package client

import (
	"encoding/json"
	"strings"
	"testing"
)

// What brief returns is as short after JSON: a leader refuses acks whose reasons are not.
func TestBriefTextsStayBrief(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"": "", "short": "short", "12345678": "12345678", "123456789": "12345678",
		"1234567ü": "1234567", "123456ü": "123456ü", "üüüüü": "üüüü", "\xff\xfe": "?", "a\xffb": "a?b",
		strings.Repeat("\xff", 100): "?", "123456\xc3": "123456?",
	} {
		got := brief(s, 8)
		var back string
		if b, err := json.Marshal(got); err != nil || json.Unmarshal(b, &back) != nil || back != got || got != want {
			t.Errorf("%q: %q, after JSON %q", s, got, back)
		}
	}
}
