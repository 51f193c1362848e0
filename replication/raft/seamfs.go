package raft

import (
	"io/fs"

	"github.com/lni/vfs"

	"github.com/parleymq/parley/replication/raft/journal"
)

// seamFS is a test's file system in memory as a journal's. Its files are written from front to
// back, and read by another handle.
type seamFS struct{ fs vfs.FS }

func (s seamFS) List(dir string) ([]string, error) { return s.fs.List(dir) }
func (s seamFS) Rename(from, to string) error      { return s.fs.Rename(from, to) }
func (s seamFS) Remove(name string) error          { return s.fs.Remove(name) }
func (s seamFS) SyncDir(dir string) error          { return syncDir(s.fs, dir) }
func (s seamFS) Reusable() bool                    { return false }

func (s seamFS) Create(name string) (journal.File, error) {
	w, err := s.fs.Create(name)
	if err != nil {
		return nil, err
	}
	f, err := s.Open(name)
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	return seamFile{f.(seamFile).File, w}, nil
}

func (s seamFS) Open(name string) (journal.File, error) {
	f, err := s.fs.Open(name)
	if err != nil {
		return nil, err
	}
	return seamFile{File: f}, nil
}

type seamFile struct {
	vfs.File
	w vfs.File // nil for one that was only opened
}

func (f seamFile) WriteAt(b []byte, off int64) (int, error) {
	if f.w == nil {
		return 0, fs.ErrPermission
	}
	return f.w.WriteAt(b, off)
}

func (f seamFile) Sync() error {
	if f.w == nil {
		return nil
	}
	return f.w.Sync()
}

func (f seamFile) Close() error {
	err := f.File.Close()
	if f.w != nil {
		if cerr := f.w.Close(); err == nil {
			err = cerr
		}
	}
	return err
}

// Neither is needed where nothing is reserved.
func (seamFile) Allocate(int64) error { return nil }
func (seamFile) Truncate(int64) error { return nil }

func (f seamFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
