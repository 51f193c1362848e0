package paxos_test

import (
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/parleymq/parley/replication/paxos/simulation"
)

// shortSeeds run by default; go run ./replication/paxos/simulate runs as many as asked.
const shortSeeds = 1000

func TestSimulation(t *testing.T) {
	t.Parallel()
	var total simulation.Total
	seeds := uint64(shortSeeds)
	if testing.Short() {
		seeds /= 4
	}
	for seed := uint64(1); seed <= seeds; seed++ {
		r := simulation.Run(simulation.Options{Seed: seed})
		total.Add(r)
		if r.Violation != "" {
			t.Fatal(simulation.Run(simulation.Options{Seed: seed, Trace: true}))
		}
	}
	t.Log(total)
	// A simulator that simulates nothing finds nothing.
	for what, n := range map[string]int{"crashes": total.Crashes, "wipes": total.Wipes, "lost messages": total.Dropped, "repeated messages": total.Repeated,
		"council changes": total.CouncilChanges, "done proposals": total.Done, "lost proposals": total.Lost, "reads": total.Reads} {
		if n < int(seeds/10) {
			t.Errorf("only %d %s in %d seeds", n, what, seeds)
		}
	}
	if total.Unhealable > int(seeds/10) {
		t.Errorf("%d of %d runs lost their council", total.Unhealable, seeds)
	}
}

func TestSeedsMakeTheSameRun(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); seed <= 20; seed++ {
		o := simulation.Options{Seed: seed, Trace: true}
		if a, b := simulation.Run(o), simulation.Run(o); !slices.Equal(a.Transcript, b.Transcript) || len(a.Transcript) == 0 {
			t.Fatalf("seed %d made two runs", seed)
		}
	}
}

// The package is pure: it imports nothing that has a clock, a network, files or chance.
func TestImports(t *testing.T) {
	t.Parallel()
	allowed := []string{"cmp", "encoding/binary", "encoding/hex", "errors", "fmt", "slices", "strings"}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range parsed.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s", f.Name(), path)
			}
		}
	}
}
