package raft

import (
	"fmt"
	"io"
	"log"
	"runtime"
	"strings"
	"sync"

	"github.com/lni/dragonboat/v4/logger"
	"github.com/rs/zerolog"
)

// Dragonboat has one logger factory for the process, which may be set once, and its
// lines don't say which host they are about. So lines go to the host that has been open
// longest, and last words go to all of them.
var hosts struct {
	once sync.Once
	mu   sync.Mutex
	open []*Host
}

// late limits the lines about workers that fall behind.
var late = newComplaints()

func enlist(h *Host) {
	hosts.once.Do(func() {
		logger.SetLoggerFactory(func(pkg string) logger.ILogger { return lines{pkg: pkg} })
		log.SetOutput(standardLog{log.Writer()})
	})
	hosts.mu.Lock()
	hosts.open = append(hosts.open, h)
	hosts.mu.Unlock()
}

func delist(h *Host) {
	hosts.mu.Lock()
	defer hosts.mu.Unlock()
	for i, other := range hosts.open {
		if other == h {
			hosts.open = append(hosts.open[:i:i], hosts.open[i+1:]...)
			return
		}
	}
}

// lines is the logger of one of dragonboat's packages.
type lines struct{ pkg string }

func (l lines) SetLevel(logger.LogLevel) {}

// Dragonboat's info lines tell of each start, snapshot and compaction of each
// replica, its raft package warns of each vote: debug is where they belong.
func (l lines) Debugf(format string, args ...any) { l.log(zerolog.TraceLevel, format, args) }
func (l lines) Infof(format string, args ...any)  { l.log(zerolog.DebugLevel, format, args) }
func (l lines) Warningf(format string, args ...any) {
	level := zerolog.WarnLevel
	if strings.Contains(format, "LocalTick msgs in one batch") {
		// A line of each replica that its worker came to late: one for all of them tells as much.
		skipped, ok := late.due("")
		if ok {
			l.log(level, "raft comes late to its replicas' ticks: the CPU or the disk is overloaded, elections may follow (%d more times since the last line)", []any{skipped})
		}
		return
	}
	if strings.HasPrefix(format, "ignored a %s message") {
		level = zerolog.DebugLevel // to a replica that was replaced by another one on this host
	}
	if l.pkg == "raft" || l.pkg == "rsm" || l.pkg == "config" || l.pkg == "transport" {
		level = zerolog.DebugLevel
	}
	l.log(level, format, args)
}

// Its transport package tells of each try to reach a peer that is away, several a second: our
// transport tells of it once in a while.
func (l lines) Errorf(format string, args ...any) {
	level := zerolog.ErrorLevel
	if l.pkg == "transport" {
		level = zerolog.DebugLevel
	}
	l.log(level, format, args)
}

// Panicf is how dragonboat says most of its last words.
func (l lines) Panicf(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	lastWords(fmt.Errorf("raft gave up: %s (%s)", message, l.pkg))
	panic(message)
}

func lastWords(err error) {
	hosts.mu.Lock()
	open := append([]*Host(nil), hosts.open...)
	hosts.mu.Unlock()
	for _, h := range open {
		h.fatal(err)
	}
}

// standardLog stands before the standard logger's writer. Dragonboat's log store,
// Pebble, has no other way out: it writes its lines there, and before it panics over an
// I/O error its last words. Who wrote a line is seen from the stack, since the
// writer is called on the same goroutine; anybody else's goes on as it was.
type standardLog struct{ next io.Writer }

func (s standardLog) Write(line []byte) (int, error) {
	var pcs [24]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	const pebbleLogger = "internal/logdb/kv/pebble.pebbleLogger."
	for {
		f, more := frames.Next()
		if i := strings.Index(f.Function, pebbleLogger); i >= 0 {
			// "2006/01/02 15:04:05 message\n", as the standard logger's flags have it.
			message := strings.TrimSpace(string(line))
			if f.Function[i+len(pebbleLogger):] == "Fatalf" {
				lastWords(fmt.Errorf("raft log: %s", message))
			} else {
				level := zerolog.DebugLevel
				if strings.Contains(message, "background error") {
					level = zerolog.ErrorLevel // a flush or a compaction that is tried again
				}
				lines{pkg: "pebble"}.log(level, "%s", []any{message})
			}
			return len(line), nil
		}
		if !more {
			return s.next.Write(line)
		}
	}
}

func (l lines) log(level zerolog.Level, format string, args []any) {
	hosts.mu.Lock()
	if len(hosts.open) == 0 {
		hosts.mu.Unlock()
		return
	}
	h := hosts.open[0]
	hosts.mu.Unlock()
	if e := h.logger.WithLevel(level); e.Enabled() && level >= h.logger.GetLevel() && level >= zerolog.GlobalLevel() {
		e.Str("package", l.pkg).Msgf(format, args...)
	}
}
