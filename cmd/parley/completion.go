package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
)

// completionLimit is how long a shell waits for names after TAB.
const completionLimit = time.Second

// completeTopic lets the first argument of cmds be completed with the names of topics.
func (a *app) completeTopic(cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			a.timeout = min(a.timeout, completionLimit)
			var names []string
			// Without a broker there is nothing to offer, and nobody to tell.
			_ = a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				for topic, err := range c.ListTopics(ctx) {
					if err != nil {
						return err
					}
					names = append(names, topic.Name)
				}
				return nil
			})
			return names, cobra.ShellCompDirectiveNoFileComp
		}
	}
}
