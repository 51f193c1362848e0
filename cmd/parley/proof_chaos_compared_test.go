package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestComparedIn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lines := []string{
		`{"level":"debug","message":"` + loggedCompared + `"}`,
		`{"level":"error","brokers":"b1,b2,b3","bad":"b2","message":"` + loggedDiffer + `: it is to be replaced"}`,
		`{"level":"error","brokers":"b1,b2,b3","bad":"b3","message":"` + loggedDiffer + `: it is to be replaced"}`,
		`{"level":"error","brokers":"b1,b2","bad":"","message":"` + loggedUndecided + `: nothing"}`,
		`{"level":"warn","brokers":"b1,b3","bad":"","message":"` + loggedPassing + `, and did not"}`,
		`{"level":"info","message":"broker serves"}`,
	}
	if err := os.WriteFile(filepath.Join(dir, "b1.log"), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	told := ""
	r, err := comparedIn(dir, map[string]bool{"b2": true}, func(f string, args ...any) { told += fmt.Sprintf(f, args...) + "\n" })
	if err != nil || r != (comparedResult{Passes: 1, Found: 2, False: 2}) || strings.Count(told, "\n") != 2 {
		t.Errorf("%+v, %v, told: %s", r, err, told)
	}
}
