package epoch

import (
	"io"
	"os"
	"path/filepath"
)

// file is what the journal needs of a file; tests put a faulty one in its place.
type file interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
	Close() error
}

// directory is what the journal needs of the directory it rests in. Tests give
// one in memory that loses what was not synced.
type directory interface {
	read(name string) ([]byte, error)
	open(name string, truncate bool) (file, error) // made where it isn't there
	rename(from, to string) error
	remove(name string) error
	sync() error // makes names durable
	path(name string) string
}

// diskDirectory is a directory on disk.
type diskDirectory string

func (d diskDirectory) path(name string) string          { return filepath.Join(string(d), name) }
func (d diskDirectory) read(name string) ([]byte, error) { return os.ReadFile(d.path(name)) }
func (d diskDirectory) remove(name string) error         { return os.Remove(d.path(name)) }
func (d diskDirectory) rename(from, to string) error     { return os.Rename(d.path(from), d.path(to)) }

func (d diskDirectory) open(name string, truncate bool) (file, error) {
	flags := os.O_RDWR | os.O_CREATE
	if truncate {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(d.path(name), flags, 0o640)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d diskDirectory) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
