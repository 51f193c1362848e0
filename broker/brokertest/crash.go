package brokertest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// crashTries is how often the directory is copied until nothing in it changed meanwhile.
const crashTries = 20

// Crash ends the broker as SIGKILL does: what is in its directory now is what it starts with again, and nothing that it does or
// says afterwards counts. release lets go on whatever a test holds up in it, so that what is left of it can be stopped.
func (m *Member) Crash(release func()) {
	m.cluster.t.Helper()
	m.Isolate(true)
	dir := m.cluster.t.TempDir()
	err := errors.New("it changes all the time")
	for range crashTries {
		var before, after map[string]string
		if before, err = looks(m.dir); err == nil {
			err = copyTree(dir, m.dir)
		}
		if err == nil {
			after, err = looks(m.dir)
		}
		if err == nil && maps.Equal(before, after) {
			break
		}
		err = errors.Join(err, errors.New("it changes all the time"), os.RemoveAll(dir))
	}
	if err != nil {
		m.cluster.t.Fatalf("copy the directory of broker %s: %v", m.Name, err)
	}
	release()
	m.Stop()
	m.dir = dir
	m.Isolate(false)
}

// looks tells what each file below a directory looks like.
func looks(dir string) (map[string]string, error) {
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			all[path] = fmt.Sprint(info.Size(), info.ModTime().Format(time.RFC3339Nano))
		}
		return err
	})
	return all, err
}

// copyTree copies a directory, holes as holes: stores lay their files out larger than they fill them.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case d.Type().IsRegular():
			return copySparse(filepath.Join(to, rel), path)
		}
		return nil
	})
}

func copySparse(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); ; {
		data, err := in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes to the end
		}
		if err != nil {
			return err
		}
		hole, err := in.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := in.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, hole-data); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		at = hole
	}
}
