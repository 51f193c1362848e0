// Package cmd_test holds the module to its import rule.
package cmd_test

import (
	"fmt"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/parleymq/parley"

// The rule, as data. Packages are named below the module; a name with /... stands for everything
// below it and itself. Imports run one way: cmd -> broker -> partition -> replication.

// layers says for each package of the module which others of it may be imported directly. The
// first line that matches counts; a package that no line matches is an error, so
// that a new one is given its place here.
var layers = []struct {
	packages string
	may      []string
}{
	// Leaves.
	{"partition/record", nil},
	{"client/wire", nil},
	{"broker/interest", nil},
	{"replication/format", nil},
	{"replication/epoch/config", []string{"replication/format"}},
	{"replication/paxos", []string{"replication/epoch/config"}},
	{"replication/paxos/simulation", []string{"replication/paxos"}},
	{"replication/paxos/simulate", []string{"replication/paxos", "replication/paxos/simulation"}},
	{"partition/placement", []string{"replication/epoch/config"}},
	{"partition/group", []string{"replication/format"}},

	// Seams and their adapters.
	{"replication", nil},
	{"replication/raft", []string{"replication", "replication/raft/journal", "replication/format"}},
	{"replication/raft/journal", []string{"replication/format"}},
	{"replication/memlog", []string{"replication"}},
	{"replication/replicationtest", []string{"replication", "replication/epoch", "replication/epoch/config"}},
	{"replication/epoch", []string{"replication", "replication/paxos", "replication/epoch/config", "replication/format"}},
	{"partition/storage", []string{"partition/record", "replication/format"}},
	{"partition/storage/...", []string{"partition/storage", "partition/record", "replication/format"}},
	{"partition", []string{
		"replication", "replication/format", "partition/record", "partition/storage", "partition/group",
	}},

	// The broker. It may name the adapters, as the defaults of its Config.
	{"broker/protocol", []string{"partition/record", "client/wire", "broker/interest"}},
	{"broker/protocol/...", []string{"broker/protocol", "partition/record", "client/wire", "broker/interest"}},
	{"broker/mesh", []string{"broker/interest", "broker/protocol", "broker/protocol/nats", "client/wire", "partition/record", "replication/epoch/..."}},
	{"broker/upkeep", []string{"partition/placement", "replication/epoch/config"}},
	{"broker/api", []string{"broker/upkeep", "client/wire", "partition/record", "replication/epoch", "replication/epoch/config", "partition/placement"}},
	{"broker/admin", []string{"broker/api", "client/wire"}},
	{"broker/brokertest", []string{"broker", "broker/...", "client", "client/wire", "partition/...", "replication/..."}},
	{"broker", []string{"broker/...", "partition/...", "replication/...", "client/wire"}},

	{"client", []string{"client/wire", "partition/record"}},
	{"client/...", []string{"client", "client/wire", "partition/record"}},
	// Its proofs compare what replicas have on disk.
	{"cmd/parley", []string{"cmd/...", "broker/...", "client/...", "partition/record", "partition/storage", "replication/epoch/config"}},
	{"cmd/...", []string{"cmd/...", "broker/...", "client/...", "partition/record", "replication/epoch/config"}},
}

// never says what packages don't reach, however many of the module's own packages lie in
// between. The standard library and other modules are not looked into.
var never = []struct {
	packages string
	reach    []string
	why      string
}{
	{"client/...", []string{module + "/broker/...", module + "/replication/..."}, "the SDK stands alone"},
	{"partition/...", []string{module + "/broker/...", module + "/client/..."}, "imports run one way"},
	{"replication/...", []string{module + "/broker/...", module + "/partition/...", module + "/client/..."}, "imports run one way"},
	{"replication/paxos", impure, "it must be simulated: time comes in as int64 milliseconds"},
	{"partition/placement", impure, "it must be deterministic: time comes in as int64 milliseconds"},
	{"broker/upkeep", impure[1:], "it must be deterministic: time comes in as int64 milliseconds"}, // a topic's config has a time.Duration
	{"partition/group", impure, "it must be deterministic: time comes in as int64 milliseconds"},
}

var impure = []string{"time", "net", "net/...", "os", "os/...", "math/rand", "math/rand/..."}

// only says which packages may import what directly, tests included.
var only = []struct {
	imports  string
	packages []string
}{
	{"github.com/lni/dragonboat/v4/...", []string{"replication/raft"}},
	{"github.com/lni/vfs/...", []string{"replication/raft"}},
	{"github.com/dgraph-io/badger/v4/...", []string{"partition/storage/badger"}},
	{"github.com/spf13/cobra/...", []string{"cmd/..."}},
	{"github.com/prometheus/client_golang/...", []string{"broker/...", "cmd/..."}},
}

// A graph maps each package of the module to what it imports.
type graph struct {
	imports map[string][]string // without tests
	tests   map[string][]string // by its tests
}

// check returns every breach of the rule.
func check(g graph) []string {
	var out []string
	breach := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }

	for pkg, imports := range g.imports {
		may, ok := allowed(pkg)
		if !ok {
			breach("%s has no place in the layers: give it one in cmd/imports_test.go", pkg)
			continue
		}
		for _, imp := range imports {
			if below, ok := own(imp); ok && !matchAny(may, below) {
				breach("%s imports %s: of this module it may import %s", pkg, below, list(may))
			}
		}
	}
	for _, rule := range never {
		for pkg := range g.imports {
			if !match(rule.packages, pkg) {
				continue
			}
			reached := closure(g, pkg)
			for imp, chain := range reached {
				if matchAny(rule.reach, imp) {
					breach("%s reaches %s (%s): %s", pkg, imp, strings.Join(chain, " -> "), rule.why)
				}
			}
		}
	}
	for _, all := range []map[string][]string{g.imports, g.tests} {
		for pkg, imports := range all {
			for _, imp := range imports {
				for _, rule := range only {
					if match(rule.imports, imp) && !matchAny(rule.packages, pkg) {
						breach("%s imports %s: only %s may", pkg, imp, list(rule.packages))
					}
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// closure is what pkg imports, directly or through packages of the module, each with a way there.
func closure(g graph, pkg string) map[string][]string {
	reached := make(map[string][]string)
	var walk func(pkg string, chain []string)
	walk = func(pkg string, chain []string) {
		for _, imp := range g.imports[pkg] {
			if _, ok := reached[imp]; ok {
				continue
			}
			way := append(slices.Clone(chain), imp)
			reached[imp] = way
			if below, ok := own(imp); ok {
				walk(below, way)
			}
		}
	}
	walk(pkg, []string{pkg})
	return reached
}

func allowed(pkg string) ([]string, bool) {
	for _, l := range layers {
		if match(l.packages, pkg) {
			return l.may, true
		}
	}
	return nil, false
}

// own tells whether an import is of this module, and its name below it.
func own(imp string) (string, bool) {
	if imp == module {
		return ".", true
	}
	return strings.CutPrefix(imp, module+"/")
}

func match(pattern, name string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == base || strings.HasPrefix(name, base+"/")
	}
	return name == pattern
}

func matchAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, name) })
}

