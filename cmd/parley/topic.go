package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymq/parley/client"
	"github.com/parleymq/parley/client/wire"
)

func (a *app) topicCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "topic", Short: "Creates, lists, describes, alters, deletes, restores, exports and imports topics",
		Example: "  parley topic create orders --partitions 3\n  parley topic describe orders",
		RunE:    needsSubcommand,
	}
	parent.AddCommand(a.topicCreate(), a.topicList(), a.topicDescribe(), a.topicAlter(), a.topicDelete(), a.topicRestore(),
		a.topicExport(), a.topicImport())
	return parent
}

// topicFlags are what create and alter share.
type topicFlags struct {
	partitions, replicas                       int32
	subjects, config                           []string
	retention, maxBytes, maxRecords, key, size string
}

func (f *topicFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Int32Var(&f.partitions, "partitions", 0, fmt.Sprintf("`number` of partitions, 1 to %d", wire.MaxPartitions))
	flags.Int32Var(&f.replicas, "replicas", 0, "`copies` of each partition")
	flags.StringArrayVar(&f.subjects, "subject", nil, "NATS `subject` that belongs to the topic, may be repeated (default NAME and NAME.>)")
	flags.StringVar(&f.retention, "retention", "", "how long records are kept, `span` such as 7d; 0 for ever")
	flags.StringVar(&f.maxBytes, "max-bytes", "", "`size` that a partition keeps, such as 10GiB; 0 for no limit")
	flags.StringVar(&f.maxRecords, "max-records", "", "`number` of records that a partition keeps; 0 for no limit")
	flags.StringVar(&f.key, "key", "", "how a plain publish gets its key: `subject|none|token:N`")
	flags.StringVar(&f.size, "max-record", "", "largest record, `size` up to 1MiB")
	flags.StringArrayVar(&f.config, "config", nil, "any setting as `k=v`, may be repeated")
}

// settings checks what can be checked here and returns the topic's config.
func (f *topicFlags) settings(cmd *cobra.Command) (map[string]string, error) {
	if cmd.Flags().Changed("partitions") && (f.partitions < 1 || f.partitions > wire.MaxPartitions) {
		return nil, usagef("--partitions %d: want 1 to %d", f.partitions, wire.MaxPartitions)
	}
	if cmd.Flags().Changed("replicas") && f.replicas < 1 {
		return nil, usagef("--replicas %d: want 1 or more", f.replicas)
	}
	config := map[string]string{}
	given, err := pairs("config", f.config)
	if err != nil {
		return nil, err
	}
	for _, kv := range given {
		config[kv[0]] = kv[1]
	}
	for _, s := range []struct{ flag, key, value string }{
		{"retention", wire.ConfigRetention, f.retention}, {"max-bytes", wire.ConfigMaxBytes, f.maxBytes},
		{"max-records", wire.ConfigMaxRecords, f.maxRecords}, {"key", wire.ConfigKey, f.key},
		{"max-record", wire.ConfigMaxRecord, f.size},
	} {
		if !cmd.Flags().Changed(s.flag) {
			continue
		}
		if _, twice := config[s.key]; twice {
			return nil, usagef("--%s and --config %s say the same thing: give one", s.flag, s.key)
		}
		config[s.key] = s.value
	}
	if v, ok := config[wire.ConfigRetention]; ok {
		if _, err := wire.ParseAge(v); err != nil {
			return nil, usagef("--retention: %v", err)
		}
	}
	for _, key := range []string{wire.ConfigMaxBytes, wire.ConfigMaxRecord} {
		if v, ok := config[key]; ok {
			if _, err := wire.ParseSize(v); err != nil {
				return nil, usagef("--%s: %v", strings.ReplaceAll(key, "_", "-"), err)
			}
		}
	}
	if len(config) == 0 {
		return nil, nil
	}
	return config, nil
}

