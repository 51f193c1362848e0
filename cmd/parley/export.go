package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/parleymq/parley/partition/record"
)

// An export is a directory: manifest.json, and for each partition a file of its record
// batches, whole, one after the other, as they are stored. docs/format/export.md has it.
const (
	manifestName   = "manifest.json"
	exportFormat   = 1
	maxManifest    = 4 << 20 // bytes
	maxExportBatch = 8 << 20 // bytes of one batch; far above what a broker takes
)

// manifest says what an export holds. While it isn't complete it says what is to be exported, so
// that it can be gone on with.
type manifest struct {
	Format     int                 `json:"format"`
	Complete   bool                `json:"complete"`
	Cluster    string              `json:"cluster_id"`
	Topic      string              `json:"topic"`
	Subjects   []string            `json:"subjects"`
	Config     map[string]string   `json:"config"`
	At         string              `json:"at"` // when it was begun, RFC 3339
	Partitions []exportedPartition `json:"partitions"`
}

// exportedPartition is one partition's file.
type exportedPartition struct {
	File    string `json:"file"`
	Start   int64  `json:"start_offset"` // of the partition, when the export began
	Until   int64  `json:"next_offset"`  // likewise; what came later is not in the export
	First   int64  `json:"first_offset"` // of the first batch, which may begin before Start; -1 with none
	Records int64  `json:"records"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"`
}

func partitionFile(n int) string { return fmt.Sprintf("partition-%05d.batches", n) }

func readManifest(dir string) (manifest, error) {
	path := filepath.Join(dir, manifestName)
	f, err := os.Open(path)
	if err != nil {
		return manifest{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return manifest{}, fmt.Errorf("read %s: %w", path, err)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil || len(b) > maxManifest {
		return manifest{}, fmt.Errorf("%s is no manifest of an export: %w", path, errors.Join(err, errTooLong(len(b))))
	}
	if m.Format != exportFormat {
		return manifest{}, fmt.Errorf("%s has format %d, this program knows %d", path, m.Format, exportFormat)
	}
	for n, p := range m.Partitions {
		if p.File != partitionFile(n) {
			return manifest{}, fmt.Errorf("%s names the file %q for partition %d, it should be %s", path, p.File, n, partitionFile(n))
		}
	}
	return m, nil
}

func errTooLong(n int) error {
	if n > maxManifest {
		return fmt.Errorf("more than %d bytes", maxManifest)
	}
	return nil
}

// save writes the manifest so that it is there whole or not at all.
func (m *manifest) save(dir string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, manifestName)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDirectory(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// batchFile reads a partition's file batch by batch.
type batchFile struct {
	path string
	r    *bufio.Reader
	sum  hash.Hash
	buf  []byte

	first, next int64 // offsets: of the first batch, after the last one; -1 before any
	records     int64
	bytes       int64
}

func newBatchFile(path string, r io.Reader) *batchFile {
	return &batchFile{path: path, r: bufio.NewReaderSize(r, 1<<20), sum: sha256.New(), first: -1, next: -1}
}

// batch returns the next batch, which is valid until the next call: io.EOF at the end,
// io.ErrUnexpectedEOF when the file ends within one, and an error when it isn't what follows.
func (f *batchFile) batch() (record.Batch, error) {
	head, err := f.r.Peek(record.HeaderSize)
	if len(head) == 0 {
		return nil, io.EOF
	}
	if len(head) < record.HeaderSize {
		return nil, errors.Join(io.ErrUnexpectedEOF, ignoreEOF(err))
	}
	// Split says how long it is, by its framing.
	n, err := record.Length(head)
	if err != nil || n > maxExportBatch {
		return nil, fmt.Errorf("%s: no batch at byte %d: %w", f.path, f.bytes, errors.Join(err, tooLarge(n)))
	}
	if cap(f.buf) < n {
		f.buf = make([]byte, n)
	}
	b := record.Batch(f.buf[:n])
	if _, err := io.ReadFull(f.r, b); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %s: %w", f.path, err)
	}
	if err := f.follows(b); err != nil {
		return nil, err
	}
	f.note(b)
	return b, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func tooLarge(n int) error {
	if n > maxExportBatch {
		return fmt.Errorf("%d bytes, at most %d are expected", n, maxExportBatch)
	}
	return nil
}

// follows checks a batch: its checksum, and that it begins where the last one ended.
func (f *batchFile) follows(b record.Batch) error {
	if err := b.VerifyCRC(); err != nil {
		return fmt.Errorf("%s: batch at byte %d, offset %d: %w", f.path, f.bytes, b.BaseOffset(), err)
	}
	if f.next >= 0 && b.BaseOffset() != f.next {
		return fmt.Errorf("%s: batch at byte %d begins at offset %d, the one before it ended at %d", f.path, f.bytes, b.BaseOffset(), f.next)
	}
	return nil
}

func (f *batchFile) note(b record.Batch) {
	if f.first < 0 {
		f.first = b.BaseOffset()
	}
	f.next = b.LastOffset() + 1
	f.records += int64(b.LastOffsetDelta()) + 1
	f.bytes += int64(len(b))
	f.sum.Write(b)
}

func (f *batchFile) sha() string { return hex.EncodeToString(f.sum.Sum(nil)) }
