// Package epoch is the config service: it decides the numbered sequence of
// cluster configurations, keeps their history and tells the rest of the broker
// what was decided.
//
// Cluster drives a paxos.Machine: one goroutine owns the machine and the journal, takes
// what waits (messages, calls, a retry), steps the machine with all of it, makes
// the records durable with one group of fsyncs and only then lets anybody see
// the rest. A second goroutine plans proposals: it runs the changes that callers
// of Propose wait for on the newest configuration, several in one epoch, and again on a
// newer one when another broker's was decided first. A lone broker is a
// cluster whose council is that broker; others may join it later.
package epoch

import (
	"context"
	"errors"

	"github.com/parleymq/parley/replication/epoch/config"
	"github.com/parleymq/parley/replication/paxos"
)

var (
	// ErrUnchanged: a change that a caller of Propose returns when there is
	// nothing to change. Propose hands it back with the current configuration.
	ErrUnchanged = config.ErrUnchanged
	// ErrUnknownEpoch: no such epoch was decided, as far as this broker knows.
	ErrUnknownEpoch = errors.New("unknown epoch")
	// ErrForgotten: the epoch's header is kept, its full value no longer is.
	ErrForgotten = errors.New("the value of this epoch is no longer kept")
	// ErrCorrupt: the journal holds a decided entry that does not read back as
	// it was written. Nothing is cut or deleted.
	ErrCorrupt = errors.New("epoch journal is damaged")
	// ErrClosed: the store was closed, or stopped after an I/O error.
	ErrClosed = errors.New("epoch store is closed")
	// ErrNotNamed: the newest epoch doesn't name this broker's incarnation.
	ErrNotNamed = paxos.ErrNotNamed
	// ErrWiped: a cluster has decided epochs that don't name this data directory,
	// so its disk was emptied or it is another's: it must be admitted, by --join.
	ErrWiped = errors.New("this data directory is not one of the cluster's")
	// ErrDifferentList: brokers were started with lists of initial brokers that differ.
	ErrDifferentList = errors.New("lists of initial brokers differ")
	// ErrRefused: the cluster doesn't admit this broker.
	ErrRefused = errors.New("admission refused")
)

// A Store decides configurations and keeps what was decided. All methods may
// be called concurrently. Configurations are shared: nobody alters one.
type Store interface {
	// Current is the newest configuration this broker knows; it never goes back.
	Current() *config.Config

	// Propose decides the next configuration. change alters a copy of the
	// newest one; it is called again on a newer base when another value was
	// decided first, so it must have no effects of its own. An error of change
	// ends the proposal and is returned as it is, with the configuration that it
	// judged, once that is known to be the newest. Changes that wait at the same
	// time may share an epoch. On success the new configuration is on the disks of
	// majorities of the old and of the new council. When ctx ends first the outcome is
	// not known: change is not called any more, its epoch may still be decided.
	Propose(ctx context.Context, change func(next *config.Config) error) (*config.Config, error)

	// Read returns the newest configuration of the cluster: one that was the
	// newest at some moment after the call, or a later one. It asks a majority of
	// the council, so it waits, up to ctx, while that can't be reached.
	Read(ctx context.Context) (*config.Config, error)

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
