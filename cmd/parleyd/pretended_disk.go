package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"

	"github.com/parleymq/parley/client/wire"
	"github.com/parleymq/parley/cmd/internal/diskuse"
)

// pretendedDisk is a disk for tests of disks that fill up: as large as a file says at the moment, and taken up by what the
// data directory really takes. While there is no such file it is very large.
func pretendedDisk(file string) func(dir string) (free, total uint64, err error) {
	return func(dir string) (free, total uint64, err error) {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, 0, err
		}
		size := int64(math.MaxInt64)
		if word := strings.TrimSpace(string(text)); word != "" {
			if size, err = wire.ParseSize(word); err != nil {
				return 0, 0, fmt.Errorf("size of a pretended disk in %s: %w", file, err)
			}
		}
		used, err := diskuse.Of(dir)
		if err != nil {
			return 0, 0, err
		}
		return uint64(max(size-used, 0)), uint64(size), nil
	}
}
