package badger

import (
	"fmt"
	"os"
	"testing"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/partition/storage/storagetest"
)

// small makes files rotate within a test.
var small = sizes{memTable: 1 << 20, vlogFile: 1 << 20, collectAfter: 1 << 20}

// TestMain lets tests start this program again as the process that is killed.
func TestMain(m *testing.M) {
	for _, child := range []struct {
		variable string
		run      func(dir string) error
	}{{powerChildDir, powerChild}, {bigLogDir, bigLogChild}} {
		if dir := os.Getenv(child.variable); dir != "" {
			if err := child.run(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(t *testing.T, dir string) storage.Engine {
		e, err := storage.OpenEngine("badger", storage.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return e
	})
}