func (a *app) topicCreate() *cobra.Command {
	var f topicFlags
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Creates a topic", Args: exactly(1, "NAME"),
		Example: `  parley topic create orders
  parley topic create clicks --partitions 12 --retention 7d --max-bytes 10GiB
  parley topic create sensors --subject 'site.*.temperature' --key token:2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := f.settings(cmd)
			if err != nil {
				return err
			}
			return a.change(cmd.Context(), func(ctx context.Context, c *client.Client) (client.TopicChange, error) {
				return c.CreateTopic(ctx, client.TopicSpec{Name: args[0], Partitions: f.partitions, Replicas: f.replicas, Subjects: f.subjects, Config: config})
			})
		},
	}
	f.register(cmd)
	return cmd
}

// change runs one change and says what it changed, and in which epoch.
func (a *app) change(ctx context.Context, do func(context.Context, *client.Client) (client.TopicChange, error)) error {
	return a.request(ctx, func(ctx context.Context, c *client.Client) error {
		change, err := do(ctx, c)
		if err != nil {
			return err
		}
		if a.json() {
			return a.printJSON(change)
		}
		line := fmt.Sprintf("topic %s %s", change.Name, change.Change)
		if change.Detail != "" {
			line += ": " + change.Detail
		}
		if change.Epoch != 0 {
			line += fmt.Sprintf(" (epoch %d)", change.Epoch)
		}
		_, err = fmt.Fprintln(a.stdout, line)
		return err
	})
}

func (a *app) topicList() *cobra.Command {
	deleted := false
	cmd := &cobra.Command{
		Use: "list", Short: "Lists topics", Args: cobra.NoArgs,
		Example: "  parley topic list\n  parley topic list --deleted",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				topics := c.ListTopics(ctx)
				if deleted {
					topics = c.ListDeletedTopics(ctx)
				}
				t := newTable("NAME", "PARTITIONS", "REPLICAS", "SUBJECTS", "CONFIG")
				for topic, err := range topics {
					if err != nil {
						return err
					}
					if a.json() {
						if err := a.printJSON(topic); err != nil {
							return err
						}
						continue
					}
					t.row(str(topic.Name), num(topic.Partitions), num(topic.Replicas), str(strings.Join(topic.Subjects, " ")), str(configText(topic.Config)))
				}
				if a.json() {
					return nil
				}
				if len(t.rows) == 0 {
					fmt.Fprintln(a.stderr, "no topics; parley topic create NAME makes one")
					return nil
				}
				return a.printTable(t)
			})
		},
	}
	cmd.Flags().BoolVar(&deleted, "deleted", false, "those that were deleted and can still be restored")
	return cmd
}

func configText(config map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(config)) {
		parts = append(parts, k+"="+config[k])
	}
	return strings.Join(parts, " ")
}

func (a *app) topicDescribe() *cobra.Command {
	return &cobra.Command{
		Use: "describe NAME", Short: "Describes a topic and its partitions", Args: exactly(1, "NAME"),
		Example: "  parley topic describe orders -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.request(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				d, err := c.DescribeTopic(ctx, args[0])
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(d)
				}
				fmt.Fprintf(a.stdout, "topic     %s\nsubjects  %s\nconfig    %s\nepoch     %d\n\n",
					d.Name, strings.Join(d.Subjects, " "), str(configText(d.Config)).text, d.Epoch)
				return a.printPartitions(d.Partitions, false)
			})
		},
	}
}

func (a *app) topicAlter() *cobra.Command {
	var f topicFlags
	yes := false
	cmd := &cobra.Command{
		Use: "alter NAME", Short: "Changes what is given and leaves the rest", Args: exactly(1, "NAME"),
		Example: "  parley topic alter orders --retention 30d\n  parley topic alter orders --partitions 6 --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := f.settings(cmd)
			if err != nil {
				return err
			}
			alter := client.TopicAlter{Name: args[0], Partitions: f.partitions, Replicas: f.replicas, Subjects: f.subjects, Config: config}
			if alter.Partitions == 0 && alter.Replicas == 0 && alter.Subjects == nil && alter.Config == nil {
				return usagef("nothing to alter: give --partitions, --retention or another setting")
			}
			if alter.Partitions != 0 {
				grows, err := a.grows(cmd.Context(), args[0], alter.Partitions)
				if err != nil {
					return err
				}
				if grows {
					fmt.Fprintln(a.stderr, "With more partitions keys map anew: new records of a key may go to another partition than its old ones.")
				}
				if grows && !yes {
					if err := a.confirm(cmd.Context(), confirmation{
						"alter the partitions of topic " + args[0], "Go on? Type yes:", "yes", "nothing was changed",
					}); err != nil {
						return err
					}
				}
			}
			return a.change(cmd.Context(), func(ctx context.Context, c *client.Client) (client.TopicChange, error) {
				return c.AlterTopic(ctx, alter)
			})
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// grows says whether so many partitions are more than the topic has. Fewer, or a topic that isn't there, is for the broker to refuse: nobody is asked about that.
func (a *app) grows(ctx context.Context, topic string, partitions int32) (grows bool, err error) {
	err = a.request(ctx, func(ctx context.Context, c *client.Client) error {
		d, err := c.DescribeTopic(ctx, topic)
		grows = int(partitions) > len(d.Partitions)
		return err
	})
	return grows, err
}

func (a *app) topicDelete() *cobra.Command {
	yes := false
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Deletes a topic; it can be restored for a while", Args: exactly(1, "NAME"),
		Example: "  parley topic delete orders --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := a.confirm(cmd.Context(), confirmation{
					"delete topic " + args[0], fmt.Sprintf("Delete topic %s with all its records? Type its name:", args[0]), args[0], "nothing was deleted",
				}); err != nil {
					return err
				}
			}
			return a.change(cmd.Context(), func(ctx context.Context, c *client.Client) (client.TopicChange, error) {
				return c.DeleteTopic(ctx, args[0])
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

func (a *app) topicRestore() *cobra.Command {
	return &cobra.Command{
		Use: "restore NAME", Short: "Brings a deleted topic back", Args: exactly(1, "NAME"),
		Example: "  parley topic list --deleted\n  parley topic restore orders",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *client.Client) (client.TopicChange, error) {
				return c.RestoreTopic(ctx, args[0])
			})
		},
	}
}
