package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	badgerdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/table"

	"github.com/parleymq/parley/partition/storage"
)

// verifyBytes bounds how much of the tables is read before Badger opens. Up to
// it every block is verified; above it the index and the last block of each
// table, which are what Badger's Open relies on.
const verifyBytes = 256 << 20

// checkTables verifies manifest and tables before Badger sees them. Badger's own
// Open panics on some damaged tables, in a goroutine where nobody can recover;
// leaves others out with no more than a log line; and deletes every table that
// the manifest doesn't name, which after a damaged manifest may be most of them.
// So the unnamed ones are moved out of its way, and the damaged ones are an error.
func (e *Engine) checkTables(names []string) error {
	path := filepath.Join(e.files, badgerManifest)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		for _, name := range names {
			for _, ext := range []string{tableExt, vlogExt, memExt} {
				if strings.HasSuffix(name, ext) {
					return fmt.Errorf("%s: %w: the file is missing, but there is %s", path, storage.ErrCorrupt, name)
				}
			}
		}
		return nil // Badger creates the manifest before anything else
	}
	if err != nil {
		return err
	}
	manifest, end, err := badgerdb.ReplayManifestFile(f, magic, e.options())
	info, statErr := f.Stat()
	if closeErr := f.Close(); closeErr != nil || statErr != nil {
		return errors.Join(closeErr, statErr)
	}
	if err != nil {
		text, _, _ := strings.Cut(err.Error(), "\n") // some of Badger's errors go on with advice for users of Badger
		return fmt.Errorf("%s: %w: %s", path, storage.ErrCorrupt, text)
	}
	if end < info.Size() {
		e.log.Warningf("%s: bytes %d to %d are no whole entry and will be cut", path, end, info.Size())
		if err := e.setAside(badgerManifest, copyFile); err != nil {
			return err
		}
	}
	var total int64
	for id := range manifest.Tables {
		if info, err := os.Stat(table.NewFilename(id, e.files)); err == nil {
			total += info.Size()
		}
	}
	for id := range manifest.Tables {
		if err := verifyTable(table.NewFilename(id, e.files), total <= verifyBytes); err != nil {
			return err
		}
	}
	for _, name := range names {
		if !strings.HasSuffix(name, tableExt) {
			continue
		}
		id, ok := table.ParseFileID(name)
		if _, named := manifest.Tables[id]; ok && !named {
			if err := e.setAside(name, os.Rename); err != nil {
				return err
			}
		}
	}
	return nil
}

// verifyTable checks a table's index and, with whole, all of its blocks, else
// the last one. A table ends with its index, the index's length (4), a checksum,
// and that one's length (4); a block ends with a checksum and its length (4).
func verifyTable(path string, whole bool) (err error) {
	bad := func(what string) error { return fmt.Errorf("%s: %w: %s", path, storage.ErrCorrupt, what) }
	defer func() {
		if r := recover(); r != nil {
			err = bad(fmt.Sprint("its index makes no sense: ", r))
		}
	}()
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return bad("the table is missing")
		}
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	at := info.Size()
	take := func(n int64) ([]byte, error) {
		if n < 0 || n > at {
			return nil, bad("it is cut short, or a length in it is wrong")
		}
		at -= n
		b := make([]byte, n)
		_, err := f.ReadAt(b, at)
		return b, err
	}
	takeSized := func() ([]byte, error) {
		size, err := take(4)
		if err != nil {
			return nil, err
		}
		return take(int64(binary.BigEndian.Uint32(size)))
	}
	sum, err := takeSized()
	if err != nil {
		return err
	}
	index, err := takeSized()
	if err != nil {
		return err
	}
	if !verifies(index, sum) {
		return bad("checksum of its index")
	}
	ti := fb.GetRootAsTableIndex(index, 0)
	blocks := ti.OffsetsLength()
	if blocks == 0 {
		return bad("its index is empty")
	}
	first := blocks - 1
	if whole {
		first = 0
	}
	var block []byte
	for i := first; i < blocks; i++ {
		var bo fb.BlockOffset
		if !ti.Offsets(&bo, i) || int64(bo.Offset())+int64(bo.Len()) > at || bo.Len() < 8 {
			return bad("its index points outside of it")
		}
		if cap(block) < int(bo.Len()) {
			block = make([]byte, bo.Len())
		}
		block = block[:bo.Len()]
		if _, err := f.ReadAt(block, int64(bo.Offset())); err != nil {
			return err
		}
		end := len(block) - 4
		size := int(binary.BigEndian.Uint32(block[end:]))
		if size > end || !verifies(block[:end-size], block[end-size:end]) {
			return bad(fmt.Sprintf("checksum of the block at byte %d", bo.Offset()))
		}
	}
	return nil
}

// verifies checks data against Badger's encoded checksum: a protobuf message of
// an algorithm (field 1, 0 or absent for CRC-32C, the only one that is written)
// and the sum (field 2).
func verifies(data, checksum []byte) bool {
	var algorithm, sum uint64
	for len(checksum) > 0 {
		tag := checksum[0]
		v, n := binary.Uvarint(checksum[1:])
		if n <= 0 {
			return false
		}
		switch tag {
		case 1 << 3:
			algorithm = v
		case 2 << 3:
			sum = v
		default:
			return false
		}
		checksum = checksum[1+n:]
	}
	return algorithm == 0 && sum == uint64(crc32.Checksum(data, castagnoli))
}
