package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cpuTimes are seconds of processors that were used since the machine and the processes started.
type cpuTimes struct {
	machine, own float64
	at           time.Time
}

// cpu reads what the machine, and what the brokers and this process, have used.
func (r *joinRun) cpu() (t cpuTimes, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return t, fmt.Errorf("read this process's times: %w", err)
	}
	t.at = time.Now()
	t.own = cpuSeconds(r.brokers...) + time.Duration(self.Utime.Nano()+self.Stime.Nano()).Seconds()
	t.machine, err = machineSeconds(string(b))
	return t, err
}

// busySince is which part of the processors was in use since then, and which by others.
func (r *joinRun) busySince(t cpuTimes) (busy, others float64, err error) {
	now, err := r.cpu()
	if err != nil {
		return 0, 0, err
	}
	all := max(now.at.Sub(t.at).Seconds()*float64(runtime.NumCPU()), 0.001)
	busy = (now.machine - t.machine) / all
	return busy, max(busy-(now.own-t.own)/all, 0), nil
}

// machineSeconds adds up the first line of /proc/stat: all but idle and waiting time, and the guests', which others' holds already.
func machineSeconds(stat string) (sum float64, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read /proc/stat: its first line is %q, want cpu and eight times or more", line)
	}
	for i, f := range fields[1:9] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, fmt.Errorf("read /proc/stat: %w", err)
		}
		if idle := i == 3 || i == 4; !idle {
			sum += n / clockTick
		}
	}
	return sum, nil
}
