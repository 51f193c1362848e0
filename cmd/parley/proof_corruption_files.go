package main

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Files of a data directory, as docs/format/ has them. What is damaged is chosen by kind; what a kind's bytes are
// good for says whether damage to them must be found.

// A fileKind is what a file is for.
type fileKind struct {
	name string
	// refers is false where nothing in the file is needed: damage to it may go unnoticed.
	refers bool
	weight int
}

var fileKinds = []fileKind{
	{"value-log", true, 10},
	{"table", true, 3},
	{"memtable-log", true, 3},
	{"manifest", true, 1},
	{"key-registry", true, 1},
	{"checkpoints", true, 3},
	{"raft-journal", true, 4},
	{"raft-journal-end", true, 2},
	{"raft-journal-identity", true, 1},
	{"raft-status", true, 1},
	{"raft-snapshot", false, 2}, // of cuts: what counts of them is in the Raft journal
	{"epoch-journal", true, 3},
	{"epoch-journal-end", true, 1},
	{"identity", true, 1},
	{"store-version", true, 1},
	{"discard-table", false, 1},
	{"spare", false, 1},
	{"lock", false, 1},
	{"note", false, 1},
	{"other", true, 1},
}

func fileKindNames() (names []string) {
	for _, k := range fileKinds {
		names = append(names, k.name)
	}
	return names
}

// kindOfFile tells a file's kind by its path in the data directory. What this proof knows nothing of is "other": damage to it must be found.
func kindOfFile(rel string) string {
	base := filepath.Base(rel)
	switch {
	case rel == "id":
		return "identity"
	case rel == "lock", base == "engine.lock", base == "OWNER", base == "LOCK":
		return "lock"
	case strings.HasPrefix(rel, "epochs/"):
		if base == "journal" {
			return "epoch-journal"
		}
		return "epoch-journal-end"
	case base == "checkpoints":
		return "checkpoints"
	case rel == "log/trash", rel == "log/compared", base == "collecting", base == "NODEHOST.ID", strings.Contains(rel, "/set-aside/"):
		return "note"
	case strings.HasPrefix(rel, "log/store/"):
		switch {
		case base == "VERSION":
			return "store-version"
		case base == "MANIFEST":
			return "manifest"
		case base == "KEYREGISTRY":
			return "key-registry"
		case base == "DISCARD":
			return "discard-table"
		case strings.HasSuffix(base, ".vlog"):
			return "value-log"
		case strings.HasSuffix(base, ".sst"):
			return "table"
		case strings.HasSuffix(base, ".mem"):
			return "memtable-log"
		}
	case strings.HasPrefix(rel, "raft/"):
		switch {
		case base == "JOURNAL":
			return "raft-journal-identity"
		case base == "END":
			return "raft-journal-end"
		case base == "dragonboat.ds":
			return "raft-status"
		case strings.HasSuffix(base, ".journal"):
			return "raft-journal"
		case strings.HasPrefix(base, "spare-"):
			return "spare"
		case strings.Contains(rel, "/snapshot-part-"):
			return "raft-snapshot"
		}
	}
	return "other"
}

// A storedFile is one of a broker's files.
type storedFile struct {
	kind  *fileKind
	path  string
	rel   string
	size  int64
	spans []span // what is needed of it
}

// A span of a file is needed for something: of a partition, in a value log.
type span struct {
	from, to  int64
	partition int32 // -1: of no one partition
}

// storedFiles walks a data directory. While the broker runs, files may come and go.
func storedFiles(dir string) (files []*storedFile, err error) {
	var logs []*storedFile
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := kindOfFile(rel)
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		f := &storedFile{path: path, rel: rel, size: info.Size()}
		for i := range fileKinds {
			if fileKinds[i].name == name {
				f.kind = &fileKinds[i]
			}
		}
		files = append(files, f)
		if name == "value-log" {
			logs = append(logs, f)
			return nil
		}
		return f.find()
	})
	if err != nil {
		return nil, err
	}
	return files, findEntries(logs)
}

