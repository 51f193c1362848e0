package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress shows on stderr how a long command gets on: a bar that redraws itself
// on a terminal, else a line every few seconds.
type progress struct {
	out      io.Writer
	terminal bool
	colour   bool
	read     func() status
	stop     chan struct{}
	done     sync.WaitGroup
	begin    time.Time
}

// status is what a progress line shows.
type status struct {
	done  int64
	unit  string  // records
	share float64 // how much of all is done, 0..1; below 0 when nobody knows
	bytes int64
	note  string
}

const (
	redrawEvery = 100 * time.Millisecond
	linesEvery  = 2 * time.Second
	barWidth    = 24
)

// watch shows progress until the returned function is called, if the command
// runs on a terminal or was asked to. read is called from another goroutine.
func (a *app) watch(always bool, read func() status) (end func()) {
	terminal := isTerminal(a.stderr)
	if !terminal && !always {
		return func() {}
	}
	p := &progress{out: a.stderr, terminal: terminal, colour: a.colours(a.stderr), read: read, stop: make(chan struct{}), begin: time.Now()}
	p.done.Add(1)
	go p.loop()
	return sync.OnceFunc(func() {
		close(p.stop)
		p.done.Wait()
	})
}

func (p *progress) loop() {
	defer p.done.Done()
	every := linesEvery
	if p.terminal {
		every = redrawEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if p.terminal {
				fmt.Fprintf(p.out, "\r\x1b[K%s", p.line(time.Since(p.begin)))
			} else {
				fmt.Fprintln(p.out, p.line(time.Since(p.begin)))
			}
		case <-p.stop:
			if p.terminal {
				// What follows is the command's own summary.
				fmt.Fprint(p.out, "\r\x1b[K")
			}
			return
		}
	}
}

func (p *progress) line(elapsed time.Duration) string {
	s := p.read()
	var b strings.Builder
	if s.share >= 0 {
		share := min(s.share, 1)
		full := int(share * barWidth)
		bar := strings.Repeat("█", full)
		if p.colour {
			bar = green + bar + reset
		}
		fmt.Fprintf(&b, "%s%s %3.0f%%  ", bar, strings.Repeat("░", barWidth-full), share*100)
	}
	fmt.Fprintf(&b, "%s %s", grouped(fmt.Sprint(s.done)), s.unit)
	if seconds := elapsed.Seconds(); seconds > 0 {
		fmt.Fprintf(&b, "  %s/s", grouped(fmt.Sprintf("%.0f", float64(s.done)/seconds)))
		if s.bytes > 0 {
			fmt.Fprintf(&b, "  %.1f MB/s", float64(s.bytes)/seconds/1e6)
		}
	}
	if s.note != "" {
		b.WriteString("  " + s.note)
	}
	line := b.String()
	if f, ok := p.out.(interface{ Fd() uintptr }); ok && p.terminal && !p.colour {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 && len([]rune(line)) >= width {
			line = string([]rune(line)[:width-1])
		}
	}
	return line
}
