package epoch

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/parleymq/parley/replication/epoch/config"
)

// Listed is a broker of an initial list: its name and its peer address.
type Listed struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// ParseInitial reads an initial list: name=host:port, separated by commas. An error leaves it to the caller to name the list.
func ParseInitial(s string) ([]Listed, error) {
	var list []Listed
	for part := range strings.SplitSeq(s, ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not name=host:port", part)
		}
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" || port == "0" {
			return nil, fmt.Errorf("broker %s has the address %q, host:port is wanted", name, address)
		}
		for _, l := range list {
			if l.Name == name || l.Address == address {
				return nil, fmt.Errorf("%s=%s and %s=%s have the same name or address", l.Name, l.Address, name, address)
			}
		}
		list = append(list, Listed{name, address})
	}
	if len(list) > config.MaxInitial {
		return nil, fmt.Errorf("%d brokers: at most %d form a cluster, the others join it", len(list), config.MaxInitial)
	}
	return list, nil
}

// placeholderWeight stands in epoch 0, until brokers tell their own.
const placeholderWeight = 100

// Initial is epoch 0 of brokers that form a cluster together: the same for each of
// them, in whatever order the list is given. Its ids follow the names.
func Initial(list []Listed) *config.Config {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Listed) int { return strings.Compare(a.Name, b.Name) })
	c := &config.Config{NextBroker: 1, NextTopic: 1, NextShard: 1, NextReplica: 1, Change: "an initial list of brokers"}
	for _, l := range list {
		id := c.TakeBroker()
		c.Council = append(c.Council, id)
		c.Brokers = append(c.Brokers, config.Broker{ID: id, Name: l.Name, Weight: placeholderWeight, Addresses: config.Addresses{Peer: l.Address}})
	}
	return c
}

// Lone is epoch 0 of a broker that begins a cluster alone.
func Lone(name string) *config.Config {
	c := Initial([]Listed{{Name: name}})
	c.Change = "a new cluster of one broker"
	return c
}

func listOf(c *config.Config) []Listed {
	list := make([]Listed, 0, len(c.Brokers))
	for i := range c.Brokers {
		list = append(list, Listed{c.Brokers[i].Name, c.Brokers[i].Addresses.Peer})
	}
	return list
}

// differ says for people how two lists differ, "" when they don't.
func differ(theirs, ours []Listed) string {
	var out []string
	find := func(list []Listed, name string) (string, bool) {
		for _, l := range list {
			if l.Name == name {
				return l.Address, true
			}
		}
		return "", false
	}
	for _, l := range theirs {
		if address, ok := find(ours, l.Name); !ok {
			out = append(out, fmt.Sprintf("only there: %s=%s", l.Name, l.Address))
		} else if address != l.Address {
			out = append(out, fmt.Sprintf("%s is %s there and %s here", l.Name, l.Address, address))
		}
	}
	for _, l := range ours {
		if _, ok := find(theirs, l.Name); !ok {
			out = append(out, fmt.Sprintf("only here: %s=%s", l.Name, l.Address))
		}
	}
	return strings.Join(out, ", ")
}
