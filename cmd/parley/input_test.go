package main

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
)

// TestInputThatNobodyTypes: a command that waits for its input ends when it is interrupted, and reads to the end otherwise.
func TestInputThatNobodyTypes(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in := interruptible(ctx, r)
	if _, err := w.WriteString("line\n"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16)
	if n, err := in.Read(b); err != nil || string(b[:n]) != "line\n" {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := in.Read(make([]byte, 16))
		ended <- err
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := interruptible(t.Context(), r).Read(b); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
}
