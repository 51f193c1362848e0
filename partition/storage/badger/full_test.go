package badger

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/parleymq/parley/partition/storage"
)

// Space at full size takes minutes and 10 GB of disk:
//
//	PARLEY_STORAGE_FULL=1 go test -v -run TestFull -timeout 30m ./partition/storage/badger

func fullSize(t *testing.T) {
	t.Helper()
	if os.Getenv("PARLEY_STORAGE_FULL") == "" {
		t.Skip("set PARLEY_STORAGE_FULL=1 for space at full size; it takes minutes and 10 GB of disk")
	}
}

// feed appends chunks of incompressible bytes.
type feed struct {
	store storage.Store
	data  []byte
}

func newFeed(s storage.Store, chunkBytes int) *feed {
	f := &feed{store: s, data: make([]byte, chunkBytes)}
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(f.data) // never fails
	return f
}

func (f *feed) append(t *testing.T) {
	t.Helper()
	base := f.store.Next()
	check(t, f.store.Append([]storage.Chunk{{Base: base, Last: base + 63, Index: uint64(base), Data: f.data}}, nil))
}

// Disk use stays under 1.5 times what is retained, and 2 GiB, with retention at
// work and one log that keeps a little of everything.
func TestFullSpace(t *testing.T) {
	fullSize(t)
	const chunk, retained, written, keepEvery = 64 << 10, 2 << 30, 14 << 30, 20
	e, err := openEngine(storage.Options{Dir: t.TempDir()}, defaultSizes, hooks{})
	check(t, err)
	defer func() { check(t, e.Close()) }()
	var stores [2]storage.Store
	for i := range stores {
		stores[i], err = e.Open(storage.LogID{Topic: uint64(i)}, storage.Mark{})
		check(t, err)
	}
	all, short := newFeed(stores[0], chunk), newFeed(stores[1], chunk)
	began, collecting, most := time.Now(), time.Duration(0), 0.0
	for i := range written / chunk {
		if i%keepEvery == 0 {
			all.append(t)
		} else {
			short.append(t)
		}
		if i%1024 != 1023 {
			continue
		}
		check(t, e.Sync())
		if first := short.store.Next() - retained/chunk*64; first > 0 {
			check(t, short.store.Trim(first, nil))
		}
		if i%4096 == 4095 {
			from := time.Now()
			check(t, e.Collect(nil))
			collecting += time.Since(from)
			live := float64(all.store.Bytes() + short.store.Bytes())
			used := diskUse(t, e.dir)
			most = max(most, used/live)
			if limit := 1.5*live + 2<<30; used > limit {
				t.Errorf("%.1f GiB used for %.1f GiB retained", used/(1<<30), live/(1<<30))
			}
		}
	}
	t.Logf("%d GiB written at %.0f MB/s, %v of it collecting; at most %.2f times what was retained; %v", written>>30,
		written/1e6/time.Since(began).Seconds(), collecting.Round(time.Second), most, e.Figures())
}

func diskUse(t *testing.T, dir string) (n float64) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(path string, f fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err == nil && !f.IsDir() {
			n += allocated(f)
		}
		return err
	}))
	return n
}
