package partition

import (
	"hash/crc32"

	"github.com/parleymq/parley/partition/record"
	"github.com/parleymq/parley/partition/storage"
)

// The chain is a digest of all chunks that were ever appended to the log, each folded
// into what was there before. It is part of the state, and every index mark holds
// it as it was before the mark's chunk. So two replicas that have the same chain at an
// offset have stored the same up to there, and a run of chunks between two marks can be
// checked against them, without anybody having read the log.
//
// It tells replicas apart that went different ways, by fault or accident. It is
// no protection against forgery: the batches' content is in it by their CRCs.

// fold takes 64 bits into the digest.
func fold(h, v uint64) uint64 {
	h = (h ^ v) * 0x9e3779b97f4a7c15
	return h ^ h>>32
}

// link takes a chunk into the digest. An error says that the chunk's data is no run
// of batches.
func link(h uint64, c *storage.Chunk) (uint64, error) {
	h = fold(h, uint64(c.Base))
	h = fold(h, uint64(c.Last))
	h = fold(h, c.Index)
	h = fold(h, uint64(c.LogTime))
	h = fold(h, uint64(crc32.Checksum(c.Meta, castagnoli))<<32|uint64(len(c.Meta)))
	for data := c.Data; len(data) > 0; {
		b, rest, err := record.Split(data)
		if err != nil {
			return 0, err
		}
		h = fold(h, uint64(b.BaseOffset()))
		h = fold(h, uint64(b.CRC())<<32|uint64(uint32(b.LeaderEpoch())))
		h = fold(h, uint64(len(b)))
		data = rest
	}
	return h, nil
}
