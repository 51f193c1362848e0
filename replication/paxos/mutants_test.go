package paxos_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/parleymq/parley/replication/paxos"
	"github.com/parleymq/parley/replication/paxos/simulation"
)

// mutantSeeds is within how many seeds a mutant has to be caught.
const mutantSeeds = 1000

// Each mutant breaks one rule, and the simulator has to notice that more than progress
// is lost.
func TestMutantsAreCaught(t *testing.T) {
	t.Parallel()
	mutants := map[string]simulation.Options{
		"a promise is not fsynced":                         {Unsynced: []paxos.RecordKind{paxos.RecordPromised}},
		"a vote is not fsynced":                            {Unsynced: []paxos.RecordKind{paxos.RecordAccepted}},
		"a decided epoch is acknowledged before its fsync": {Unsynced: []paxos.RecordKind{paxos.RecordDecided}},
		"the boot counter stays":                           {KeepBoot: true},
	}
	for name := range paxos.Mutants {
		mutants[name] = simulation.Options{New: paxos.NewMutant(name)}
	}
	for _, name := range slices.Sorted(maps.Keys(mutants)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := mutants[name]
			for o.Seed = 1; o.Seed <= mutantSeeds; o.Seed++ {
				if r := simulation.Run(o); r.Violation != "" && !r.Stalled {
					t.Logf("caught by seed %d at step %d: %s", o.Seed, r.Steps, r.Violation)
					return
				}
			}
			t.Errorf("not caught by %d seeds", mutantSeeds)
		})
	}
}
