package epoch

import (
	"fmt"
	"os"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/format"
)

// Begun says whether a directory has a journal with something in it.
func Begun(dir string) bool {
	info, err := os.Stat(diskDirectory(dir).path(journalName))
	return err == nil && info.Size() > 0
}

// Peek reads the newest configuration of a journal that nobody has open, and changes nothing.
func Peek(dir string) (*config.Config, error) {
	j, cur, _, err := peek(diskDirectory(dir))
	if err != nil {
		return nil, err
	}
	return cur, j.close()
}

func peek(dir directory) (*journal, *config.Config, *owner, error) {
	j, entries, _, err := openJournal(dir)
	if err != nil {
		return nil, nil, nil, err
	}
	w := &owner{Cluster: &Cluster{o: Options{dir: dir}}, journal: j}
	state, err := w.load(entries)
	if err == nil && state.Newest.Value == nil {
		err = fmt.Errorf("epoch journal %s is empty", dir.path(journalName))
	}
	if err != nil {
		_ = j.close()
		return nil, nil, nil, err
	}
	cur, err := config.Decode(state.Newest.Value)
	if err != nil {
		_ = j.close()
		return nil, nil, nil, format.Corrupt(ErrCorrupt, fmt.Errorf("epoch %d: %w", state.Newest.Epoch, err))
	}
	return j, cur, w, nil
}

// Recover writes the next epoch into a journal that nobody has open, without a vote: for when a
// majority of the council is gone for good. Whoever else knows the chain up to here, and goes on
// with it, has another epoch of that number with another hash: the two never take a word from
// each other again. change must leave a configuration that this directory's broker is the whole
// council of.
func Recover(dir, by string, at time.Time, change func(next *config.Config) error) (*config.Config, error) {
	return recoverIn(diskDirectory(dir), by, at, change)
}

func recoverIn(dir directory, by string, at time.Time, change func(next *config.Config) error) (_ *config.Config, err error) {
	j, cur, _, err := peek(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := j.close(); err == nil {
			err = cerr
		}
	}()
	next := cur.Clone()
	next.Epoch++
	next.Previous = cur.Hash()
	next.By, next.At, next.Change = by, at.UnixMilli(), ""
	if err := change(next); err != nil {
		return nil, err
	}
	if err := next.Validate(); err != nil {
		return nil, fmt.Errorf("recover epoch %d: %w", next.Epoch, err)
	}
	value, err := next.Encode()
	if err != nil {
		return nil, fmt.Errorf("recover epoch %d: %w", next.Epoch, err)
	}
	if err := j.append(entry{kind: kindValue, epoch: next.Epoch, payload: value}); err != nil {
		return nil, fmt.Errorf("recover epoch %d: %w", next.Epoch, err)
	}
	return next, nil
}