// find finds what is needed of a file.
func (f *storedFile) find() error {
	if !f.kind.refers || f.size == 0 {
		return nil
	}
	end := f.size
	switch f.kind.name {
	case "key-registry":
		f.spans = []span{{min(16, end), end, -1}} // what is before it is for encryption
		return nil
	case "raft-journal-end", "epoch-journal-end":
		for at := int64(0); at < end; at += pageBytes { // a note a page
			f.spans = append(f.spans, span{at, min(at+64, end), -1})
		}
		return nil
	case "raft-journal":
		var err error
		if end, err = journalEnd(f.path); err != nil {
			return err
		}
	case "memtable-log":
		end = logHead
		if err := eachEntry(f.path, func(_, to int64, _ []byte) { end = to }); err != nil {
			return err
		}
		if end > logHead {
			f.spans = []span{{logHead, end, -1}}
		}
		return nil
	}
	f.spans = []span{{0, end, -1}}
	return nil
}

// journalEnd walks over a segment's frames by their lengths and batch numbers. Behind the end are zeros, or what the file
// held when it was another segment.
func journalEnd(path string) (int64, error) {
	data, err := usedPart(path)
	if err != nil {
		return 0, err
	}
	const head, frame = 64, 24
	if len(data) < head {
		return int64(len(data)), nil
	}
	batch := binary.LittleEndian.Uint64(data[40:])
	at := head
	for at+frame <= len(data) {
		n := int(binary.LittleEndian.Uint32(data[at:]))
		b := binary.LittleEndian.Uint64(data[at+8:])
		kind := data[at+16]
		if kind < 1 || kind > 3 || b != batch && b != batch+1 || n > len(data)-at-frame {
			break
		}
		batch = b
		at += (frame + n + 7) &^ 7
	}
	return int64(min(at, len(data))), nil
}

// usedPart reads a file up to its last byte that isn't zero, and some more: files are reserved ahead.
func usedPart(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const step, quiet = 1 << 20, 4
	var data []byte
	for zeros := 0; zeros < quiet; {
		b := make([]byte, step)
		n, err := io.ReadFull(f, b)
		data = append(data, b[:n]...)
		if zeros++; !allZero(b[:n]) {
			zeros = 0
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return data, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// logHead is what value logs and memtable logs begin with.
const logHead = 20

// eachEntry calls visit with where each entry of a value log or memtable log is, and its key.
func eachEntry(path string, visit func(from, to int64, key []byte)) error {
	data, err := usedPart(path)
	if err != nil {
		return err
	}
	at := logHead
	for at+2 < len(data) {
		n := at + 2
		var fields [3]uint64
		for i := range fields {
			v, w := binary.Uvarint(data[n:])
			if w <= 0 {
				return nil
			}
			fields[i], n = v, n+w
		}
		klen, vlen := fields[0], fields[1]
		if klen < 8 || klen > 1<<16 || vlen > uint64(len(data)) || n+int(klen)+int(vlen)+4 > len(data) {
			return nil
		}
		end := n + int(klen) + int(vlen) + 4
		visit(int64(at), int64(end), data[n:n+int(klen)])
		at = end
	}
	return nil
}

// findEntries finds the chunks in value logs that count: of each partition's newest replica, and of each chunk what was
// written last.
func findEntries(logs []*storedFile) error {
	type chunk struct {
		file *storedFile
		span span
		last uint64 // version
	}
	const keyBytes = 1 + 24 + 1 + 16 // docs/format/storage.md
	chunks := map[string]chunk{}
	newest := map[string]uint64{} // by topic and partition
	for _, f := range logs {
		err := eachEntry(f.path, func(from, to int64, key []byte) {
			if len(key) != keyBytes+8 || key[0] != 'p' || key[25] != 'c' {
				return
			}
			version := ^binary.BigEndian.Uint64(key[keyBytes:])
			k := string(key[:keyBytes])
			if old, ok := chunks[k]; !ok || version > old.last {
				chunks[k] = chunk{f, span{from, to, int32(binary.BigEndian.Uint64(key[9:]))}, version}
			}
			newest[k[1:17]] = max(newest[k[1:17]], binary.BigEndian.Uint64(key[17:]))
		})
		if err != nil {
			return err
		}
	}
	for k, c := range chunks {
		if binary.BigEndian.Uint64([]byte(k[17:])) == newest[k[1:17]] {
			c.file.spans = append(c.file.spans, c.span)
		}
	}
	for _, f := range logs {
		slices.SortFunc(f.spans, func(a, b span) int { return int(a.from - b.from) })
	}
	return nil
}
