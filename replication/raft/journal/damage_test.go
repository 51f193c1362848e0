package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/parleymq/parley/replication/format"
)

// filled is a disk with a journal that was ended by a power cut after a batch, or closed.
func filled(t testing.TB, seed uint64, closed bool) (*disk, []step) {
	t.Helper()
	steps := script(rand.New(rand.NewPCG(seed, 1)), 40)
	// The last step is a save, so that there is a last batch.
	steps = append(steps, step{"last", func(j *Journal) error {
		b := j.NewBatch()
		b.Bootstrap(Key{77, 1}, []byte("last"))
		return b.Commit()
	}, func(o oracle) { o.log(Key{77, 1}).bootstrap = "last" }})
	d := newDisk()
	j, err := Open("/j", testOptions(d))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		if err := s.do(j); err != nil {
			t.Fatal(err)
		}
	}
	if closed {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return d.copy(), steps
}

// copy is the disk as it is now, all of it synced.
func (d *disk) copy() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := newDisk()
	for name, node := range d.names {
		c := &inode{data: bytes.Clone(node.data), synced: bytes.Clone(node.data)}
		n.names[name], n.durable[name] = c, c
	}
	return n
}

// Wherever a bit of what was acknowledged turns, the journal isn't opened, and the error names the place; or the bit
// means nothing. Only after a power cut that left an
// older END may the last batch be taken for one that was never finished.
func TestTurnedBits(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"killed", "closed", "power cut"} {
		d, steps := filled(t, 3, how == "closed")
		if how == "power cut" {
			// END says two batches less.
			end := d.names["/j/"+endFile].data
			newest, ok := parseReached(end[:endNote], identity(d))
			if other, also := parseReached(end[endPage:endPage+endNote], identity(d)); !ok || !also {
				t.Fatal("END can't be read")
			} else if other.batch > newest.batch {
				newest = other
			}
			newest.batch -= 2
			for at := 0; at < endBytes; at += endPage {
				newest.encode(end[at:], identity(d))
			}
			d = d.copy()
		}
		want, without := meant(steps), meant(steps[:len(steps)-1])
		refused, harmless, dropped := 0, 0, 0
		newest := ""
		for name := range d.names {
			if strings.HasSuffix(name, segmentSuffix) && name > newest {
				newest = name
			}
		}
		for name, node := range d.names {
			if strings.Contains(name, sparePrefix) {
				continue
			}
			for at := 0; at < len(node.synced); at += 1 + at%53 {
				c := d.copy()
				c.names[name].data[at] ^= 1 << (at % 8)
				j, err := Open("/j", testOptions(c))
				if err != nil {
					var damage *DamageError
					if !errors.As(err, &damage) || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "/j/") {
						t.Fatalf("%s at %d: %v", name, at, err)
					}
					if damage.File != name {
						t.Fatalf("%s at %d: the error names another file: %v", name, at, err)
					}
					if strings.HasSuffix(name, segmentSuffix) && (damage.Offset > int64(at) || int64(at)-damage.Offset > 16<<10) {
						t.Fatalf("%s at %d: the error names another place: %v", name, at, err)
					}
					refused++
					continue
				}
				err = want.differs(j, true)
				switch {
				case err == nil:
					harmless++
				case how == "power cut" && name == newest && without.differs(j, true) == nil:
					dropped++
				default:
					t.Fatalf("%s: %s at %d: opened, but %v", how, name, at, err)
				}
			}
		}
		t.Logf("%s: refused %d, harmless %d (spaces between frames, what is behind the end), last batch dropped %d", how, refused, harmless, dropped)
		if refused < 1000 || (how == "power cut") == (dropped == 0) {
			t.Errorf("refused %d, dropped %d", refused, dropped)
		}
	}
}

