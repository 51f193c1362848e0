// Package diskuse measures what directories take on disk.
package diskuse

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
)

// Of sums up what the regular files below a directory take, holes left out. Files that go meanwhile don't count.
func Of(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				bytes += Taken(info)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return bytes, err
}

// Taken is what one file takes.
func Taken(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
