// Package epoch is the config service: it decides the numbered sequence of
// cluster configurations, keeps their history and tells the rest of the broker
// what was decided.
//
// Solo is the service of a cluster of one broker. Its journal is the real one;
// the decision is this broker's own, since its council is this broker alone.
package epoch

import (
	"context"
	"errors"

	"github.com/parleymq/parley/replication/epoch/config"
)

var (
	// ErrUnchanged: a change that a caller of Propose returns when there is
	// nothing to change. Propose hands it back with the current configuration.
	ErrUnchanged = errors.New("nothing to change")
	// ErrUnknownEpoch: no such epoch was decided, as far as this broker knows.
	ErrUnknownEpoch = errors.New("unknown epoch")
	// ErrForgotten: the epoch's header is kept, its full value no longer is.
	ErrForgotten = errors.New("the value of this epoch is no longer kept")
	// ErrCorrupt: the journal holds a decided entry that does not read back as
	// it was written. Nothing is cut or deleted.
	ErrCorrupt = errors.New("epoch journal is damaged")
	// ErrClosed: the store was closed, or stopped after an I/O error.
	ErrClosed = errors.New("epoch store is closed")
)

// A Store decides configurations and keeps what was decided. All methods may
// be called concurrently. Configurations are shared: nobody alters one.
type Store interface {
	// Current is the newest configuration this broker knows; it never goes back.
	Current() *config.Config

	// Propose decides the next configuration. change alters a copy of the
	// newest one; it is called again on a newer base when another value was
	// decided first, so it must have no effects of its own. An error of change
	// ends the proposal and is returned as it is. On success the new
	// configuration is decided and durable.
	Propose(ctx context.Context, change func(next *config.Config) error) (*config.Config, error)

	// History returns headers, newest first, from the epoch from downwards.
	History(from uint64, limit int) []Header

	// At returns an epoch's header and, while it is kept, its value:
	// ErrUnknownEpoch, ErrForgotten (with the header).
	At(n uint64) (Header, *config.Config, error)

	// Watch delivers the current configuration and then the newest whenever it
	// changes. A slow watcher skips some, never sees an older one. The channel
	// is closed when ctx ends or the store closes.
	Watch(ctx context.Context) <-chan *config.Config

	Close() error
}

// Header is what is kept of every epoch for ever.
type Header struct {
	Epoch    uint64
	Hash     config.Hash
	Previous config.Hash
	By       string
	At       int64 // Unix ms
	Change   string
	Council  []uint64
}

func headerOf(c *config.Config) Header {
	return Header{Epoch: c.Epoch, Hash: c.Hash(), Previous: c.Previous, By: c.By, At: c.At, Change: c.Change, Council: c.Council}
}

// KeepValues is how many full values the history holds; older ones are kept as
// headers.
const KeepValues = 100
