package journal

import "io"

// FS is the file system as far as the journal needs it. Names are whole paths. What Create,
// Rename and Remove did is durable when SyncDir of the directory has returned; what WriteAt and
// Truncate did, when the file's Sync has.
type FS interface {
	// List returns the names in a directory.
	List(dir string) ([]string, error)
	// Create makes an empty file, or empties one, and opens it for reading and writing.
	Create(name string) (File, error)
	// Open opens a file that exists for reading and, where the file system can, for writing.
	Open(name string) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
	// Reusable says whether files that were opened may be written again.
	Reusable() bool
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes what was written durable, and the length.
	Sync() error
	// Allocate reserves bytes on disk, and makes the file so long. A file system that can't do
	// that does nothing.
	Allocate(bytes int64) error
	Truncate(bytes int64) error
	Size() (int64, error)
}
