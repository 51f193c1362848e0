// Package version says which build this is, the same for both binaries.
package version

import (
	"runtime"
	"runtime/debug"
)

// Release is the version of this source tree. A build from a module proxy or
// with -ldflags "-X …/version.Release=v1.2.3" has its own.
var Release = "v0.1.0-dev"

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
	info := Info{Version: Release, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
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

// String is one line: v0.1.0 (3f2a1b9c, go1.26, linux/amd64).
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
