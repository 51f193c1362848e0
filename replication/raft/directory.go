package raft

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/lni/vfs"
	"golang.org/x/sys/unix"
)

const (
	lockFile   = "OWNER"
	statusFile = "dragonboat.ds"
	// hostIDFile has an id that dragonboat gives the host. Nothing of ours refers to it: replicas are found by the epochs.
	hostIDFile = "NODEHOST.ID"
)

// LockedError says who has a directory open, as far as they said.
type LockedError struct {
	Dir    string
	Holder string
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("raft directory %s is in use by %s: stop it, or give another directory", e.Dir, e.Holder)
}

func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// lockDir takes the directory for this host. Dragonboat has a lock of its own
// (fcntl), but it doesn't exclude two hosts of one process, and it comes too late
// for adoptHostname.
func lockDir(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock raft directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 256))
		_ = f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock raft directory %s: %w", dir, err)
		}
		who := strings.TrimSpace(string(holder))
		if who == "" {
			who = "another process"
		}
		return nil, &LockedError{Dir: dir, Holder: who}
	}
	name, _ := os.Hostname()
	if err := f.Truncate(0); err == nil {
		// Only a courtesy to whoever finds the lock taken.
		_, _ = f.WriteAt([]byte(fmt.Sprintf("process %d on %s\n", os.Getpid(), name)), 0)
	}
	return f, nil
}

// makeDir makes a directory and those above it, durably: what is synced within a directory is lost
// with the directory.
func makeDir(fsys vfs.FS, dir string) error {
	if info, err := fsys.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%s is a file, not a directory", dir)
		}
		return nil
	}
	parent := fsys.PathDir(dir)
	if parent != dir {
		if err := makeDir(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	return syncDir(fsys, parent)
}

// adoptHostname makes dir usable under the present host name.
//
// Dragonboat keeps everything in dir/<host name>/ and records the name in
// dir/dragonboat.ds, which it compares at start. A container made anew on the
// same volume has another name, so the recorded name is blanked (dragonboat
// skips an empty one) and the one data directory is renamed. Both steps may be
// repeated after a crash in between. No path that dragonboat stores is read
// back: it derives them from the names anew.
//
// The caller holds the lock on dir.
func adoptHostname(fsys vfs.FS, dir, deployment string) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("adopt host name: %w", err)
	}
	if err := blankHostname(fsys, dir); err != nil {
		return fmt.Errorf("adopt host name: %w", err)
	}
	names, err := fsys.List(dir)
	if err != nil {
		return fmt.Errorf("adopt host name: list %s: %w", dir, err)
	}
	var found []string
	for _, name := range names {
		if _, err := fsys.Stat(fsys.PathJoin(dir, name, deployment)); err == nil {
			found = append(found, name)
		}
	}
	switch {
	case len(found) == 0 || len(found) == 1 && found[0] == host:
		return nil
	case len(found) > 1:
		return fmt.Errorf("%w: %s holds the data of several host names (%s): keep one of these directories",
			ErrForeignDirectory, dir, strings.Join(found, ", "))
	}
	// A directory of this name without data is left over from nothing of ours.
	if _, err := fsys.Stat(fsys.PathJoin(dir, host)); err == nil {
		return fmt.Errorf("%w: rename %s to %s in %s: the name is taken", ErrForeignDirectory, found[0], host, dir)
	}
	if err := fsys.Rename(fsys.PathJoin(dir, found[0]), fsys.PathJoin(dir, host)); err != nil {
		return fmt.Errorf("adopt host name: %w", err)
	}
	return syncDir(fsys, dir)
}

// blankHostname empties the host name in dragonboat's status file.
func blankHostname(fsys vfs.FS, dir string) error {
	name := fsys.PathJoin(dir, statusFile)
	status, err := readStatus(fsys, dir)
	if err != nil || status == nil {
		return err
	}
	if status.Hostname == "" {
		return nil
	}
	status.Hostname = ""
	msg, err := status.Marshal()
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	tmp := name + ".new"
	w, err := fsys.Create(tmp)
	if err != nil {
		return fmt.Errorf("create %s: %w", tmp, err)
	}
	_, err = w.Write(append(statusHash(msg), msg...))
	if err == nil {
		err = w.Sync()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(tmp, name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return syncDir(fsys, dir)
}

// hasData says whether a directory holds the data of a host of this deployment.
func hasData(fsys vfs.FS, dir string, deployment uint64) (bool, error) {
	hosts, err := list(fsys, dir)
	if err != nil {
		return false, fmt.Errorf("list raft directory: %w", err)
	}
	for _, host := range hosts {
		if _, err := fsys.Stat(fsys.PathJoin(dir, host, fmt.Sprintf("%020d", deployment))); err == nil {
			return true, nil
		}
	}
	return false, nil
}

// dropHostID takes a damaged host id away, at which dragonboat would panic. It makes another one.
func dropHostID(fsys vfs.FS, dir string) (dropped bool, err error) {
	name := fsys.PathJoin(dir, hostIDFile)
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open %s: %w", name, err)
	}
	data, err := io.ReadAll(f)
	_ = f.Close()
	if err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) >= 8 && bytes.Equal(data[:8], statusHash(data[8:])) {
		return false, nil
	}
	if err := fsys.Remove(name); err != nil {
		return false, fmt.Errorf("take damaged %s away: %w", name, err)
	}
	return true, syncDir(fsys, dir)
}

func statusHash(msg []byte) []byte {
	sum := md5.Sum(msg)
	return append([]byte(nil), sum[8:]...)
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", dir, err)
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
