// Simulate runs the simulator of package paxos for many seeds:
//
//	go run ./replication/paxos/simulate -seeds 100000
//	go run ./replication/paxos/simulate -seed 4711       # one seed, with its transcript
//
// It prints the first seed that fails with its transcript, and exits 1.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymq/parley/replication/paxos/simulation"
)

func main() {
	seeds := flag.Uint64("seeds", 10_000, "how many seeds to run")
	first := flag.Uint64("first", 1, "the first seed")
	one := flag.Uint64("seed", 0, "run this seed alone and print its transcript")
	steps := flag.Int("steps", simulation.DefaultSteps, "steps with faults in a run")
	workers := flag.Int("workers", runtime.GOMAXPROCS(0), "runs at a time")
	flag.Parse()

	if *one != 0 {
		r := simulation.Run(simulation.Options{Seed: *one, Steps: *steps, Trace: true})
		fmt.Print(r)
		if r.Violation != "" {
			os.Exit(1)
		}
		return
	}
	began := time.Now()
	total, failed := run(*first, *seeds, *steps, max(1, *workers))
	if failed != 0 {
		fmt.Print(simulation.Run(simulation.Options{Seed: failed, Steps: *steps, Trace: true}))
		os.Exit(1)
	}
	fmt.Printf("%d seeds from %d on, %d steps with faults each: no violation (%v)\n", *seeds, *first, *steps, time.Since(began).Round(time.Second))
	fmt.Print(total)
}

// run returns the sums and the lowest seed that failed, 0 if none did.
func run(first, seeds uint64, steps, workers int) (simulation.Total, uint64) {
	var (
		next, failed atomic.Uint64
		mu           sync.Mutex
		total        simulation.Total
		wg           sync.WaitGroup
	)
	for range workers {
		wg.Go(func() {
			for {
				if failed.Load() != 0 {
					return // only now: every seed below the failed one is run
				}
				i := next.Add(1) - 1
				if i >= seeds {
					return
				}
				r := simulation.Run(simulation.Options{Seed: first + i, Steps: steps})
				mu.Lock()
				total.Add(r)
				if f := failed.Load(); r.Violation != "" && (f == 0 || r.Seed < f) {
					failed.Store(r.Seed)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return total, failed.Load()
}
