//go:build race

package record

// Under the race detector sync.Pool forgets at random, so that codecs are made
// anew, and allocations can't be counted.
const (
	raceOn    = true
	raceSlack = 16 << 20
)
