package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/parleymq/parley/partition/storage"
)

// asideDir holds what Badger would have deleted or cut when it opened: tables
// that the manifest doesn't name, memtable logs with a damaged tail. After a
// power cut that is what was never durable. After damage it may be all that is left
// of somebody's records. It goes with the first collection, unless damage was seen.
const asideDir = "set-aside"

// preflight looks at Badger's files and sets right what Badger's Open would trip
// over or make worse. It returns the numbers of the value log files whose
// collection a crash has interrupted.
func (e *Engine) preflight() (interrupted []uint32, err error) {
	entries, err := os.ReadDir(e.files)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, f := range entries {
		names[i] = f.Name()
	}
	if interrupted, err = e.readCollectNote(); err != nil {
		return nil, err
	}
	if err := e.checkKeyRegistry(); err != nil {
		return nil, err
	}
	if err := e.checkTables(names); err != nil {
		return nil, err
	}
	if err := e.checkMemtableLogs(names); err != nil {
		return nil, err
	}
	if err := e.checkValueLogs(names); err != nil {
		return nil, err
	}
	if err := e.checkDiscards(names, interrupted); err != nil {
		return nil, err
	}
	return interrupted, storage.SyncDir(e.files)
}

// checkKeyRegistry repairs the list of encryption keys, which is empty, since nothing is encrypted: 16 bytes of anything and a
// text. Badger takes a damaged one for that of another key and doesn't open.
func (e *Engine) checkKeyRegistry() error {
	const random, text = 16, "Hello Badger"
	path := filepath.Join(e.files, badgerKeys)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(e.files, badgerManifest)); err == nil {
			e.log.Warningf("%s: it is missing and is made anew: it held nothing, since nothing is encrypted", path)
		}
		return nil // Badger makes it
	}
	if err != nil {
		return err
	}
	if len(b) == random+len(text) && string(b[random:]) == text {
		return nil
	}
	e.log.Warningf("%s: it is damaged and is written anew: it holds nothing, since nothing is encrypted", path)
	return writeDurably(path, append(make([]byte, random), text...))
}

// checkMemtableLogs removes empty ones: Badger empties a file before it removes
// it, and after a crash in between its Open fails ("Create a new file"). Of those
// with something behind the last entry it keeps a copy, as Badger cuts them: that
// may be a torn write, which nobody was promised, or a bit that flipped.
func (e *Engine) checkMemtableLogs(names []string) error {
	for _, name := range names {
		if !strings.HasSuffix(name, memExt) {
			continue
		}
		path := filepath.Join(e.files, name)
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Size() == 0 {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		if err := e.checkHead(path); err != nil {
			return err
		}
		end, err := scanLog(path, nil)
		if err != nil {
			return err
		}
		clean, err := zeroFrom(path, min(end, info.Size()))
		if err != nil {
			return err
		}
		if !clean {
			e.log.Warningf("%s: no whole entry at byte %d, and what follows will be dropped", path, end)
			if err := e.setAside(name, copyFile); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkHead zeroes the number of the encryption key that a value log or memtable log begins with, if it isn't: nothing is
// encrypted, and Badger would look for a key that there isn't. The rest of the head is for encryption alone.
func (e *Engine) checkHead(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var key [8]byte
	if _, err := f.ReadAt(key[:], 0); err == nil && !allZero(key[:]) {
		e.log.Warningf("%s: its head is damaged and is written anew: it is for encryption, and nothing is encrypted", path)
		_, err = f.WriteAt(make([]byte, len(key)), 0)
		return errors.Join(err, f.Sync(), f.Close())
	}
	return f.Close() // one that is shorter has nothing in it
}

// checkValueLogs gives emptied files their header back, for the reason above; they
// are kept because their number must not be given out again. It cuts the zeros off
// the newest file, and adds an empty one: Badger scans the newest one only, and
// cuts it at the first entry that is damaged, along with all the good ones behind it.
func (e *Engine) checkValueLogs(names []string) error {
	var newest uint32
	for _, name := range names {
		file, ok := fileNumber(name, vlogExt)
		if !ok {
			continue
		}
		newest = max(newest, file)
		path := filepath.Join(e.files, name)
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Size() == 0 {
			if err := os.WriteFile(path, make([]byte, logHeaderBytes), 0o600); err != nil {
				return err
			}
			if err := fsync(path); err != nil {
				return err
			}
		}
		if err := e.checkHead(path); err != nil {
			return err
		}
	}
	if newest == 0 {
		return nil
	}
	path := vlogPath(e.files, newest)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() <= logHeaderBytes {
		return nil
	}
	// Badger makes the file twice as large as it will get, and counts that as use
	// when it looks for garbage. An entry ends with a checksum, so at most its last
	// four bytes are zero.
	end, err := lastNonZero(path, info.Size())
	if err != nil {
		return err
	}
	if end = max(end+crc32.Size, logHeaderBytes); end < info.Size() {
		// Not fsynced: whoever opens this after a power cut does it again.
		if err := os.Truncate(path, end); err != nil {
			return err
		}
	}
	return writeDurably(vlogPath(e.files, newest+1), make([]byte, logHeaderBytes))
}

// checkDiscards repairs the table in which Badger counts garbage per value log
// file. It is written through a memory map and never synced; Badger loops forever
// over a file that is in it twice, and panics when it is cut short.
func (e *Engine) checkDiscards(names []string, interrupted []uint32) error {
	exists := make(map[uint64]int64)
	for _, name := range names {
		if file, ok := fileNumber(name, vlogExt); ok {
			info, err := os.Stat(filepath.Join(e.files, name))
			if err != nil {
				return err
			}
			exists[uint64(file)] = info.Size()
		}
	}
	path := filepath.Join(e.files, badgerDiscard)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	garbage := make(map[uint64]uint64)
	for b := old; len(b) >= 16; b = b[16:] {
		file, n := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
		if size, ok := exists[file]; ok && n <= uint64(size) {
			garbage[file] = max(garbage[file], n)
		}
	}
	// All that still lived in a file whose collection was interrupted lives in
	// another one by the time anybody looks at this.
	for _, file := range interrupted {
		if size, ok := exists[uint64(file)]; ok {
			garbage[uint64(file)] = uint64(size)
		}
	}
	files := make([]uint64, 0, len(garbage))
	for file, n := range garbage {
		if n > 0 {
			files = append(files, file)
		}
	}
	sort.Slice(files, func(i, j int) bool { return files[i] < files[j] })
	table := make([]byte, max(discardBytes, len(old)/discardBytes*discardBytes))
	for i, file := range files {
		binary.BigEndian.PutUint64(table[16*i:], file)
		binary.BigEndian.PutUint64(table[16*i+8:], garbage[file])
	}
	if string(table) == string(old) {
		return nil
	}
	return writeDurably(path, table)
}

// discardBytes is the size that Badger gives the table, 16 bytes an entry.
const discardBytes = 1 << 20

// setAside moves or copies one of Badger's files out of its way.
func (e *Engine) setAside(name string, how func(from, to string) error) error {
	dir := filepath.Join(e.dir, asideDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	to := filepath.Join(dir, time.Now().UTC().Format("20060102T150405.000000000-")+name)
	if err := how(filepath.Join(e.files, name), to); err != nil {
		return fmt.Errorf("set %s aside: %w", name, err)
	}
	e.log.Warningf("%s is set aside as %s", filepath.Join(e.files, name), to)
	return nil
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Sync(), dst.Close())
}
