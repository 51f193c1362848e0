package raft

import (
	"fmt"
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

func enlist(h *Host) {
	hosts.once.Do(func() {
		logger.SetLoggerFactory(func(pkg string) logger.ILogger { return lines{pkg: pkg} })
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
	if l.pkg == "raft" || l.pkg == "rsm" || l.pkg == "config" {
		level = zerolog.DebugLevel
	}
	l.log(level, format, args)
}
func (l lines) Errorf(format string, args ...any) { l.log(zerolog.ErrorLevel, format, args) }

// Panicf is how dragonboat says most of its last words.
func (l lines) Panicf(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	hosts.mu.Lock()
	open := append([]*Host(nil), hosts.open...)
	hosts.mu.Unlock()
	for _, h := range open {
		h.fatal(fmt.Errorf("raft cannot go on: %s (%s)", message, l.pkg))
	}
	panic(message)
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
