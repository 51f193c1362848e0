package epoch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/replication/epoch/config"
)

// Options of a Solo store.
type Options struct {
	Dir string
	// Genesis makes epoch 0 when the journal is empty.
	Genesis func() *config.Config
	// By is the proposing broker's name.
	By    string
	Clock func() time.Time
	// OnFatal is called once, when the journal could not be written: what is on
	// disk is no longer known, and the process has to stop.
	OnFatal func(error)
	// OnCut is told how many bytes of an undecided entry were cut at the end of
	// the journal.
	OnCut func(bytes int64)
}

// Solo is the Store of a council of one.
type Solo struct {
	o       Options
	current atomic.Pointer[config.Config]

	proposing sync.Mutex // one proposal at a time: held over the fsyncs

	mu       sync.Mutex // guards what follows
	journal  *journal
	headers  []Header                  // index is the epoch
	values   map[uint64]*config.Config // the newest KeepValues
	watchers map[chan *config.Config]func() bool
	closed   bool
	failed   error
}

var _ Store = (*Solo)(nil)

// OpenSolo opens the journal in o.Dir, verifies the chain of hashes, and
// decides epoch 0 when there is none.
func OpenSolo(o Options) (*Solo, error) {
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("make epoch directory: %w", err)
	}
	j, entries, cut, err := openJournal(o.Dir)
	if err != nil {
		return nil, err
	}
	if cut > 0 && o.OnCut != nil {
		o.OnCut(cut)
	}
	s := &Solo{o: o, journal: j, values: map[uint64]*config.Config{}, watchers: map[chan *config.Config]func() bool{}}
	if err := s.load(entries); err != nil {
		j.close()
		return nil, err
	}
	if len(s.headers) == 0 {
		c := o.Genesis()
		if err := s.decide(c); err != nil {
			j.close()
			return nil, fmt.Errorf("decide epoch 0: %w", err)
		}
	}
	return s, nil
}

func (s *Solo) load(entries []entry) error {
	var last *config.Config
	for _, e := range entries {
		bad := func(err error) error { return fmt.Errorf("%w: epoch %d: %w", ErrCorrupt, e.epoch, err) }
		var h Header
		switch e.kind {
		case kindHeader:
			var err error
			if h, err = decodeHeader(e.payload); err != nil {
				return bad(err)
			}
		case kindValue:
			c, err := config.Decode(e.payload)
			if err != nil {
				return bad(err)
			}
			if err := c.Validate(); err != nil {
				return bad(err)
			}
			h, last = headerOf(c), c
			s.values[c.Epoch] = c
		default:
			return bad(fmt.Errorf("an entry of kind %d, which this program doesn't know", e.kind))
		}
		if n := len(s.headers); h.Epoch != e.epoch || h.Epoch != uint64(n) {
			return bad(fmt.Errorf("epoch %d was expected", n))
		} else if n > 0 && h.Previous != s.headers[n-1].Hash {
			return bad(errors.New("the chain of hashes is broken"))
		}
		s.headers = append(s.headers, h)
	}
	if len(s.headers) > 0 {
		if last == nil || last.Epoch != s.headers[len(s.headers)-1].Epoch {
			return fmt.Errorf("%w: the newest epoch has no value", ErrCorrupt)
		}
		s.current.Store(last)
	}
	return nil
}

func (s *Solo) Current() *config.Config { return s.current.Load() }

func (s *Solo) Propose(ctx context.Context, change func(*config.Config) error) (*config.Config, error) {
	s.proposing.Lock()
	defer s.proposing.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("propose epoch: %w", err)
	}
	base := s.Current()
	next := base.Clone()
	next.Epoch++
	next.Previous = base.Hash()
	next.By, next.At, next.Change = s.o.By, s.o.Clock().UnixMilli(), ""
	if err := change(next); err != nil {
		return base, err
	}
	if err := next.Follows(base); err != nil {
		return base, fmt.Errorf("propose epoch %d: %w", next.Epoch, err)
	}
	if err := s.decide(next); err != nil {
		return base, fmt.Errorf("propose epoch %d: %w", next.Epoch, err)
	}
	return next, nil
}

// decide makes c durable and then the current value. Its caller is alone.
func (s *Solo) decide(c *config.Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	b, err := c.Encode()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.failed != nil {
		return errors.Join(ErrClosed, s.failed)
	}
	if err := s.store(c, b); err != nil {
		s.failed = err
		if s.o.OnFatal != nil {
			s.o.OnFatal(err)
		}
		return err
	}
	s.current.Store(c)
	for ch := range s.watchers {
		offer(ch, c)
	}
	return nil
}

func (s *Solo) store(c *config.Config, encoded []byte) error {
	if err := s.journal.append(entry{kind: kindValue, epoch: c.Epoch, payload: encoded}); err != nil {
		return err
	}
	s.headers = append(s.headers, headerOf(c))
	s.values[c.Epoch] = c
	if len(s.values) < 2*KeepValues {
		return nil
	}
	return s.shorten()
}

// shorten rewrites the journal with full values of the newest epochs only.
func (s *Solo) shorten() error {
	entries := make([]entry, 0, len(s.headers))
	for i := range s.headers {
		n := uint64(i)
		if i < len(s.headers)-KeepValues {
			entries = append(entries, entry{kind: kindHeader, epoch: n, payload: s.headers[i].encode()})
			continue
		}
		b, err := s.values[n].Encode()
		if err != nil {
			return fmt.Errorf("rewrite epoch %d: %w", n, err)
		}
		entries = append(entries, entry{kind: kindValue, epoch: n, payload: b})
	}
	j, err := rewriteJournal(s.o.Dir, entries)
	if err != nil {
		return err
	}
	err = s.journal.close()
	s.journal = j
	for n := range s.values {
		if n+KeepValues < uint64(len(s.headers)) {
			delete(s.values, n)
		}
	}
	return err
}

func (s *Solo) History(from uint64, limit int) []Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Header
	for i := min(from, uint64(len(s.headers)-1)); limit > 0; limit-- {
		out = append(out, s.headers[i])
		if i == 0 {
			break
		}
		i--
	}
	return out
}

func (s *Solo) At(n uint64) (Header, *config.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n >= uint64(len(s.headers)) {
		return Header{}, nil, fmt.Errorf("%w %d, the newest is %d", ErrUnknownEpoch, n, len(s.headers)-1)
	}
	if c := s.values[n]; c != nil {
		return s.headers[n], c, nil
	}
	return s.headers[n], nil, fmt.Errorf("epoch %d: %w", n, ErrForgotten)
}

func (s *Solo) Watch(ctx context.Context) <-chan *config.Config {
	ch := make(chan *config.Config, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		close(ch)
		return ch
	}
	ch <- s.Current()
	s.watchers[ch] = context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, ok := s.watchers[ch]; ok {
			delete(s.watchers, ch)
			close(ch)
		}
	})
	return ch
}

// offer replaces what a watcher hasn't taken yet. Offers are made one at a
// time, so the channel has room after the old value is out.
func offer(ch chan *config.Config, c *config.Config) {
	select {
	case <-ch:
	default:
	}
	ch <- c
}

// Close stops the watchers and closes the journal.
func (s *Solo) Close() error {
	s.proposing.Lock()
	defer s.proposing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for ch, stop := range s.watchers {
		stop()
		close(ch)
	}
	clear(s.watchers)
	return s.journal.close()
}
