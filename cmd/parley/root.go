package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// app is one run of the tool: where it reads and writes, and the global flags.
type app struct {
	surroundings
	args    []string
	started bool // a command began: errors are no longer about usage

	settings connection // as the flags give it
	context  string
	output   string
	timeout  time.Duration
}

const (
	outputTable = "table"
	outputJSON  = "json"
)

func (a *app) json() bool { return a.output == outputJSON }

// run is main without the process: it returns the exit status.
func run(ctx context.Context, args []string, s surroundings) int {
	a := &app{surroundings: s, args: args}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.stdin)
	root.SetOut(s.stdout)
	root.SetErr(s.stderr)
	return a.finish(ctx, root.ExecuteContext(ctx))
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "parley",
		Short: "Administers a Parley cluster, publishes, reads and measures",
		Long: `parley talks to Parley brokers.

Data goes to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 usage,
130 interrupted.
Connection settings come from the flags, else from --context, else from the
environment (PARLEY_SERVER, PARLEY_USER, PARLEY_PASSWORD, PARLEY_TOKEN), else from
the context chosen with "parley context use".`,
		Example: `  parley demo
  parley topic create orders --partitions 3
  parley pub orders 'hello'
  parley sub orders --from earliest --until-end`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != outputTable && a.output != outputJSON {
				return usagef("--output %q: want table or json", a.output)
			}
			if a.timeout <= 0 {
				return usagef("--timeout %s: want a span above zero such as 5s", a.timeout)
			}
			a.started = true
			return nil
		},
	}
	flags := root.PersistentFlags()
	flags.SortFlags, root.Flags().SortFlags = false, false
	flags.StringVar(&a.settings.Server, "server", "", "broker `URLs`, separated by commas (default "+defaultServer+")")
	flags.StringVarP(&a.output, "output", "o", outputTable, "print `table|json`")
	flags.DurationVar(&a.timeout, "timeout", 5*time.Second, "how long one request may take")
	flags.StringVar(&a.settings.User, "user", "", "user `name`")
	flags.StringVar(&a.settings.Password, "password", "", "password (PARLEY_PASSWORD keeps it out of the process list)")
	flags.StringVar(&a.settings.Token, "token", "", "token (PARLEY_TOKEN keeps it out of the process list)")
	flags.StringVar(&a.settings.NKey, "nkey", "", "`file` with an NKey seed")
	flags.StringVar(&a.settings.TLSCA, "tls-ca", "", "`file` with the authorities to trust")
	flags.StringVar(&a.settings.TLSCert, "tls-cert", "", "`file` with a client certificate")
	flags.StringVar(&a.settings.TLSKey, "tls-key", "", "`file` with its key")
	flags.StringVar(&a.context, "context", "", "`name` of saved settings, see parley context")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputTable, outputJSON}, cobra.ShellCompDirectiveNoFileComp))

	root.AddGroup(
		&cobra.Group{ID: "data", Title: "Records:"},
		&cobra.Group{ID: "admin", Title: "Cluster:"},
		&cobra.Group{ID: "measure", Title: "Try and measure:"},
	)
	group := func(id string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	topic, pub, read, bench, check := a.topicCommand(), a.pubCommand(), a.subCommand(), a.benchCommand(), a.checkCommand()
	a.completeTopic(pub, read, check)
	a.completeTopic(bench.Commands()...)
	for _, c := range topic.Commands() {
		if name := c.Name(); name == "describe" || name == "alter" || name == "delete" {
			a.completeTopic(c)
		}
	}
	group("data", topic, pub, read)
	groups := a.groupCommand()
	a.completeTopic(groups.Commands()...)
	group("data", groups)
	group("admin", a.clusterCommand(), a.brokerCommand(), a.partitionCommand(), a.epochCommand())
	group("measure", a.demoCommand(), bench, check)
	root.AddCommand(a.contextCommand(), a.versionCommand(), a.brokerProcessCommand(), a.proofCommand())
	root.SetFlagErrorFunc(flagError)
	giveOnce(root)
	return root
}
