package broker

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/parleymq/parley/replication/epoch"
	"github.com/parleymq/parley/replication/format"
)

// dataFormat is the version of the data directory's layout.
const dataFormat = 1

// identity is what the file `id` says: whose data directory this is. It is
// written once, before anything else, and never changes, but for the ids
// that several brokers agree on when they form a cluster.
type identity struct {
	Format      int    `json:"format"`
	ClusterID   string `json:"cluster_id"`
	BrokerID    uint64 `json:"broker_id"`
	Incarnation string `json:"incarnation"`
	// Peers says that the broker began as one of several: the cluster's id and
	// its own are missing until they have formed a cluster.
	Peers bool `json:"peers,omitempty"`
	// Joining says that a cluster was asked to admit this directory, and that nothing was done
	// in it since: what its epochs directory holds is half of an answer.
	Joining bool `json:"joining,omitempty"`
}

// idFile is the identity with a checksum, so that a damaged file is not taken
// for another broker.
type idFile struct {
	identity
	Checksum string `json:"checksum"`
}

func (id identity) checksum() string {
	b, err := json.Marshal(id)
	if err != nil { // strings and numbers always marshal
		panic(err)
	}
	return fmt.Sprintf("%08x", crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// loadIdentity reads DIR/id, or makes a new one in an empty directory.
// peers says that it is to form a cluster with others.
func loadIdentity(dir string, peers bool) (identity, error) {
	path := filepath.Join(dir, "id")
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		for _, name := range []string{epochsDir, raftDir, logDir} {
			if !isEmpty(filepath.Join(dir, name)) {
				return identity{}, fmt.Errorf("data directory %s holds data in %s, but the file %s, which says whose it is, is missing: "+
					"restore that file, or give an empty directory", dir, name, path)
			}
		}
		id := identity{Format: dataFormat, ClusterID: randomID(), BrokerID: 1, Incarnation: randomID()}
		if peers {
			id.ClusterID, id.BrokerID, id.Peers = "", 0, true
		}
		return id, id.save(dir)
	case err != nil:
		return identity{}, fmt.Errorf("read identity: %w", err)
	}
	// The format comes first: a newer one may look different in all else.
	var f idFile
	if err := json.Unmarshal(b, &f); err != nil {
		return identity{}, fmt.Errorf("identity file %s is damaged: %w", path, err)
	}
	switch {
	case f.Format > dataFormat:
		return identity{}, format.Newer("data directory "+dir, "format", uint64(f.Format), dataFormat)
	case f.Format < 1:
		return identity{}, fmt.Errorf("identity file %s has format %d: this is no data directory of Parley", path, f.Format)
	case f.Checksum != f.identity.checksum() && foreignField(b) != "":
		return identity{}, fmt.Errorf("identity file %s: %w: it has %q, which this program doesn't know: start the newer program", path, format.ErrNewer, foreignField(b))
	case f.Checksum != f.identity.checksum():
		return identity{}, fmt.Errorf("identity file %s is damaged: its checksum is %s, its content says %s", path, f.Checksum, f.identity.checksum())
	case f.Incarnation == "" || f.BrokerID == 0 && !(f.Peers && f.ClusterID == ""):
		return identity{}, fmt.Errorf("identity file %s names no broker", path)
	}
	// They are written before anything else is.
	if !epoch.Begun(filepath.Join(dir, epochsDir)) && !(isEmpty(filepath.Join(dir, raftDir)) && isEmpty(filepath.Join(dir, logDir))) {
		return identity{}, fmt.Errorf("data directory %s holds logs, but its %s directory is empty, or the journal in it: restore it from a copy, or replace the broker", dir, epochsDir)
	}
	return f.identity, nil
}

// foreignField finds a field that this program doesn't write.
func foreignField(b []byte) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil {
		return ""
	}
	for _, name := range []string{"format", "cluster_id", "broker_id", "incarnation", "peers", "joining", "checksum"} {
		delete(fields, name)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		return name
	}
	return ""
}

// save writes DIR/id.
func (id identity) save(dir string) error {
	b, err := json.MarshalIndent(idFile{id, id.checksum()}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	if err := writeDurably(dir, filepath.Join(dir, "id"), append(b, '\n')); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// writeDurably makes path hold b or not exist, whatever happens.
func writeDurably(dir, path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err != nil && errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0
}

// randomID is 128 random bits, as text that can be a token of a subject.
func randomID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return strings.ToLower(hex.EncodeToString(b[:]))
}
