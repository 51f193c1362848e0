package partition

import (
	"context"
	"fmt"
	"slices"

	"github.com/parleymq/parley/partition/storage"
)

// compare looks for each span how much of it is there, and returns how many bytes are not.
func (r *restore) compare(ctx context.Context) (lacking int64, err error) {
	r.have = make([]progress, len(r.f.spans))
	for i := range r.f.spans {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		before := lacking
		lacking += r.f.after(i) - r.f.spans[i].stored
		held, err := r.compareSpan(i)
		if err != nil {
			return 0, err
		}
		lacking = max(lacking-held, before)
		if r.have[i].at < r.f.spans[i].to {
			lacking = max(lacking, before+1)
		}
	}
	return lacking, nil
}

// fresh is the progress of a span of which nothing counts.
func (r *restore) fresh(i int) progress {
	s := r.f.spans[i]
	p := progress{at: s.from, chain: s.seed}
	p.marks.stored, p.marks.marked = s.stored, s.stored-markEveryBytes // the first chunk gets a mark
	return p
}

func (r *restore) compareSpan(i int) (held int64, err error) {
	s := &r.f.spans[i]
	p := r.fresh(i)
	r.have[i] = p
	known := i > 0 || r.f.rooted // a chain at the beginning that marks can be compared to
	if known && !r.deep && s.from >= r.start && s.from <= r.next {
		switch same, err := r.chainIs(s.from, s.seed); {
		case err != nil:
			return 0, err
		case !same:
		case s.to <= r.next:
			same, err := r.chainIs(s.to, s.digest)
			if err != nil {
				return 0, err
			}
			if same {
				r.have[i] = progress{at: s.to, chain: s.digest}
				return r.f.after(i) - s.stored, nil
			}
		default: // it begins in what is shown here and goes on above
			p.at, p.chain, p.local = r.next, r.chain, true
			p.marks.stored, p.marks.marked, p.marks.markedAt = r.stored, r.marked, r.markedAt
			held = max(r.stored-s.stored, 0)
		}
	}
	var marks []storage.IndexEntry
	err = r.m.store.Survey(p.at, s.to, func(c storage.Chunk) bool {
		if c.Base != p.at || c.Last >= s.to || verify(c.Data, everyBatch) != nil {
			return false
		}
		mk, due, err := p.take(&c, known)
		if err != nil {
			return false
		}
		if due {
			marks = append(marks, mk)
		}
		p.local = true
		held += int64(len(c.Data))
		return true
	})
	if err != nil {
		return 0, err
	}
	if p.at == s.to && p.chain != s.digest {
		return 0, nil // another history
	}
	if p.at > s.from {
		r.have[i] = p
		// Their marks may have been lost in a crash, or be another history's.
		if err := r.m.store.Mend(nil, marks); err != nil {
			return 0, err
		}
	}
	return held, nil
}

// take links a chunk to what is there and returns its mark, if one is due.
func (p *progress) take(c *storage.Chunk, chained bool) (entry storage.IndexEntry, due bool, err error) {
	chain, err := link(p.chain, c)
	if err != nil {
		return entry, false, err
	}
	before := p.marks.stored
	p.marks.stored += int64(len(c.Data))
	p.marks.logTime = c.LogTime
	if entry, due = p.marks.mark(c.Base, before, p.chain, len(c.Meta) > 0); due && !chained {
		entry = mark{offset: c.Base, logTime: c.LogTime, before: before, ids: len(c.Meta) > 0}.entry()
	}
	p.at, p.chain = c.Last+1, chain
	return entry, due, nil
}

// chainIs compares the chain that this replica has at an offset that it shows.
func (r *restore) chainIs(offset int64, chain uint64) (bool, error) {
	if offset == r.next {
		return r.chain == chain, nil
	}
	k, v, ok, err := r.m.store.SeekBack(markKey(offset))
	if err != nil || !ok {
		return false, err
	}
	mk, err := parseMark(k, v)
	if err != nil {
		return false, nil //nolint:nilerr // a damaged mark tells nothing
	}
	return mk.offset == offset && mk.chained && mk.chain == chain, nil
}

// staleMarks deletes marks of another history where chunks come.
func (r *restore) staleMarks(chunks []storage.Chunk, marks []storage.IndexEntry) (gone []storage.IndexEntry, err error) {
	keep := make(map[string]bool, len(marks))
	for _, mk := range marks {
		keep[string(mk.Key)] = true
	}
	gone, err = r.marksWithin(chunks[0].Base, markKey(chunks[len(chunks)-1].Last+1), 0)
	return slices.DeleteFunc(gone, func(e storage.IndexEntry) bool { return keep[string(e.Key)] }), err
}

// marksWithin lists marks, at most limit unless that is 0, as index entries that delete them.
func (r *restore) marksWithin(at int64, end []byte, limit int) (all []storage.IndexEntry, err error) {
	for limit == 0 || len(all) < limit {
		k, _, ok, err := r.m.store.Seek(markKey(at), end)
		if err != nil || !ok {
			return all, err
		}
		if len(k) != 9 {
			return nil, fmt.Errorf("%w: an index key of %d bytes", storage.ErrCorrupt, len(k))
		}
		all = append(all, storage.IndexEntry{Key: k})
		d := decoder{b: k[1:]}
		at = int64(d.u64()) + 1
	}
	return all, nil
}

// dropMarks deletes the marks from an offset on: another history's, which what is applied later
// would not write over.
func (r *restore) dropMarks(from int64) error {
	const atOnce = 1024
	for {
		gone, err := r.marksWithin(from, []byte{'o' + 1}, atOnce)
		if err != nil || len(gone) == 0 {
			return err
		}
		if err := r.m.store.Mend(nil, gone); err != nil {
			return err
		}
	}
}
