package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/nats-io/nats.go"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

// usageError is a command line that makes no sense: exit status 2.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// errReported ends a command that has already said what is wrong as its
// ordinary output: exit status 1 and nothing more.
var errReported = errors.New("reported")

// errInterrupted ends a command that a signal cut short: exit status 130.
var errInterrupted = errors.New("interrupted")

// interrupted is err, unless the command was cut short: then that is what happened, whatever failed by it.
func interrupted(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.Canceled) && errors.Is(err, context.Canceled) {
		return errInterrupted
	}
	return err
}

// finish turns a command's error into output and an exit status.
func (a *app) finish(ctx context.Context, err error) int {
	err = interrupted(ctx, err)
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errInterrupted):
		return a.finishInterrupted(err)
	case errors.Is(err, errReported):
		return exitFailed
	case errors.Is(err, syscall.EPIPE):
		// Whoever read our output has enough: head, less, grep -q.
		return exitDone
	}
	usage := (*usageError)(nil)
	isUsage := !a.started || errors.As(err, &usage)
	fmt.Fprintf(a.stderr, "parley: %v\n", err)
	if isUsage {
		fmt.Fprintln(a.stderr, `Try "parley --help", or --help after a command.`)
	}
	said := describe(err, isUsage)
	if way := remedies[said.Reason]; way != "" && a.started && !isUsage {
		fmt.Fprintln(a.stderr, way)
	}
	if a.json() || !a.started && asksForJSON(a.args) {
		printError(a.stdout, said)
	}
	if isUsage {
		return exitUsage
	}
	return exitFailed
}

// remedies are what to look at, by the reason of a failure. What a broker says is wrong is said by whoever knows it best; which command
// tells more is known here.
var remedies = map[string]string{
	wire.ReasonTopicNotFound: `See "parley topic list"; "parley topic create NAME" makes one.`,
	wire.ReasonPartNotFound:  `See "parley partition list TOPIC".`,
	wire.ReasonGroupNotFound: `See "parley group list TOPIC".`,
	wire.ReasonNotLeader:     `Try again; "parley cluster health" says what is missing.`,
	wire.ReasonTimeout:       `"parley cluster health" says what is missing; --timeout gives it longer. A change that was asked for may yet be made: look before you repeat it.`,
	wire.ReasonDiskFull:      `Free space on the disk of the partition's leader, or let go of records (parley topic alter NAME --retention).`,
}

func (a *app) finishInterrupted(err error) int {
	if !errors.Is(err, errReported) {
		fmt.Fprintf(a.stderr, "parley: %v\n", err)
		if a.json() {
			printError(a.stdout, describe(err, false))
		}
	}
	return exitInterrupted
}

// asksForJSON looks for -o json where the command line could not be read as a whole:
// a bad flag in front of it hides it.
func asksForJSON(args []string) bool {
	for i, arg := range args {
		switch arg {
		case "-o" + outputJSON, "-o=" + outputJSON, "--output=" + outputJSON:
			return true
		case "-o", "--output":
			if i+1 < len(args) && args[i+1] == outputJSON {
				return true
			}
		case "--":
			return false
		}
	}
	return false
}

// codeInterrupted is what proxies say of a request whose client went away.
const codeInterrupted = 499

// failure is an error as programs get it.
type failure struct {
	Code        int    `json:"code"`
	Reason      string `json:"reason"`
	Retriable   bool   `json:"retriable"`
	Outcome     string `json:"outcome,omitempty"`
	Description string `json:"description"`
}

func printError(w io.Writer, f failure) {
	line, _ := json.Marshal(struct {
		Error failure `json:"error"`
	}{f})
	fmt.Fprintf(w, "%s\n", line)
}

func describe(err error, isUsage bool) failure {
	if isUsage {
		return failure{Code: 400, Reason: wire.ReasonBadRequest, Description: err.Error()}
	}
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return failure{Code: e.Code, Reason: e.Reason, Retriable: e.Retriable, Outcome: e.Outcome, Description: e.Description}
	}
	switch {
	case errors.Is(err, errInterrupted):
		return failure{Code: codeInterrupted, Reason: "interrupted", Retriable: true, Description: err.Error()}
	case errors.Is(err, client.ErrOffsetOutOfRange):
		return failure{Code: 416, Reason: wire.ReasonOffsetOutOfRange, Description: err.Error()}
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
		return failure{Code: 401, Reason: wire.ReasonUnauthorized, Description: err.Error()}
	case errors.Is(err, nats.ErrNoServers), errors.Is(err, nats.ErrNoResponders), errors.Is(err, syscall.ECONNREFUSED):
		return failure{Code: 503, Reason: wire.ReasonUnavailable, Retriable: true, Description: err.Error()}
	case errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return failure{Code: 504, Reason: wire.ReasonTimeout, Retriable: true, Description: err.Error()}
	}
	return failure{Code: 500, Reason: wire.ReasonInternal, Description: err.Error()}
}
