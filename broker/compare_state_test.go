package broker

import (
	"encoding/json"
	"testing"

	"github.com/parleymq/parley/partition"
)

// What replicas of other versions, or earlier programs that don't say theirs, have for a state is compared with nothing.
func TestStatesOfOtherVersions(t *testing.T) {
	t.Parallel()
	own := stateAnswer{partition.StateDigest{Index: 7, Form: 3, Next: 4}, Version}
	for name, c := range map[string]struct {
		change func(a *stateAnswer)
		want   bool
	}{
		"the same":          {func(*stateAnswer) {}, true},
		"another state":     {func(a *stateAnswer) { a.Next++ }, true},
		"another version":   {func(a *stateAnswer) { a.Version += "1" }, false},
		"an earlier broker": {func(a *stateAnswer) { a.Version = "" }, false},
		"another form":      {func(a *stateAnswer) { a.Form++ }, false},
		"another entry":     {func(a *stateAnswer) { a.Index++ }, false},
	} {
		other := own
		c.change(&other)
		b, err := json.Marshal(other)
		if err != nil {
			t.Fatal(err)
		}
		var heard stateAnswer
		if err := json.Unmarshal(b, &heard); err != nil || heard != other {
			t.Errorf("%s: %+v, %v", name, heard, err)
		}
		if got := heard.comparable(&own); got != c.want {
			t.Errorf("%s: compared is %v", name, got)
		}
	}
}
