package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A confirmation is what a person has to type before something happens that can't be taken back.
type confirmation struct {
	what     string // is about to be done, where there is nobody to ask
	question string
	want     string // as an answer
	kept     string // what a refusal leaves as it is
}

// confirm asks a person on the terminal; nil is a yes. Where there is nobody to ask the answer is no: --yes is the way.
func (a *app) confirm(ctx context.Context, q confirmation) error {
	if !isTerminal(a.stdin) {
		return usagef("%s: give --yes where there is nobody to ask", q.what)
	}
	fmt.Fprintf(a.stderr, "%s ", q.question)
	answer, err := bufio.NewReader(interruptible(ctx, a.stdin)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(answer) != q.want {
		return fmt.Errorf("not confirmed: %s", q.kept)
	}
	return nil
}
