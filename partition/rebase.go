package partition

import (
	"fmt"

	"github.com/parleymq/parley/partition/storage"
)

// Rebase makes of a checkpoint the beginning of a new replicated log: all that was applied stays,
// and the new log's first entry comes after it. It is for a partition whose old log has lost its
// majority for good. Nothing may be stored above the checkpoint, and the old log must
// never be opened on it again: it would apply again what is there.
func Rebase(cp storage.Checkpoint) (storage.Checkpoint, error) {
	s, err := decodeState(cp.State)
	if err != nil {
		return cp, fmt.Errorf("rebase checkpoint of log %s: %w", cp.Log, err)
	}
	s.index, s.term, s.counter = 0, 0, 0
	form := Form(cp.State[0]) // as it was written: the cluster's feature level is what it was
	cp.Index, cp.State = 0, s.encodeAs(nil, max(form, FormChain))
	return cp, nil
}
