package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// inputLook is how soon a command that waits for its input, from a person or a slow pipe, notices that it was interrupted.
const inputLook = 100 // milliseconds

// interruptible is what a command reads: until ctx ends, too, where the file may keep it waiting for ever.
func interruptible(ctx context.Context, in io.Reader) io.Reader {
	if f, ok := in.(*os.File); ok {
		return &patientInput{ctx, f}
	}
	return in
}

// patientInput asks whether there is something to read before it reads: a read of a terminal or a pipe can't be taken back.
type patientInput struct {
	ctx  context.Context
	file *os.File
}

func (p *patientInput) Read(b []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(p.file.Fd()), Events: unix.POLLIN}}
	for {
		if err := p.ctx.Err(); err != nil {
			return 0, err
		}
		n, err := unix.Poll(fds, inputLook)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for %s: %w", p.file.Name(), err)
		case n > 0: // something to read, or the end
			return p.file.Read(b)
		}
	}
}
