package badger

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/parleymq/parley/partition/storage"
	"github.com/parleymq/parley/replication/format"
)

const (
	versionFile = "VERSION"
	versionText = "parley-log badger 1\n"

	versionPrefix = "parley-log badger "
	version       = 1
	lockFile      = "engine.lock"
)

// takeDirectory creates the directory if need be, locks it and checks whose it
// is. Badger has a lock of its own, but only from its Open on, and things are set
// right before that; so ours stands for both.
func takeDirectory(dir string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Join(dir, dbDir), 0o700); err != nil {
		return nil, fmt.Errorf("create directory: %w", err)
	}
	path := filepath.Join(dir, lockFile)
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(lock, 32))
		closeErr := lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w by process %s", dir, storage.ErrInUse, strings.TrimSpace(string(holder)))
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), closeErr)
	}
	if err := func() error {
		if err := lock.Truncate(0); err != nil {
			return err
		}
		if _, err := lock.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
			return err
		}
		return checkVersion(dir)
	}(); err != nil {
		return nil, errors.Join(err, unlock(lock))
	}
	return lock, nil
}

// unlock gives the lock back by name: closing the file does so only once no
// other process has it, and one that is just being forked has for a moment.
func unlock(lock *os.File) error {
	return errors.Join(unix.Flock(int(lock.Fd()), unix.LOCK_UN), lock.Close())
}

// checkVersion refuses a directory that something else wrote, and marks a new one.
func checkVersion(dir string) error {
	path := filepath.Join(dir, versionFile)
	got, err := os.ReadFile(path)
	if err == nil {
		if v, ok := format.Text(got, versionPrefix); ok && v > version {
			return format.Newer(path, "format", v, version)
		}
		if string(got) != versionText {
			return fmt.Errorf("%s: %w: %q, this program reads %q", path, storage.ErrFormat,
				strings.TrimSpace(string(got[:min(len(got), 80)])), strings.TrimSpace(versionText))
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, d := range []string{dir, filepath.Join(dir, dbDir)} {
		entries, err := os.ReadDir(d)
		if err != nil {
			return err
		}
		for _, f := range entries {
			switch name := f.Name(); {
			case name == badgerManifest, strings.HasSuffix(name, vlogExt), strings.HasSuffix(name, tableExt), strings.HasSuffix(name, memExt):
				return fmt.Errorf("%s: %w: there is a database (%s), but this file, which says whose, is missing", path, storage.ErrFormat, filepath.Join(d, name))
			}
		}
	}
	return writeDurably(path, []byte(versionText))
}

// writeDurably puts a file into place, whole or not at all.
func writeDurably(path string, content []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return storage.SyncDir(filepath.Dir(path))
}

// allocated is how many bytes a file takes on disk: maps are larger than what
// was written to them.
func allocated(f os.DirEntry) float64 {
	info, err := f.Info()
	if err != nil {
		return 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return float64(st.Blocks) * 512
	}
	return float64(info.Size())
}