func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// load reads the imports of every package below root, whatever its build constraints: a rule
// that held on one platform only would be none.
func load(root string) (graph, error) {
	g := graph{imports: make(map[string][]string), tests: make(map[string][]string)}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if file != root && (name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return filepath.SkipDir
			}
			// Another module inside this one isn't ours to judge.
			if _, err := os.Stat(filepath.Join(file, "go.mod")); err == nil && file != root {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := parser.ParseFile(fset, file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		into := g.imports
		if strings.HasSuffix(name, "_test.go") {
			into = g.tests
		} else if _, ok := into[pkg]; !ok {
			into[pkg] = nil
		}
		for _, spec := range src.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if !slices.Contains(into[pkg], imp) {
				into[pkg] = append(into[pkg], imp)
			}
		}
		return nil
	})
	return g, err
}

func TestImports(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	g, err := load(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := g.imports["replication"]; !ok {
		t.Fatalf("no package replication below %s", root)
	}
	for _, breach := range check(g) {
		t.Error(breach)
	}
}

// The top level holds no more directories than the layout names.
func TestTopLevel(t *testing.T) {
	t.Parallel()
	want := []string{"broker", "client", "cmd", "docs", "partition", "replication", "testdata"}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !slices.Contains(want, e.Name()) {
			t.Errorf("directory %s: the top level holds %s", e.Name(), list(want))
		}
	}
}

