package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/parleymq/parley/broker"
)

// ownBroker is the command that runs this program as a broker. The demo needs
// no other binary, and works under go run.
func ownBroker() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	return []string{self, "broker-process"}, nil
}

// brokerProcessCommand is the child's side.
func (a *app) brokerProcessCommand() *cobra.Command {
	var c broker.Config
	level, form := "warn", "console"
	cmd := &cobra.Command{
		Use: "broker-process", Hidden: true, Short: "Runs a broker until stdin ends", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			parsed, err := zerolog.ParseLevel(level)
			if err != nil {
				return usagef("--log-level %q: %v", level, err)
			}
			var out io.Writer = a.stderr
			if form != "json" {
				out = zerolog.ConsoleWriter{Out: a.stderr, NoColor: true}
			}
			c.Logger = zerolog.New(out).Level(parsed).With().Timestamp().Logger()
			// A demo fits on any disk that it starts on.
			c.FreeSpaceFloor = -1
			c.OnFatal = func(error) { os.Exit(exitFailed) } // it has logged why; dragonboat would panic next
			b, err := broker.Start(cmd.Context(), c)
			if err != nil {
				return err
			}
			orphaned := make(chan struct{})
			go func() { // ends with the process
				_, _ = io.Copy(io.Discard, a.stdin)
				close(orphaned)
			}()
			select {
			case <-orphaned:
			case <-cmd.Context().Done():
			case <-b.Done():
				return b.Wait()
			}
			ctx, cancel := context.WithTimeout(context.Background(), startLimit)
			defer cancel()
			return b.Close(ctx)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&c.DataDir, "data-dir", "", "")
	flags.StringVar(&c.Listen, "listen", "", "")
	flags.StringVar(&c.HTTP, "http", "", "")
	flags.StringVar(&c.RaftListen, "raft-listen", "", "")
	flags.StringVar(&c.PeerListen, "peer-listen", "", "")
	flags.StringVar(&c.InitialCluster, "initial-cluster", "", "")
	flags.StringVar(&c.Name, "name", "", "")
	flags.StringVar(&c.Join, "join", "", "")
	flags.DurationVar(&c.TrashGrace, "trash-grace", 0, "")
	flags.Int64Var(&c.CutBytes, "cut-bytes", 0, "")
	flags.DurationVar(&c.CompareEvery, "compare-every", 0, "")
	flags.StringVar(&level, "log-level", level, "")
	flags.StringVar(&form, "log-format", form, "")
	return cmd
}
