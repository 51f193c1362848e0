package badger

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of Badger's files.
const (
	vlogExt        = ".vlog"
	memExt         = ".mem"
	tableExt       = ".sst"
	badgerManifest = "MANIFEST"
	badgerDiscard  = "DISCARD"
	badgerKeys     = "KEYREGISTRY"
)

// Value log files and memtable logs have the same bytes: a header of 20 bytes,
// then entries of meta (1), user meta (1), key length, value length, expiry (varints),
// key, value, CRC-32C (4, big endian) of all that. The last 8 bytes of a key are its
// version, counted down from the highest. What follows the last entry is zero.
const (
	logHeaderBytes = 20
	versionBytes   = 8
	// maxEntryBytes bounds what a damaged length can make us read.
	maxEntryBytes = 1 << 30
)

// logEntry is one entry. Its slices are valid until the next one is read.
type logEntry struct {
	key     []byte // without the version
	version uint64
	value   []byte
}

// scanLog calls visit with each entry of a file and returns where the last
// whole one ends. Anything behind that is not an entry: zeros, or damage.
func scanLog(path string, visit func(logEntry) error) (end int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Seek(logHeaderBytes, io.SeekStart); err != nil {
		return 0, err
	}
	end = logHeaderBytes
	r := bufio.NewReaderSize(f, 256<<10)
	var buf []byte
	for {
		head, err := r.Peek(2 + 3*binary.MaxVarintLen64)
		if err != nil && !errors.Is(err, io.EOF) {
			return end, err
		}
		n, klen, vlen, ok := parseEntryHead(head)
		if !ok || klen <= versionBytes || klen > 1<<16 || vlen > maxEntryBytes {
			return end, nil
		}
		size := n + int(klen) + int(vlen) + crc32.Size
		if cap(buf) < size {
			buf = make([]byte, size+size/2)
		}
		buf = buf[:size]
		if _, err := io.ReadFull(r, buf); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return end, nil
			}
			return end, err
		}
		body := buf[:size-crc32.Size]
		if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(buf[len(body):]) {
			return end, nil
		}
		if visit != nil {
			key := body[n : n+int(klen)]
			stem := key[:len(key)-versionBytes]
			if err := visit(logEntry{
				key:     stem,
				version: ^binary.BigEndian.Uint64(key[len(stem):]),
				value:   body[n+int(klen):],
			}); err != nil {
				return end, err
			}
		}
		end += int64(size)
	}
}

func parseEntryHead(b []byte) (n int, klen, vlen uint64, ok bool) {
	if len(b) < 2 {
		return 0, 0, 0, false
	}
	n = 2
	var fields [3]uint64
	for i := range fields {
		v, w := binary.Uvarint(b[n:])
		if w <= 0 {
			return 0, 0, 0, false
		}
		fields[i], n = v, n+w
	}
	return n, fields[0], fields[1], true
}

// zeroFrom tells whether a file holds nothing but zeros from offset on.
func zeroFrom(path string, offset int64) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := f.ReadAt(buf, offset)
		if !allZero(buf[:n]) {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		offset += int64(n)
	}
}

// findChunks calls visit with the whole entries of chunks wherever they begin in
// data: behind damage nothing says where the next one does.
func findChunks(data []byte, visit func(logEntry) error) error {
	const before = 2 + 1 + binary.MaxVarintLen32 + 1 // the most that an entry has before its key
	for at := 0; ; at++ {
		i := bytes.IndexByte(data[at:], logPrefix)
		if i < 0 {
			return nil
		}
		at += i
		for start := max(at-before, 0); start+4 < at; start++ {
			if data[start+2] != chunkKey+versionBytes {
				continue
			}
			n, klen, vlen, ok := parseEntryHead(data[start:])
			if !ok || start+n != at || vlen > uint64(len(data)) {
				continue
			}
			end := uint64(at) + klen + vlen
			if end+crc32.Size > uint64(len(data)) ||
				crc32.Checksum(data[start:end], castagnoli) != binary.BigEndian.Uint32(data[end:]) {
				continue
			}
			key := data[at : at+chunkKey]
			if err := visit(logEntry{
				key: key, version: ^binary.BigEndian.Uint64(data[at+chunkKey:]), value: data[at+chunkKey+versionBytes : end],
			}); err != nil {
				return err
			}
			break
		}
	}
}

// mapped calls f with a file's bytes.
func mapped(path string, f func(data []byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	data, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", path, err)
	}
	return errors.Join(guarded(func() error { return f(data) }), unix.Munmap(data))
}

// lastNonZero returns the end of what is not zero in a file.
func lastNonZero(path string, size int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for size > 0 {
		from := max(size-int64(len(buf)), 0)
		b := buf[:size-from]
		if _, err := f.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if !allZero(b) {
			for b[len(b)-1] == 0 {
				b = b[:len(b)-1]
			}
			return from + int64(len(b)), nil
		}
		size = from
	}
	return 0, nil
}

func allZero(b []byte) bool {
	var zero [64 << 10]byte
	for len(b) > 0 {
		n := min(len(b), len(zero))
		if !bytes.Equal(b[:n], zero[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

func vlogPath(dir string, file uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%06d%s", file, vlogExt))
}

// fileNumber parses the number in a name such as 000012.vlog.
func fileNumber(name, ext string) (uint32, bool) {
	stem, ok := strings.CutSuffix(name, ext)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(stem, 10, 32)
	return uint32(n), err == nil
}