// Each line breaks the rule, and only there.
func TestCheckFindsBreaches(t *testing.T) {
	t.Parallel()
	good := func() graph {
		return graph{
			imports: map[string][]string{
				"replication":              {"errors", "time"},
				"replication/raft":         {module + "/replication", "github.com/lni/dragonboat/v4"},
				"replication/paxos":        {"sort"},
				"partition/record":         {"hash/crc32"},
				"partition/storage":        {"errors"},
				"partition/storage/badger": {module + "/partition/storage", "github.com/dgraph-io/badger/v4/options"},
				"partition/placement":      {"sort"},
				"partition/group":          {"sort"},
				"partition":                {module + "/replication", module + "/partition/record", "time"},
				"client/wire":              {"fmt"},
				"client":                   {module + "/client/wire", module + "/partition/record", "github.com/nats-io/nats.go"},
				"broker":                   {module + "/partition", module + "/replication/raft", module + "/client/wire"},
				"cmd/parleyd":              {module + "/broker"},
			},
			tests: map[string][]string{
				"partition": {module + "/replication/memlog", module + "/replication/raft"},
			},
		}
	}
	if got := check(good()); len(got) != 0 {
		t.Fatalf("a graph that keeps the rule: %q", got)
	}
	for _, c := range []struct {
		pkg, imp string
		test     bool
		want     string
	}{
		{pkg: "partition", imp: module + "/broker", want: "partition imports broker"},
		{pkg: "replication", imp: module + "/partition/record", want: "replication imports partition/record"},
		{pkg: "client", imp: module + "/partition", want: "client imports partition"},
		{pkg: "client", imp: module + "/partition", want: "client reaches " + module + "/replication (client -> " + module + "/partition -> " + module + "/replication)"},
		{pkg: "partition/record", imp: module + "/client/wire", want: "partition/record imports client/wire"},
		{pkg: "partition", imp: module + "/client/wire", want: "partition reaches " + module + "/client/wire"},
		{pkg: "partition", imp: "github.com/lni/dragonboat/v4/statemachine", want: "partition imports github.com/lni/dragonboat/v4/statemachine: only replication/raft may"},
		{pkg: "broker", imp: "github.com/dgraph-io/badger/v4", want: "broker imports github.com/dgraph-io/badger/v4: only partition/storage/badger may"},
		{pkg: "broker", imp: "github.com/dgraph-io/badger/v4", test: true, want: "broker imports github.com/dgraph-io/badger/v4"},
		{pkg: "replication/paxos", imp: "time", want: "replication/paxos reaches time"},
		{pkg: "partition/placement", imp: "math/rand/v2", want: "partition/placement reaches math/rand/v2"},
		{pkg: "partition/group", imp: module + "/partition/storage", want: "partition/group imports partition/storage"},
		{pkg: "broker", imp: module + "/client", want: "broker imports client"},
		{pkg: "util", imp: "fmt", want: "util has no place"},
	} {
		g := good()
		if c.test {
			g.tests[c.pkg] = append(g.tests[c.pkg], c.imp)
		} else {
			g.imports[c.pkg] = append(g.imports[c.pkg], c.imp)
		}
		got := check(g)
		if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, c.want) }) {
			t.Errorf("%s imports %s: found %q, want %q", c.pkg, c.imp, got, c.want)
		}
	}
	// Purity counts through packages in between.
	g := good()
	g.imports["replication/paxos"] = append(g.imports["replication/paxos"], module+"/replication/epoch/config")
	g.imports["replication/epoch/config"] = []string{"time"}
	if got := check(g); len(got) != 1 || !strings.HasPrefix(got[0], "replication/paxos reaches time") {
		t.Errorf("paxos through config: %q", got)
	}
}

// What load leaves out is what the go command leaves out.
func TestLoadSeesWhatGoSees(t *testing.T) {
	t.Parallel()
	g, err := load("..")
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range g.imports {
		p, err := build.ImportDir(filepath.Join("..", filepath.FromSlash(pkg)), 0)
		if err != nil {
			continue // nothing of it is built on this platform
		}
		for _, imp := range p.Imports {
			if !slices.Contains(g.imports[pkg], imp) {
				t.Errorf("%s imports %s, which load didn't see", path.Join(module, pkg), imp)
			}
		}
	}
}
