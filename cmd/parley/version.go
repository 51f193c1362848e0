package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/cmd/internal/version"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Says which build this is", Args: cobra.NoArgs, Example: "  parley version -o json",
		RunE: func(*cobra.Command, []string) error {
			if a.json() {
				return a.printJSON(version.Get())
			}
			_, err := fmt.Fprintln(a.stdout, "parley", version.Get())
			return err
		},
	}
}
