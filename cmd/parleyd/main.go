// Command parleyd is the Parley broker.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/cmd/internal/version"
)

// Exit statuses.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(run(os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)) }

func run(args []string, lookup func(string) (string, bool), stdout, stderr io.Writer) int {
	root := newCommand(lookup, stderr)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	err := root.Execute()
	if err == nil {
		return exitDone
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w: another broker, perhaps; stop it, or choose other addresses: --listen, --http, --peer-listen, --raft-listen", err)
	}
	fmt.Fprintf(stderr, "parleyd: %v\n", err)
	// Whatever fails before a command starts is the command line's fault.
	if usage := (*usageError)(nil); !started || errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

func newCommand(lookup func(string) (string, bool), stderr io.Writer) *cobra.Command {
	given := map[string]string{}
	root := &cobra.Command{
		Use:   "parleyd [flags]",
		Short: "The Parley broker: durable, partitioned topics for any NATS client",
		Long: `parleyd is the Parley broker. With no flags it is a one-broker cluster on loopback.

Every setting is a flag, a key of the YAML file (data-dir is data_dir) and an
environment variable (PARLEY_DATA_DIR). Flags win over the environment, the
environment over the file.

SIGTERM and SIGINT end it in order, within 30 s; a second one ends it at once.
Exit status: 2 for bad usage or configuration, 1 for a failure.`,
		Example: `  parleyd
  parleyd --data-dir /var/lib/parley --listen 0.0.0.0:4222 --log-format json
  parleyd --config /etc/parley.yaml
  PARLEY_TOKEN=s3cret parleyd --listen 0.0.0.0:4222`,
		Version:       version.Get().String(),
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(*cobra.Command, []string) error {
			s, err := load(sources{flags: given, lookup: lookup})
			if err != nil {
				return err
			}
			return serve(s, stderr)
		},
	}
	root.SetVersionTemplate("parleyd {{.Version}}\n")
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(&cobra.Command{Hidden: true, Use: "no-help", Run: func(*cobra.Command, []string) {}})
	flags := root.PersistentFlags()
	flags.SortFlags, root.Flags().SortFlags = false, false
	flags.Var(&rawFlag{name: "config", meta: "FILE", given: given}, "config", "YAML `FILE` with any of these settings")
	for _, o := range options() {
		usage := o.usage
		if o.initial != "" && !o.isSwitch {
			usage += " (default " + o.initial + ")"
		}
		flags.Var(&rawFlag{name: o.flag, meta: o.meta, given: given, isSwitch: o.isSwitch}, o.flag, usage)
		if flags.Lookup(o.flag).Hidden = o.hidden; o.isSwitch {
			flags.Lookup(o.flag).NoOptDefVal = "true"
		}
	}
	root.AddCommand(newHealthcheck(given, lookup))
	return root
}

// rawFlag keeps what the command line says; load judges it together with the
// other sources.
type rawFlag struct {
	name, meta string
	given      map[string]string
	isSwitch   bool
}

func (f *rawFlag) String() string {
	if f.given == nil {
		return ""
	}
	return f.given[f.name]
}

func (f *rawFlag) Set(v string) error {
	f.given[f.name] = v
	return nil
}

func (f *rawFlag) Type() string {
	if f.isSwitch {
		return "bool"
	}
	return f.meta
}
