package badger

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/parleymq/parley/partition/storage"
)

// Keys. A chunk's key holds its last offset before its base, so that one seek
// to an offset finds the chunk that holds it, and keys alone tell whether
// chunks adjoin.
//
//	'p' topic(8) partition(8) replica(8) 'c' last(8) base(8)   a chunk
//	'p' topic(8) partition(8) replica(8) 'i' key               an index pair
//	'f'                                                        scratch, never kept
//
// Badger adds its own version number to each.
const (
	logPrefix  = 'p'
	chunkKind  = 'c'
	indexKind  = 'i'
	prefixSize = 1 + 3*8
	chunkKey   = prefixSize + 1 + 16
)

// scratchKey is written and dropped at once, to make Badger flush.
var scratchKey = []byte{'f'}

// A chunk's value: version(1), index(8), log time(8), meta length(4), data
// length(4), CRC-32C(4) of key, head and meta, then meta and data. The data has CRCs of
// its own.
const (
	valueVersion = 1
	valueHead    = 1 + 8 + 8 + 4 + 4 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendPrefix(b []byte, id storage.LogID) []byte {
	b = append(b, logPrefix)
	b = binary.BigEndian.AppendUint64(b, id.Topic)
	b = binary.BigEndian.AppendUint64(b, id.Partition)
	return binary.BigEndian.AppendUint64(b, id.Replica)
}

func parsePrefix(k []byte) storage.LogID {
	return storage.LogID{
		Topic: binary.BigEndian.Uint64(k[1:]), Partition: binary.BigEndian.Uint64(k[9:]), Replica: binary.BigEndian.Uint64(k[17:]),
	}
}

// afterLog is above every key of the log and not above any of the next one.
func afterLog(id storage.LogID) []byte {
	return append(appendPrefix(make([]byte, 0, prefixSize+1), id), 0xff)
}

func appendChunkKey(b []byte, id storage.LogID, last, base int64) []byte {
	b = append(appendPrefix(b, id), chunkKind)
	b = binary.BigEndian.AppendUint64(b, uint64(last))
	return binary.BigEndian.AppendUint64(b, uint64(base))
}

func parseChunkKey(k []byte) (last, base int64, err error) {
	if len(k) != chunkKey {
		return 0, 0, fmt.Errorf("%w: chunk key of %d bytes", storage.ErrCorrupt, len(k))
	}
	last = int64(binary.BigEndian.Uint64(k[prefixSize+1:]))
	base = int64(binary.BigEndian.Uint64(k[prefixSize+9:]))
	if base < 0 || last < base {
		return 0, 0, fmt.Errorf("%w: chunk key from %d to %d", storage.ErrCorrupt, base, last)
	}
	return last, base, nil
}

func appendValue(b, key []byte, c *storage.Chunk) []byte {
	at := len(b)
	b = append(b, valueVersion)
	b = binary.BigEndian.AppendUint64(b, c.Index)
	b = binary.BigEndian.AppendUint64(b, uint64(c.LogTime))
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Meta)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Data)))
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, b[at:])
	b = binary.BigEndian.AppendUint32(b, crc32.Update(sum, castagnoli, c.Meta))
	b = append(b, c.Meta...)
	return append(b, c.Data...)
}

// parseValue fills c but for its offsets; its slices point into v.
func parseValue(c *storage.Chunk, key, v []byte) error {
	if len(v) < valueHead || v[0] != valueVersion {
		return fmt.Errorf("%w: value of %d bytes", storage.ErrCorrupt, len(v))
	}
	c.Index = binary.BigEndian.Uint64(v[1:])
	c.LogTime = int64(binary.BigEndian.Uint64(v[9:]))
	meta, data := binary.BigEndian.Uint32(v[17:]), binary.BigEndian.Uint32(v[21:])
	if uint64(meta)+uint64(data) != uint64(len(v)-valueHead) {
		return fmt.Errorf("%w: value of %d bytes says %d of meta and %d of data", storage.ErrCorrupt, len(v), meta, data)
	}
	c.Meta, c.Data = v[valueHead:valueHead+meta:valueHead+meta], v[valueHead+meta:]
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, v[:valueHead-4])
	if crc32.Update(sum, castagnoli, c.Meta) != binary.BigEndian.Uint32(v[valueHead-4:]) {
		return fmt.Errorf("%w: checksum of the chunk's head", storage.ErrCorrupt)
	}
	return nil
}

// chunkBytes is what a chunk's Meta and Data take, from its key and pointer
// alone, and whether they are in the value log. It is 0 for other keys.
func chunkBytes(item *badgerdb.Item) (n int64, inVlog bool) {
	if len(item.Key()) != chunkKey || item.Key()[prefixSize] != chunkKind {
		return 0, false
	}
	// ValueSize is exact for a value beside its key. For one in the value log it
	// guesses the length of the entry's head; EstimatedSize is the whole entry.
	size := item.ValueSize()
	if item.EstimatedSize() != item.KeySize()+size {
		inVlog = true
		rest := item.EstimatedSize() - 2 - 1 - 1 - (chunkKey + versionBytes) - crc32.Size
		for w := int64(1); w <= binary.MaxVarintLen32; w++ {
			var b [binary.MaxVarintLen64]byte
			if int64(binary.PutUvarint(b[:], uint64(max(rest-w, 0)))) == w {
				size = rest - w
				break
			}
		}
	}
	return max(size-valueHead, 0), inVlog
}

// keyIterator iterates over keys; values are fetched only when asked for.
func keyIterator(txn *badgerdb.Txn, prefix []byte, back bool) *badgerdb.Iterator {
	opt := badgerdb.DefaultIteratorOptions
	opt.PrefetchValues = false
	opt.Prefix = prefix
	opt.Reverse = back
	return txn.NewIterator(opt)
}
