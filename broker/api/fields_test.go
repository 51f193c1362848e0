package api

import (
	"encoding/json"
	"testing"

	"github.com/parleymq/parley/client/wire"
)

// TestFieldsOfOtherVersions: a request of a newer client has fields that this broker doesn't know, one of an older client lacks some that it
// does. Both are answered as if they were this version's.
func TestFieldsOfOtherVersions(t *testing.T) {
	t.Parallel()
	for subject, requests := range map[string][]string{
		wire.APITopicCreate:   {`{"name":"NAME"}`, `{"name":"NAME","partitions":1,"shape":{"of":["things","to","come"]},"colour":7}`},
		wire.APITopicDescribe: {`{"name":"t"}`, `{"name":"t","with":null}`},
		wire.APITopicList:     {``, `{}`, `{"order":"by size"}`},
		wire.APIClusterStatus: {``, `{}`, `{"deep":true}`},
		wire.APIClusterLevel:  {`{"dry_run":true}`, `{"dry_run":true,"until":"tomorrow"}`},
		wire.APIEpochList:     {``, `{"limit":1,"since":"yesterday"}`},
		wire.APIMetadata:      {`{}`, `{"topics":[],"cached_epoch":3}`},
	} {
		h := handlers(t, 1)
		h.Handle(t.Context(), wire.APITopicCreate, []byte(`{"name":"t"}`))
		for i, q := range requests {
			if subject == wire.APITopicCreate {
				q = `{"name":"new-` + string(rune('a'+i)) + `"` + q[len(`{"name":"NAME"`):]
			}
			var res struct{ Error *wire.Error }
			if b := h.Handle(t.Context(), subject, []byte(q)); json.Unmarshal(b, &res) != nil || res.Error != nil {
				t.Errorf("%s %s: %s", subject, q, b)
			}
		}
	}
}
