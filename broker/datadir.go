package broker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/epoch/config"
)

// The data directory.
const (
	epochsDir = "epochs"
	raftDir   = "raft"
	logDir    = "log"
	lockName  = "lock"
)

// ErrLocked: another process has the data directory.
var ErrLocked = errors.New("data directory is in use")

// dataDir is a data directory that this process holds the lock of.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the directory if need be and locks it. The lock is the
// kernel's: it goes with the process, however that ends.
func openDataDir(path string) (*dataDir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	if err := os.MkdirAll(abs, 0o750); err != nil {
		return nil, fmt.Errorf("make data directory: %w: give a directory that can be written to", err)
	}
	f, err := os.OpenFile(filepath.Join(abs, lockName), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("data directory %s can't be written to: %w", abs, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 512))
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock data directory %s: %w", abs, err)
		}
		return nil, fmt.Errorf("%w: %s is held by %s; stop that broker or use another --data-dir", ErrLocked, abs, holderText(string(holder)))
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	who := fmt.Sprintf("pid %d on %s\n", os.Getpid(), host)
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(who), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("data directory %s can't be written to: %w", abs, err)
	}
	return &dataDir{path: abs, lock: f}, nil
}

func holderText(s string) string {
	if s = strings.TrimSpace(s); s == "" {
		return "another process"
	}
	return s
}

func (d *dataDir) sub(name string) string { return filepath.Join(d.path, name) }

// close gives up the lock. The file stays: deleting it would let two processes
// lock two files of one name.
func (d *dataDir) close() error { return d.lock.Close() }

// KnownEpoch returns the newest epoch that a data directory knows, and changes nothing. The broker must be stopped.
func KnownEpoch(path string) (*config.Config, error) {
	if _, err := os.Stat(filepath.Join(path, "id")); err != nil {
		return nil, fmt.Errorf("%s is no data directory of a broker: %w", path, err)
	}
	dir, err := openDataDir(path)
	if err != nil {
		return nil, err
	}
	defer dir.close() //nolint:errcheck // nothing was written
	return epoch.Peek(dir.sub(epochsDir))
}
