package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"

	"gopkg.in/yaml.v3"
)

// usageError is bad usage or configuration: exit status 2.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// maxConfigFile bounds the configuration file: a wrong path to something huge
// must not eat the memory.
const maxConfigFile = 1 << 20

// given is one value and where it came from.
type given struct {
	value string
	from  string // --data-dir, PARLEY_DATA_DIR, parley.yaml:3: data_dir
}

// sources of settings, strongest first.
type sources struct {
	flags  map[string]string // by flag name: what the command line has
	lookup func(string) (string, bool)
}

// load puts the settings together: flags win over the environment, the
// environment over the file, the file over the defaults.
func load(src sources) (*settings, error) {
	all := options()
	file := map[string]given{}
	path, where := src.flags["config"], "--config"
	if path == "" {
		path, _ = src.lookup("PARLEY_CONFIG")
		where = "PARLEY_CONFIG"
	}
	if path != "" {
		data, err := readLimited(path)
		if err != nil {
			return nil, usagef("%s: read configuration: %v", where, err)
		}
		if file, err = parseFile(path, data, all); err != nil {
			return nil, err
		}
	}
	s := &settings{}
	for i := range all {
		o := &all[i]
		g, ok := src.find(o.flag, file)
		if !ok {
			if o.initial == "" {
				continue
			}
			g = given{value: o.initial, from: "default of " + o.key()}
		}
		if err := o.set(s, g.value); err != nil {
			if o.secret {
				return nil, usagef("%s: %v", g.from, err)
			}
			return nil, usagef("%s %q: %v", g.from, g.value, err)
		}
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, nil
}

func (src sources) find(flag string, file map[string]given) (given, bool) {
	if v, ok := src.flags[flag]; ok {
		return given{value: v, from: "--" + flag}, true
	}
	o := option{flag: flag}
	// A variable set to nothing counts as absent: compose files and unit files
	// pass on empty ones.
	if v, ok := src.lookup(o.variable()); ok && v != "" {
		return given{value: v, from: o.variable()}, true
	}
	g, ok := file[o.key()]
	return g, ok
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfigFile {
		return nil, fmt.Errorf("%s is larger than 1MiB", path)
	}
	return data, nil
}

// parseFile reads the file into nodes, not into a struct: only nodes know their
// line, and an error that names the line is the point.
func parseFile(path string, data []byte, all []option) (map[string]given, error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return map[string]given{}, nil // empty, or comments only
		}
		return nil, usagef("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, usagef("%s: more than one YAML document: want one", path)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return map[string]given{}, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, usagef("%s:%d: want lines of the form key: value", path, root.Line)
	}
	known := map[string]bool{}
	for i := range all {
		known[all[i].key()] = true
	}
	found := map[string]given{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		at := fmt.Sprintf("%s:%d: %s", path, key.Line, key.Value)
		switch {
		case !known[key.Value]:
			return nil, usagef("%s:%d: unknown key %q%s; known keys: %s", path, key.Line, key.Value, nearest(key.Value, known), strings.Join(sorted(known), ", "))
		case found[key.Value].from != "":
			return nil, usagef("%s is given twice", at)
		case value.Kind != yaml.ScalarNode:
			return nil, usagef("%s: want one value, not a list or a map", at)
		case value.Tag == "!!null":
			return nil, usagef("%s has no value: give one or remove the line", at)
		}
		found[key.Value] = given{value: value.Value, from: at}
	}
	return found, nil
}

func sorted(set map[string]bool) []string {
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// nearest suggests the key that was probably meant.
func nearest(key string, known map[string]bool) string {
	flat := func(s string) string {
		return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(s))
	}
	for _, k := range sorted(known) {
		if flat(k) == flat(key) {
			return fmt.Sprintf(" (did you mean %q?)", k)
		}
	}
	return ""
}
