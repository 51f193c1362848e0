package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// needsSubcommand runs a command that is only a group of others.
func needsSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return usagef("unknown command %q for %q", args[0], cmd.CommandPath())
}

// commandName is the command as an error names it, which begins with "parley:".
func commandName(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

// exactly says which arguments are missing, not only how many.
func exactly(n int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("%s: want %s, got %d arguments", commandName(cmd), names, len(args))
		}
		return nil
	}
}

func between(least, most int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return fmt.Errorf("%s: want %s, got %d arguments", commandName(cmd), names, len(args))
		}
		return nil
	}
}

// pairs reads repeated k=v flags, in order.
func pairs(flag string, given []string) ([][2]string, error) {
	var out [][2]string
	for _, g := range given {
		k, v, ok := strings.Cut(g, "=")
		if !ok || k == "" {
			return nil, usagef("--%s %q: want KEY=VALUE", flag, g)
		}
		out = append(out, [2]string{k, v})
	}
	return out, nil
}

// topicPartition reads TOPIC/N.
func topicPartition(s string) (string, int32, error) {
	i := strings.LastIndexByte(s, '/')
	if i > 0 {
		if n, err := strconv.ParseUint(s[i+1:], 10, 31); err == nil {
			return s[:i], int32(n), nil
		}
	}
	return "", 0, usagef("partition %q: want TOPIC/NUMBER such as orders/0", s)
}
