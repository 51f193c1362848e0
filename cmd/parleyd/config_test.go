package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "parley.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func lookup(env map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := env[k]; return v, ok }
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	s, err := load(sources{flags: map[string]string{"name": "b1"}, lookup: lookup(nil)})
	if err != nil {
		t.Fatal(err)
	}
	want := settings{Name: "b1", DataDir: "./parley-data", Listen: "127.0.0.1:4222", HTTP: "127.0.0.1:8222", PeerListen: "127.0.0.1:6222", RaftListen: "127.0.0.1:7222", Weight: 100, DeadAfter: 5 * time.Minute,
		CopyRate: 64 << 20, TrashGrace: 10 * time.Minute, CompareEvery: 24 * time.Hour, CompareRate: 8 << 20,
		FreeSpaceFloor: 1 << 30, MaxRecord: 1 << 20, LogLevel: "info", LogFormat: "console"}
	if *s != want {
		t.Errorf("defaults:\n got %+v\nwant %+v", *s, want)
	}
}

// TestExampleFile: the example names every setting, with its default.
func TestExampleFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join("..", "..", "testdata", "parley.yaml")
	s, err := load(sources{flags: map[string]string{"config": path}, lookup: lookup(nil)})
	if err != nil {
		t.Fatal(err)
	}
	defaults, err := load(sources{flags: map[string]string{}, lookup: lookup(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if *s != *defaults {
		t.Errorf("the example says\n%+v, the defaults are\n%+v", *s, *defaults)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range options() {
		if !o.hidden && !strings.Contains(string(text), o.key()+": ") {
			t.Errorf("the example leaves out %s", o.key())
		}
	}
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "# comment\nname: from-file\nlog_level: warn\nmax_record: 64KiB\nauto_create_topics: true\n")
	env := map[string]string{"PARLEY_NAME": "from-env", "PARLEY_LOG_LEVEL": "error", "PARLEY_CONFIG": file, "PARLEY_TOKEN": ""}
	s, err := load(sources{flags: map[string]string{"name": "from-flag"}, lookup: lookup(env)})
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "from-flag" || s.LogLevel != "error" || s.MaxRecord != 64<<10 || !s.AutoCreateTopics {
		t.Errorf("flags > environment > file is broken: %+v", *s)
	}
}

func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		file  string
		flags map[string]string
		env   map[string]string
		want  []string // all in the one line
	}{
		{name: "unknown key", file: "name: b1\n\ndata-dir: x\n", want: []string{`:3: unknown key "data-dir"`, `did you mean "data_dir"`}},
		{name: "unknown key, nothing near", file: "colour: red\n", want: []string{`:1: unknown key "colour"`, "log_level"}},
		{name: "twice", file: "name: a\nname: b\n", want: []string{":2", "name"}},
		{name: "no value", file: "name:\n", want: []string{":1: name has no value"}},
		{name: "list", file: "name: [a, b]\n", want: []string{":1: name: want one value"}},
		{name: "not a map", file: "- name\n", want: []string{":1: want lines of the form key: value"}},
		{name: "two documents", file: "name: a\n---\nname: b\n", want: []string{"more than one YAML document"}},
		{name: "broken YAML", file: "name: 'a\n", want: []string{"line"}},
		{name: "config inside the file", file: "config: x\n", want: []string{`unknown key "config"`}},
		{name: "bad value in the file", file: "name: b1\nmax_record: 2MiB\n", want: []string{`:2: max_record "2MiB"`, "from 1B to 1MiB"}},
		{name: "bad value in the environment", env: map[string]string{"PARLEY_LOG_FORMAT": "xml"}, want: []string{`PARLEY_LOG_FORMAT "xml"`, "console, json"}},
		{name: "bad address", flags: map[string]string{"listen": "4222"}, want: []string{`--listen "4222"`, "HOST:PORT"}},
		{name: "bad port", flags: map[string]string{"http": "127.0.0.1:70000"}, want: []string{"--http", "65535"}},
		{name: "bad name", flags: map[string]string{"name": "a b"}, want: []string{`--name "a b"`, "letters, digits"}},
		{name: "name with a dot", flags: map[string]string{"name": "a.b"}, want: []string{`--name "a.b"`}},
		{name: "rack of two lines", flags: map[string]string{"rack": "a\nb"}, want: []string{`--rack "a\nb"`, "printable"}},
		{name: "no weight", flags: map[string]string{"weight": "0"}, want: []string{`--weight "0"`, "from 1 to 10000"}},
		{name: "bad size", flags: map[string]string{"free-space-floor": "lots"}, want: []string{"--free-space-floor", "512MiB"}},
		{name: "tiny memory", flags: map[string]string{"memory-limit": "1MiB"}, want: []string{"--memory-limit", "at least 128MiB"}},
		{name: "bad switch", env: map[string]string{"PARLEY_AUTO_CREATE_TOPICS": "perhaps"}, want: []string{"PARLEY_AUTO_CREATE_TOPICS", "true or false"}},
		{name: "half TLS", flags: map[string]string{"tls-cert": "c.pem"}, want: []string{"tls_cert and tls_key"}},
		{name: "CA without TLS", flags: map[string]string{"tls-client-ca": "c.pem"}, want: []string{"tls_client_ca needs"}},
		{name: "half credential", flags: map[string]string{"user": "u"}, want: []string{"user and password"}},
		{name: "two credentials", flags: map[string]string{"user": "u", "password": "p", "token": "t"}, want: []string{"exclude"}},
		{name: "same port twice", flags: map[string]string{"http": "127.0.0.1:4222"}, want: []string{"listen and http are both 127.0.0.1:4222"}},
		{name: "no such file", flags: map[string]string{"config": "/does/not/exist.yaml"}, want: []string{"--config", "no such file"}},
		{name: "peer TLS in part", flags: map[string]string{"peer-tls-cert": "c.pem"}, want: []string{"peer_tls_cert", "go together"}},
		{name: "cluster key", file: "dead_after: 1ms\n", want: []string{":1: dead_after", "1s or more"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			flags := map[string]string{}
			if c.file != "" {
				flags["config"] = writeFile(t, c.file)
			}
			for k, v := range c.flags {
				flags[k] = v
			}
			_, err := load(sources{flags: flags, lookup: lookup(c.env)})
			var usage *usageError
			if !errors.As(err, &usage) {
				t.Fatalf("got %v, want a usage error", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than one line", err)
			}
		})
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	t.Parallel()
	_, err := load(sources{flags: map[string]string{"password": "hunter2"}, lookup: lookup(nil)})
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v; want an error without the password", err)
	}
}
