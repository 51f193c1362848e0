package badger

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Names of Badger's files.
const (
	vlogExt        = ".vlog"
	memExt         = ".mem"
	tableExt       = ".sst"
	badgerManifest = "MANIFEST"
	badgerDiscard  = "DISCARD"
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
	offset  int64
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
				offset:  end,
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
		for _, b := range buf[:n] {
			if b != 0 {
				return false, nil
			}
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

// intact tells whether a finished value log file is entries from end to end.
func intact(path string) (bool, error) {
	end, err := scanLog(path, nil)
	if err != nil {
		return false, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	if end == info.Size() {
		return true, nil
	}
	return zeroFrom(path, end)
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
