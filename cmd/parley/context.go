package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"

	"github.com/spf13/cobra"
)

// contexts is the file of saved settings. It may hold passwords: only its owner
// reads it.
type contexts struct {
	Current  string                `json:"current,omitempty"`
	Contexts map[string]connection `json:"contexts"`
}

func (a *app) contextsPath() (string, error) {
	if a.configDir != "" {
		return filepath.Join(a.configDir, "contexts.json"), nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the directory for saved contexts: %w", err)
	}
	return filepath.Join(dir, "parley", "contexts.json"), nil
}

func (a *app) readContexts() (contexts, error) {
	none := contexts{Contexts: map[string]connection{}}
	path, err := a.contextsPath()
	if err != nil {
		// No home directory, as in a container: nothing can be saved there.
		return none, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, fmt.Errorf("read saved contexts: %w", err)
	}
	c := none
	if err := json.Unmarshal(data, &c); err != nil {
		return none, fmt.Errorf("read saved contexts: %s: %w", path, err)
	}
	if c.Contexts == nil {
		c.Contexts = map[string]connection{}
	}
	return c, nil
}

func (a *app) writeContexts(c contexts) error {
	path, err := a.contextsPath()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	// Written beside and renamed: a crash leaves the old file or the new one.
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	return nil
}

var contextName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

func (a *app) contextCommand() *cobra.Command {
	parent := &cobra.Command{
		Use:   "context",
		Short: "Saves connection settings under names",
		Example: `  parley context add prod --server tls://broker.example:4222 --user ops --password s3cret
  parley context use prod
  parley topic list`,
		RunE: needsSubcommand,
	}
	parent.AddCommand(
		&cobra.Command{
			Use: "add NAME", Short: "Saves the connection flags given beside it", Args: exactly(1, "NAME"),
			Example: "  parley context add prod --server tls://broker.example:4222 --token s3cret",
			RunE: func(_ *cobra.Command, args []string) error {
				if !contextName.MatchString(args[0]) {
					return usagef("context name %q: want up to 64 letters, digits, '.', '_' and '-'", args[0])
				}
				if a.settings == (connection{}) {
					return usagef("nothing to save: give --server, --user, --token or other connection flags")
				}
				if err := a.settings.over(connection{Server: defaultServer}).check(); err != nil {
					return err
				}
				c, err := a.readContexts()
				if err != nil {
					return err
				}
				settings := a.settings
				for _, path := range []*string{&settings.NKey, &settings.TLSCA, &settings.TLSCert, &settings.TLSKey} {
					if *path == "" {
						continue
					}
					// A saved context is used from any directory.
					if *path, err = filepath.Abs(*path); err != nil {
						return err
					}
				}
				c.Contexts[args[0]] = settings
				if c.Current == "" {
					c.Current = args[0]
				}
				if err := a.writeContexts(c); err != nil {
					return err
				}
				fmt.Fprintf(a.stderr, "context %s saved\n", args[0])
				return nil
			},
		},
		&cobra.Command{
			Use: "list", Short: "Lists saved contexts", Args: cobra.NoArgs, Example: "  parley context list -o json",
			RunE: func(*cobra.Command, []string) error { return a.listContexts() },
		},
		&cobra.Command{
			Use: "use NAME", Short: "Makes a context the one that counts when none is named", Args: exactly(1, "NAME"),
			Example: "  parley context use prod",
			RunE: func(_ *cobra.Command, args []string) error {
				c, err := a.readContexts()
				if err != nil {
					return err
				}
				if _, ok := c.Contexts[args[0]]; !ok {
					return usagef("context %q is not saved: see parley context list", args[0])
				}
				c.Current = args[0]
				if err := a.writeContexts(c); err != nil {
					return err
				}
				fmt.Fprintf(a.stderr, "context %s is used from now on\n", args[0])
				return nil
			},
		},
		&cobra.Command{
			Use: "remove NAME", Short: "Forgets a context", Args: exactly(1, "NAME"), Example: "  parley context remove prod",
			RunE: func(_ *cobra.Command, args []string) error {
				c, err := a.readContexts()
				if err != nil {
					return err
				}
				if _, ok := c.Contexts[args[0]]; !ok {
					return usagef("context %q is not saved: see parley context list", args[0])
				}
				delete(c.Contexts, args[0])
				if c.Current == args[0] {
					c.Current = ""
				}
				if err := a.writeContexts(c); err != nil {
					return err
				}
				fmt.Fprintf(a.stderr, "context %s removed\n", args[0])
				return nil
			},
		},
	)
	return parent
}

// contextLine is a saved context as it is shown: without its secrets.
type contextLine struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	Server  string `json:"server"`
	Auth    string `json:"auth"`
	TLS     bool   `json:"tls"`
}

func (a *app) listContexts() error {
	c, err := a.readContexts()
	if err != nil {
		return err
	}
	names := make([]string, 0, len(c.Contexts))
	for name := range c.Contexts {
		names = append(names, name)
	}
	sort.Strings(names)
	t := newTable("", "NAME", "SERVER", "AUTH")
	for _, name := range names {
		saved := c.Contexts[name]
		line := contextLine{Name: name, Current: name == c.Current, Server: saved.over(connection{Server: defaultServer}).Server, Auth: "none", TLS: saved.TLSCA != "" || saved.TLSCert != ""}
		switch {
		case saved.User != "":
			line.Auth = "user " + saved.User
		case saved.Token != "":
			line.Auth = "token"
		case saved.NKey != "":
			line.Auth = "nkey"
		}
		if a.json() {
			if err := a.printJSON(line); err != nil {
				return err
			}
			continue
		}
		mark := cell{text: " "}
		if line.Current {
			mark = styled("*", green)
		}
		t.row(mark, str(name), str(line.Server), str(line.Auth))
	}
	if a.json() {
		return nil
	}
	return a.printTable(t)
}