// Without their CRCs, turned bits are refused only by luck: the test above needs them.
func TestTurnedPayloadBit(t *testing.T) {
	t.Parallel()
	d, steps := filled(t, 3, true)
	name := "/j/" + fmt.Sprintf("%016x%s", 1, segmentSuffix)
	for n := range d.names {
		if strings.HasSuffix(n, segmentSuffix) && (d.names[name] == nil || n < name) {
			name = n
		}
	}
	// A read notices it, too, when the disk turns it after the start.
	j, err := Open("/j", testOptions(d))
	if err != nil {
		t.Fatal(err)
	}
	for key, l := range meant(steps) {
		if l.last == l.trim {
			continue
		}
		r, s, ok, err := j.find(key, l.last)
		if err != nil || !ok {
			t.Fatal(err)
		}
		s.use.RUnlock()
		d.names[s.name].data[int(r.at)+int(r.size)-frameAlign-1] ^= 1
		err = j.Read(key, l.trim+1, l.last+1, func(uint64, []byte) (bool, error) { return true, nil })
		var damage *DamageError
		if !errors.As(err, &damage) || damage.File != s.name {
			t.Fatalf("read of a turned bit: %v", err)
		}
		return
	}
	t.Fatal("no log has entries")
}

// Files that are missing or too short are noticed.
func TestMissingFiles(t *testing.T) {
	t.Parallel()
	d, steps := filled(t, 3, true)
	want, refused := meant(steps), 0
	for name, node := range d.names {
		if strings.Contains(name, sparePrefix) {
			continue
		}
		c := d.copy()
		delete(c.names, name)
		if _, err := Open("/j", testOptions(c)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
		c = d.copy()
		c.names[name].data = c.names[name].data[:len(node.data)/2]
		if strings.HasSuffix(name, segmentSuffix) || name == "/j/"+identityFile {
			j, err := Open("/j", testOptions(c))
			if err == nil {
				// Half of it may be more than was used.
				err = want.differs(j, true)
			} else if errors.Is(err, ErrDamaged) {
				refused, err = refused+1, nil
			}
			if err != nil {
				t.Errorf("half of %s: %v", name, err)
			}
		}
	}
	if refused < 2 {
		t.Errorf("%d files were too short to be opened", refused)
	}
}

// However much of a journal's end is gone, at whatever batch: what was acknowledged is missed.
func TestMissingEnds(t *testing.T) {
	t.Parallel()
	d, _ := filled(t, 3, false)
	newest := ""
	for name := range d.names {
		if strings.HasSuffix(name, segmentSuffix) && name > newest {
			newest = name
		}
	}
	s, cuts := newSalt(identity(d), number(newest)), 0
	for off := segmentHeader; ; {
		h, ok := parseHeader(d.names[newest].data[off:], &s)
		if !ok {
			break
		}
		c := d.copy()
		c.names[newest].data = c.names[newest].data[:off]
		_, err := Open("/j", testOptions(c))
		var damage *DamageError
		if !errors.As(err, &damage) || damage.File != newest || damage.Offset > int64(off) {
			t.Fatalf("cut at %d: %v", off, err)
		}
		// Zeros, as of a file that was reserved.
		c = d.copy()
		clear(c.names[newest].data[off:])
		if _, err := Open("/j", testOptions(c)); !errors.Is(err, ErrDamaged) {
			t.Fatalf("zeros from %d on: %v", off, err)
		}
		cuts++
		off += frameSize(int(h.length))
	}
	if cuts < 3 {
		t.Errorf("%d cuts", cuts)
	}
}

// One of END's notes may be torn or damaged; without both of them nobody can say how far the journal went.
func TestEndFile(t *testing.T) {
	t.Parallel()
	d, steps := filled(t, 3, false)
	want := meant(steps)
	for first := range 2 {
		c := d.copy()
		c.names["/j/"+endFile].data[first*endPage+20] ^= 1
		o, told := testOptions(c), ""
		o.OnMended = func(what string) { told = what }
		j, err := Open("/j", o)
		if err != nil {
			t.Fatal(err)
		}
		if err := want.differs(j, true); err != nil || !strings.Contains(told, "/j/END") {
			t.Errorf("%v, told %q", err, told)
		}
		o.OnMended = func(what string) { t.Error(what) }
		if _, err := Open("/j", o); err != nil {
			t.Error(err)
		}
		c = d.copy()
		c.names["/j/"+endFile].data[20] ^= 1
		c.names["/j/"+endFile].data[endPage+20] ^= 1
		if _, err := Open("/j", testOptions(c)); !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	}
	// A journal of before there was one gets it, and is complete from then on.
	old := d.copy()
	delete(old.names, "/j/"+endFile)
	b := old.names["/j/"+identityFile].data
	b[16] = 0
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	j, err := Open("/j", testOptions(old))
	if err != nil {
		t.Fatal(err)
	}
	if err := want.differs(j, true); err != nil {
		t.Error(err)
	}
	delete(old.names, "/j/"+endFile)
	if _, err := Open("/j", testOptions(old)); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

// Each bit of each frame's header counts.
func TestTurnedHeaderBits(t *testing.T) {
	t.Parallel()
	d, _ := filled(t, 3, true)
	frames := 0
	for name, node := range d.names {
		if !strings.HasSuffix(name, segmentSuffix) {
			continue
		}
		s := newSalt(identity(d), number(name))
		for off := segmentHeader; off+frameHeader <= len(node.data); {
			h, ok := parseHeader(node.data[off:], &s)
			if !ok {
				break
			}
			if h.kind != kindEnd { // what only it proves
				for bit := frames % 7; bit < 8*frameHeader; bit += 7 {
					c := d.copy()
					c.names[name].data[off+bit/8] ^= 1 << (bit % 8)
					if _, err := Open("/j", testOptions(c)); !errors.Is(err, ErrDamaged) {
						t.Fatalf("bit %d of the header at %d of %s: %v", bit, off, name, err)
					}
				}
			}
			frames++
			off += frameSize(int(h.length))
		}
	}
	if frames < 50 {
		t.Errorf("%d frames", frames)
	}
}

// Behind the end there is anything: of a file's earlier life, of another journal, of a batch that was never
// finished, with what a producer sent in it. Only a frame of this very segment and of a batch after the next one
// proves that the end isn't one.
func TestBehindTheEnd(t *testing.T) {
	t.Parallel()
	d := newDisk()
	j, err := Open("/j", testOptions(d))
	if err != nil {
		t.Fatal(err)
	}
	b := j.NewBatch()
	b.Save(Key{1, 1}, Update{State: State{Term: 1}, First: 1, Entries: texts{"a"}})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	d = d.copy()
	s := j.active()
	for name, test := range map[string]struct {
		salt    salt
		batch   uint64
		turned  bool
		damaged bool
	}{
		"batch after next":       {salt: s.salt, batch: j.batch + 2, damaged: true},
		"next batch, unfinished": {salt: s.salt, batch: j.batch + 1},
		"older batch":            {salt: s.salt, batch: j.batch},
		"another segment's":      {salt: newSalt(j.id, 99), batch: j.batch + 2},
		"another journal's":      {salt: newSalt(j.id+1, s.number), batch: j.batch + 2},
		"wrong CRC":              {salt: s.salt, batch: j.batch + 2, turned: true},
		"too many batches":       {salt: s.salt, batch: j.batch + 1<<32},
	} {
		o := j.NewBatch()
		o.Remove(Key{1, 1})
		stamp(o.buf, &test.salt, test.batch, test.batch != j.batch+1)
		if test.turned {
			o.buf[20] ^= 1
		}
		c := d.copy()
		node := c.names[s.name]
		node.data = put(node.data, int64(s.end)+frameAlign*5, o.buf)
		reopened, err := Open("/j", testOptions(c))
		if errors.Is(err, ErrDamaged) != test.damaged {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if known, _ := reopened.Status(Key{1, 1}); known.Last != 1 {
				t.Errorf("%s: %d entries", name, known.Last)
			}
		}
	}
}

// Whatever a newest segment has, Open ends, with an error or a journal that can be used.
func FuzzRecovery(f *testing.F) {
	d, _ := filled(f, 3, false)
	name := ""
	for n := range d.names {
		if strings.HasSuffix(n, segmentSuffix) && n > name {
			name = n
		}
	}
	f.Add(uint16(100), []byte{1}, true)
	f.Add(uint16(64), []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01"), true)
	f.Add(uint16(64+24), []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), true)
	f.Fuzz(func(t *testing.T, at uint16, with []byte, mend bool) {
		c := d.copy()
		node := c.names[name]
		node.data = put(node.data, int64(at), with)
		if mend {
			// So that what is behind the CRCs is reached.
			mendFrames(node.data, newSalt(identity(d), number(name)))
		}
		j, err := Open("/j", testOptions(c))
		if err != nil {
			return
		}
		for _, key := range j.Replicas() {
			s, _ := j.Status(key)
			_ = j.Read(key, s.First, min(s.Last, s.First+100)+1, func(uint64, []byte) (bool, error) { return true, nil })
		}
		b := j.NewBatch()
		b.Bootstrap(Key{5, 5}, []byte("still good"))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func identity(d *disk) uint64 {
	return binary.LittleEndian.Uint64(d.names["/j/"+identityFile].data[8:])
}

func number(name string) uint64 {
	n, _ := segmentNumber(name[len("/j/"):])
	return n
}

// mendFrames sets the CRCs of what looks like frames, one behind the other.
func mendFrames(data []byte, s salt) {
	for off := segmentHeader; off+frameHeader <= len(data); {
		n := int(binary.LittleEndian.Uint32(data[off:]))
		if n > len(data)-off-frameHeader {
			return
		}
		binary.LittleEndian.PutUint32(data[off+4:], crc32.Checksum(data[off+frameHeader:off+frameHeader+n], castagnoli))
		binary.LittleEndian.PutUint32(data[off+20:], s.sum(data[off:off+20]))
		off += frameSize(n)
	}
}

// What a newer program wrote, whole by its CRCs, is said to be that. Where it is the newest batch it must not be
// passed over like one that was torn: what Raft promised would be forgotten.
func TestNewerPrograms(t *testing.T) {
	t.Parallel()
	d, _ := filled(t, 5, false)
	newest := ""
	for name := range d.names {
		if strings.HasSuffix(name, segmentSuffix) && name > newest {
			newest = name
		}
	}
	j, err := Open("/j", testOptions(d.copy()))
	if err != nil {
		t.Fatal(err)
	}
	var last *segment
	for _, s := range j.segments {
		if s.name == newest {
			last = s
		}
	}
	end, batch, id := int(last.end), j.batch, j.id
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	frame := func(k kind, flags byte, payload []byte) []byte {
		b := make([]byte, frameSize(len(payload)))
		binary.LittleEndian.PutUint32(b, uint32(len(payload)))
		binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(payload, castagnoli))
		b[16], b[18] = byte(k), flags
		s := newSalt(id, last.number)
		stamp(b, &s, batch+1, true)
		copy(b[frameHeader:], payload)
		return b
	}
	record := binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(nil, 7), 1), flagsKnown+1)
	add := func(b []byte) func(d *disk) {
		return func(d *disk) {
			n := d.names[newest]
			n.data = append(n.data[:end:end], b...)
			n.synced = bytes.Clone(n.data)
		}
	}
	file := func(name string, size int) func(d *disk) {
		return func(d *disk) {
			b := d.names[name].data
			copy(b, "PRLYRJ2\n")
			binary.LittleEndian.PutUint32(b[size-4:], crc32.Checksum(b[:size-4], castagnoli))
			d.names[name].synced = bytes.Clone(b)
		}
	}
	for name, c := range map[string]struct {
		write func(d *disk)
		text  string
	}{
		"a kind of frame":   {add(frame(kindEnd+1, 0, []byte("x"))), "kind 4, this program knows up to 3"},
		"flags of a frame":  {add(frame(kindRecord, 2, record)), "flags 2"},
		"flags of a record": {add(frame(kindRecord, 0, record)), "flags"},
		"a segment":         {file(newest, segmentHeader), "format 2, this program knows up to 1"},
		"the journal":       {file("/j/"+identityFile, identitySize), "format 2, this program knows up to 1"},
	} {
		c2 := d.copy()
		c.write(c2)
		_, err := Open("/j", testOptions(c2))
		if !errors.Is(err, format.ErrNewer) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "/j/") {
			t.Errorf("%s: %v, want ErrNewer with %q", name, err, c.text)
		}
	}
	// The same bytes with a turned bit are what they were before: a torn end.
	torn := frame(kindEnd+1, 0, []byte("x"))
	torn[frameHeader] ^= 1
	c2 := d.copy()
	add(torn)(c2)
	if j, err = Open("/j", testOptions(c2)); err != nil {
		t.Errorf("a torn frame: %v", err)
	} else if err := j.Close(); err != nil {
		t.Error(err)
	}
}
