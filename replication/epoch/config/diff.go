package config

import (
	"fmt"
	"slices"
	"strings"
)

// Diff describes what changed from a to b, one change a line, in a fixed order.
func Diff(a, b *Config) []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if a.ClusterID != b.ClusterID {
		add("cluster %q -> %q", a.ClusterID, b.ClusterID)
	}
	if a.FeatureLevel != b.FeatureLevel {
		add("feature level %d -> %d", a.FeatureLevel, b.FeatureLevel)
	}
	if !slices.Equal(a.Council, b.Council) {
		add("council %v -> %v", a.Council, b.Council)
	}
	if a.Uneven == 0 && b.Uneven != 0 {
		add("~ replicas are to be evened out")
	} else if a.Uneven != 0 && b.Uneven == 0 {
		add("~ replicas are evened out")
	}
	for i := range b.Brokers {
		n := &b.Brokers[i]
		o := a.Broker(n.ID)
		if o == nil {
			add("+ broker %s (id %d, weight %d)", n.Name, n.ID, n.Weight)
			continue
		}
		change := func(what, from, to string) {
			if from != to {
				add("~ broker %s: %s %s -> %s", n.Name, what, orNone(from), orNone(to))
			}
		}
		change("name", o.Name, n.Name)
		change("incarnation", o.Incarnation, n.Incarnation)
		change("client address", o.Addresses.Client, n.Addresses.Client)
		change("peer address", o.Addresses.Peer, n.Addresses.Peer)
		change("raft address", o.Addresses.Raft, n.Addresses.Raft)
		change("rack", o.Rack, n.Rack)
		change("weight", fmt.Sprint(o.Weight), fmt.Sprint(n.Weight))
		change("state", o.State.String(), n.State.String())
	}
	for i := range a.Brokers {
		if b.Broker(a.Brokers[i].ID) == nil {
			add("- broker %s (id %d)", a.Brokers[i].Name, a.Brokers[i].ID)
		}
	}
	diffTopics(a, b, add)
	return lines
}

func diffTopics(a, b *Config, add func(string, ...any)) {
	old := make(map[uint64]*Topic, len(a.Topics))
	for i := range a.Topics {
		old[a.Topics[i].ID] = &a.Topics[i]
	}
	for i := range b.Topics {
		n := &b.Topics[i]
		o := old[n.ID]
		delete(old, n.ID)
		if o == nil {
			add("+ topic %s (id %d, %d partitions, subjects %s)", n.Name, n.ID, len(n.Partitions), strings.Join(n.Subjects, ", "))
			continue
		}
		switch {
		case o.Live() && !n.Live():
			add("- topic %s deleted (restorable)", n.Name)
		case !o.Live() && n.Live():
			add("+ topic %s restored", n.Name)
		}
		if !o.Purge && n.Purge {
			add("- topic %s (id %d) to be purged", n.Name, n.ID)
		}
		if !slices.Equal(o.Subjects, n.Subjects) {
			add("~ topic %s: subjects %s -> %s", n.Name, strings.Join(o.Subjects, ", "), strings.Join(n.Subjects, ", "))
		}
		keys := sortedKeys(o.Config)
		for _, k := range sortedKeys(n.Config) {
			if _, had := o.Config[k]; !had {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		for _, k := range keys {
			if from, to := o.Config[k], n.Config[k]; from != to {
				add("~ topic %s: %s %s -> %s", n.Name, k, orNone(from), orNone(to))
			}
		}
		if len(o.Partitions) != len(n.Partitions) {
			add("~ topic %s: partitions %d -> %d", n.Name, len(o.Partitions), len(n.Partitions))
		}
		for p := 0; p < min(len(o.Partitions), len(n.Partitions)); p++ {
			was, now := &o.Partitions[p], &n.Partitions[p]
			change := func(what string, from, to []Replica) {
				if !slices.Equal(from, to) {
					add("~ partition %s/%d: %s %s -> %s", n.Name, p, what, orNone(replicasText(a, from)), orNone(replicasText(b, to)))
				}
			}
			change("replicas", was.Replicas, now.Replicas)
			change("target", was.Target, now.Target)
			change("abandoned", was.Abandoned, now.Abandoned)
			change("retired", was.Retired, now.Retired)
			switch {
			case was.Shard != now.Shard && now.Salvaging():
				add("! partition %s/%d recovered by force: it goes on with the log of %s", n.Name, p, replicasText(b, now.Replicas))
			case was.Shard != now.Shard:
				add("! partition %s/%d recovered by force: it begins anew, empty, at offset %d", n.Name, p, now.Origin.Offset)
			case was.Salvaging() && !now.Salvaging():
				add("~ partition %s/%d has been recovered", n.Name, p)
			}
		}
	}
	for i := range a.Topics {
		if t := old[a.Topics[i].ID]; t != nil {
			add("- topic %s (id %d) purged", t.Name, t.ID)
		}
	}
}

func replicasText(c *Config, replicas []Replica) string {
	names := make([]string, len(replicas))
	for i, r := range replicas {
		name := fmt.Sprint(r.Broker)
		if b := c.Broker(r.Broker); b != nil {
			name = b.Name
		}
		names[i] = fmt.Sprintf("%s(%d)", name, r.ID)
	}
	return strings.Join(names, ",")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
