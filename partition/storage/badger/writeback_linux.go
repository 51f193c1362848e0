package badger

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// startWriteback has the kernel begin to write a file's dirty pages, and doesn't wait for them. It is advice, so only what
// says that the disk failed is an error.
func startWriteback(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		err = nil
	}
	return errors.Join(err, f.Close())
}
