package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"

	"github.com/parleymq/parley/broker"
)

// shutdownLimit is how long a SIGTERM may take.
const shutdownLimit = 30 * time.Second

// errNow is a second signal, or a shutdown that took too long.
var errNow = errors.New("ended before everything was closed; what was acked is on disk")

// serve runs the broker until a signal or a failure ends it.
func serve(s *settings, stderr io.Writer) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(signals)

	log := newLogger(s, stderr)
	if s.MemoryLimit > 0 {
		debug.SetMemoryLimit(s.MemoryLimit)
	}
	started := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b, err := start(ctx, cancel, s, log, signals)
	if err != nil {
		return err
	}
	if b == nil {
		return nil // a signal came first
	}
	ready := make(chan error, 1)
	go func() { ready <- b.Ready(ctx) }() // ends with ctx, which ends with serve
	for {
		select {
		case err := <-ready:
			if err == nil {
				a := b.Addresses()
				log.Info().Str("name", b.Name()).Str("clients", a.Clients).Str("http", a.HTTP).Str("raft", a.Raft).
					Stringer("after", rounded(started)).Msg("parleyd is ready")
			}
		case <-b.Done():
			return b.Wait()
		case sig := <-signals:
			log.Info().Str("signal", sig.String()).Stringer("limit", shutdownLimit).Msg("parleyd stops; a second signal ends it at once")
			return stop(b, signals, log)
		}
	}
}

// start starts the broker while it listens for signals: opening a large log may
// take seconds.
func start(ctx context.Context, cancel func(), s *settings, log zerolog.Logger, signals <-chan os.Signal) (*broker.Broker, error) {
	type result struct {
		b   *broker.Broker
		err error
	}
	started := make(chan result, 1)
	go func() {
		b, err := broker.Start(ctx, s.broker(log))
		started <- result{b, err}
	}()
	interrupted := time.Time{}
	for {
		select {
		case r := <-started:
			switch {
			case !interrupted.IsZero() && r.err == nil:
				return nil, stop(r.b, signals, log)
			case !interrupted.IsZero():
				return nil, nil
			}
			if bad := (*broker.ConfigError)(nil); errors.As(r.err, &bad) {
				return nil, usagef("%v", bad)
			}
			return r.b, r.err
		case <-signals:
			if interrupted.IsZero() {
				interrupted = time.Now()
				cancel()
			} else if time.Since(interrupted) >= sameSignal {
				return nil, errNow
			}
		}
	}
}

func stop(b *broker.Broker, signals <-chan os.Signal, log zerolog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownLimit)
	defer cancel()
	began := time.Now()
	closed := make(chan error, 1)
	go func() { closed <- b.Close(ctx) }()
	for {
		select {
		case err := <-closed:
			if err != nil {
				return fmt.Errorf("stop: %w", err)
			}
			log.Info().Stringer("after", rounded(began)).Msg("parleyd has stopped")
			return b.Wait()
		case <-signals:
			if time.Since(began) >= sameSignal {
				return errNow
			}
		}
	}
}

// sameSignal is how long after the first signal another one counts as the same:
// a terminal, timeout(1) and some supervisors signal a process and then its
// whole group.
const sameSignal = 250 * time.Millisecond

func rounded(since time.Time) time.Duration { return time.Since(since).Round(time.Millisecond) }

// broker translates the settings for the broker package.
func (s *settings) broker(log zerolog.Logger) broker.Config {
	none := func(n int64) int64 {
		if n == 0 {
			return -1 // its zero is the default, ours is none
		}
		return n
	}
	c := broker.Config{
		Name: s.Name, DataDir: s.DataDir,
		Listen: s.Listen, AdvertiseClient: s.AdvertiseClient, HTTP: s.HTTP,
		PeerListen: s.PeerListen, AdvertisePeer: s.AdvertisePeer, RaftListen: s.RaftListen, AdvertiseRaft: s.AdvertiseRaft,
		InitialCluster: s.InitialCluster, Join: s.Join, DeadAfter: s.DeadAfter, SecretFile: s.SecretFile,
		CopyRate: none(s.CopyRate), TrashGrace: s.TrashGrace, CompareEvery: s.CompareEvery, CompareRate: none(s.CompareRate),
		PeerTLS: broker.PeerTLS{Cert: s.PeerTLSCert, Key: s.PeerTLSKey, CA: s.PeerTLSCA},
		Rack:    s.Rack, Weight: s.Weight,
		TLS:  broker.TLS{Cert: s.TLSCert, Key: s.TLSKey, ClientCA: s.TLSClientCA},
		User: s.User, Password: s.Password, Token: s.Token,
		FreeSpaceFloor: none(s.FreeSpaceFloor), MaxRecord: s.MaxRecord, MemoryLimit: s.MemoryLimit,
		AutoCreateTopics: s.AutoCreateTopics, AutoLevel: s.AutoRaiseLevel, Pprof: s.Pprof, Logger: log,
		OnFatal: func(err error) {
			// The disk failed: what it holds is not known any more, so nothing that
			// still runs may ack or write. The broker has logged why.
			os.Exit(1)
		},
		CutBytes: s.TestCutBytes,
	}
	if s.TestDisk != "" {
		c.FreeSpace = pretendedDisk(s.TestDisk)
	}
	return c
}

func newLogger(s *settings, stderr io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(s.LogLevel)
	if err != nil {
		level = zerolog.InfoLevel
	}
	var out io.Writer = stderr
	if s.LogFormat == "console" {
		f, isFile := stderr.(*os.File)
		colour := isFile && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
		out = zerolog.ConsoleWriter{Out: stderr, TimeFormat: "15:04:05.000", NoColor: !colour}
	}
	zerolog.TimeFieldFormat = zerolog.TimeFormatUnixMs
	if s.LogFormat == "json" {
		zerolog.TimeFieldFormat = time.RFC3339Nano
	}
	return zerolog.New(out).Level(level).With().Timestamp().Logger()
}
