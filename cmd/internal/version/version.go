// Package version says which build this is, the same for both binaries.
package version

import (
	"runtime"
	"runtime/debug"

	"github.com/parleymq/parley/broker"
)

// Info describes a build.
type Info struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Get reads what the Go tool wrote into the binary.
func Get() Info {
	info := Info{Version: broker.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info
	}
	for _, s := range build.Settings {
		switch s.Key {
		case "vcs.revision":
			info.Revision = s.Value
		case "vcs.modified":
			info.Modified = s.Value == "true"
		}
	}
	return info
}

// String is one line: 0.1.0 (3f2a1b9c, go1.26, linux/amd64).
func (i Info) String() string {
	s := i.Version + " ("
	if len(i.Revision) >= 12 {
		s += i.Revision[:12]
		if i.Modified {
			s += "+changes"
		}
		s += ", "
	}
	return s + i.Go + ", " + i.Platform + ")"
}
