package journal

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// maxSegment is where a segment ends at the latest, offsets being 32 bits.
const maxSegment = 1 << 31

const (
	segmentSuffix = ".journal"
	sparePrefix   = "spare-"
	identityFile  = "JOURNAL"
)

// A segment is a file of the journal.
type segment struct {
	name   string
	number uint64
	file   File
	salt   salt

	// Guarded by Journal.mu; end is changed by whoever has the turn.
	end  uint32
	live int64 // bytes of frames with entries that count

	whole bool         // all blocks of the file were written once
	use   sync.RWMutex // held by readers, and by whoever takes the file away
}

func (s *segment) number32() uint32 { return uint32(s.number) }

func (j *Journal) segmentName(number uint64) string {
	return filepath.Join(j.dir, fmt.Sprintf("%016x%s", number, segmentSuffix))
}

func segmentNumber(base string) (uint64, bool) {
	hex, ok := strings.CutSuffix(base, segmentSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(hex, 16, 64)
	return n, err == nil && n > 0
}

// active is the segment that is written to. It is called with mu held.
func (j *Journal) active() *segment { return j.segments[len(j.segments)-1] }

// live is told by the index what segments gain and lose.
func (j *Journal) live(number uint32, bytes int64) {
	if s := j.segment(number); s != nil {
		s.live += bytes
	}
}

func (j *Journal) segment(number uint32) *segment {
	if len(j.segments) == 0 {
		return nil
	}
	i := uint64(number) - j.segments[0].number
	if i >= uint64(len(j.segments)) {
		return nil
	}
	return j.segments[i]
}

// rotate begins a new segment. All of the old one is on disk: each batch was synced.
func (j *Journal) rotate(old *segment) (*segment, error) {
	if err := j.syncEnd(); err != nil {
		return nil, err
	}
	s, err := j.follow(old.number+1, uint64(old.end))
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	old.whole = int64(old.end) >= j.options.SegmentBytes*3/4
	j.segments = append(j.segments, s)
	j.mu.Unlock()
	j.nudge()
	return s, nil
}

// follow makes the segment with a number. Its header is on disk before its name is, and its name before
// anything is written behind the header.
func (j *Journal) follow(number, previousEnd uint64) (*segment, error) {
	if number > 1<<32-1 {
		return nil, fmt.Errorf("begin raft journal segment %d: numbers end at %d", number, uint32(1<<32-1))
	}
	s, err := j.spare()
	if err != nil {
		return nil, err
	}
	s.number, s.salt, s.end = number, newSalt(j.id, number), segmentHeader
	o := opening{id: j.id, number: number, previousEnd: previousEnd, floor: j.floor, batch: j.batch}
	if _, err := s.file.WriteAt(o.encode(), 0); err != nil {
		return nil, fmt.Errorf("begin raft journal segment %s: %w", s.name, err)
	}
	if err := s.file.Sync(); err != nil {
		return nil, fmt.Errorf("sync raft journal segment %s: %w", s.name, err)
	}
	name := j.segmentName(number)
	if err := j.fs.Rename(s.name, name); err != nil {
		return nil, fmt.Errorf("name raft journal segment %s: %w", name, err)
	}
	s.name = name
	if err := j.fs.SyncDir(j.dir); err != nil {
		return nil, fmt.Errorf("sync raft journal directory: %w", err)
	}
	return s, nil
}

// spare takes an emptied segment, or makes a file.
func (j *Journal) spare() (*segment, error) {
	j.mu.Lock()
	if n := len(j.spares); n > 0 {
		s := j.spares[n-1]
		j.spares = j.spares[:n-1]
		j.mu.Unlock()
		return s, nil
	}
	j.mu.Unlock()
	return j.makeSpare()
}

func (j *Journal) makeSpare() (*segment, error) {
	name := j.spareName()
	f, err := j.fs.Create(name)
	if err != nil {
		return nil, fmt.Errorf("make raft journal segment: %w", err)
	}
	if err := f.Allocate(j.options.SegmentBytes); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("reserve %d bytes for raft journal segment %s: %w", j.options.SegmentBytes, name, err)
	}
	return &segment{name: name, file: f}, nil
}

func (j *Journal) spareName() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.spareCount++
	return filepath.Join(j.dir, fmt.Sprintf("%s%d", sparePrefix, j.spareCount))
}

// retire takes the oldest segment away, which nothing refers to and the floor is above.
func (j *Journal) retire() error {
	j.mu.Lock()
	s := j.segments[0]
	j.segments = j.segments[1:]
	again := s.whole && int64(s.end) <= j.options.SegmentBytes && j.fs.Reusable() && len(j.spares) < MaxSpares
	j.mu.Unlock()
	s.use.Lock() // until its last reader is done
	defer s.use.Unlock()
	var err error
	name := s.name
	if again {
		s.name = j.spareName()
		err = j.fs.Rename(name, s.name)
	} else {
		err = s.file.Close()
		if err == nil {
			err = j.fs.Remove(name)
		}
	}
	if err == nil {
		// Before the next one goes: a hole between segments is damage.
		err = j.fs.SyncDir(j.dir)
	}
	if err != nil {
		return fmt.Errorf("take away raft journal segment %s: %w", name, err)
	}
	if again {
		j.mu.Lock()
		j.spares = append(j.spares, &segment{name: s.name, file: s.file, whole: true})
		j.mu.Unlock()
	}
	return nil
}

func (j *Journal) nudge() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}
