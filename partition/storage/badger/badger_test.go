package badger

import (
	"testing"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
)

// small makes files rotate within a test.
var small = sizes{memTable: 1 << 20, vlogFile: 1 << 20, collectAfter: 1 << 20}

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(t *testing.T, dir string) storage.Engine {
		e, err := storage.OpenEngine("badger", storage.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return e
	})
}
