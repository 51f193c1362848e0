package simulation

import "fmt"

// Total sums up runs.
type Total struct {
	Runs, Bootstraps, Unhealable                                                                                     int
	Steps, Epochs, Messages, Dropped, Repeated, Crashes, Wipes, Proposals, Chosen, Done, Lost, Reads, CouncilChanges int
}

// Add adds a run.
func (t *Total) Add(r Report) {
	t.Runs++
	if r.Bootstrap {
		t.Bootstraps++
	}
	if r.Unhealable {
		t.Unhealable++
	}
	t.Steps += r.Steps
	t.Epochs += r.Epochs
	t.Messages += r.Messages
	t.Dropped += r.Dropped
	t.Repeated += r.Repeated
	t.Crashes += r.Crashes
	t.Wipes += r.Wipes
	t.Proposals += r.Proposals
	t.Chosen += r.Chosen
	t.Done += r.Done
	t.Lost += r.Lost
	t.Reads += r.Reads
	t.CouncilChanges += r.CouncilChanges
}

func (t Total) String() string {
	return fmt.Sprintf("runs %d (%d from bootstrap, %d could not heal: the council's majority was wiped)\n"+
		"messages %d, lost %d, repeated %d; crashes %d, disks wiped %d\n"+
		"epochs chosen %d, councils changed %d; proposals %d: chosen %d, done %d, lost %d; reads %d\n",
		t.Runs, t.Bootstraps, t.Unhealable, t.Messages, t.Dropped, t.Repeated, t.Crashes, t.Wipes,
		t.Epochs, t.CouncilChanges, t.Proposals, t.Chosen, t.Done, t.Lost, t.Reads)
}
