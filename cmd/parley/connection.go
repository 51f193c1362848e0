package main

import (
	"os"
	"strings"
)

const defaultServer = "nats://127.0.0.1:4222"

// connection is how to reach a cluster; empty fields are not given.
type connection struct {
	Server   string `json:"server,omitempty"`
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
	Token    string `json:"token,omitempty"`
	NKey     string `json:"nkey,omitempty"`
	TLSCA    string `json:"tls_ca,omitempty"`
	TLSCert  string `json:"tls_cert,omitempty"`
	TLSKey   string `json:"tls_key,omitempty"`
}

// over fills what c leaves open from weaker settings. A credential is one
// thing: a user of one source never meets the token of another.
func (c connection) over(weaker connection) connection {
	fill := func(field *string, from string) {
		if *field == "" {
			*field = from
		}
	}
	fill(&c.Server, weaker.Server)
	if c.User == "" && c.Password == "" && c.Token == "" && c.NKey == "" {
		c.User, c.Password, c.Token, c.NKey = weaker.User, weaker.Password, weaker.Token, weaker.NKey
	} else if c.User == weaker.User && c.Token == "" && c.NKey == "" {
		fill(&c.Password, weaker.Password)
	}
	fill(&c.TLSCA, weaker.TLSCA)
	if c.TLSCert == "" && c.TLSKey == "" {
		c.TLSCert, c.TLSKey = weaker.TLSCert, weaker.TLSKey
	}
	return c
}

func (c connection) check() error {
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return usagef("--tls-cert and --tls-key go together: give both or neither")
	}
	given := 0
	for _, credential := range []string{c.User, c.Token, c.NKey} {
		if credential != "" {
			given++
		}
	}
	if given > 1 {
		return usagef("--user, --token and --nkey exclude each other: give one credential")
	}
	if c.Password != "" && c.User == "" {
		return usagef("--password needs --user")
	}
	for _, f := range []struct{ flag, path string }{
		{"--nkey", c.NKey}, {"--tls-ca", c.TLSCA}, {"--tls-cert", c.TLSCert}, {"--tls-key", c.TLSKey},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return usagef("%s: %v", f.flag, err)
		}
	}
	for _, url := range c.servers() {
		scheme, rest, ok := strings.Cut(url, "://")
		if !ok {
			rest = scheme
		} else if scheme != "nats" && scheme != "tls" {
			return usagef("--server %q: want nats://HOST:PORT or tls://HOST:PORT, several separated by commas", url)
		}
		if rest == "" || strings.ContainsAny(rest, " \t") {
			return usagef("--server %q: want nats://HOST:PORT, several separated by commas", url)
		}
	}
	return nil
}

func (c connection) servers() []string {
	var urls []string
	for _, u := range strings.Split(c.Server, ",") {
		urls = append(urls, strings.TrimSpace(u))
	}
	return urls
}

// connection puts together flags, environment and saved contexts.
func (a *app) connection() (connection, error) {
	variable := func(name string) string { v, _ := a.lookup(name); return v }
	environment := connection{
		Server: variable("PARLEY_SERVER"), User: variable("PARLEY_USER"),
		Password: variable("PARLEY_PASSWORD"), Token: variable("PARLEY_TOKEN"),
	}
	saved, err := a.readContexts()
	if err != nil {
		return connection{}, err
	}
	c := a.settings
	name := a.context
	if name == "" {
		name = variable("PARLEY_CONTEXT")
	}
	if name != "" {
		named, ok := saved.Contexts[name]
		if !ok {
			return c, usagef("context %q is not saved: see parley context list", name)
		}
		c = c.over(named).over(environment)
	} else {
		c = c.over(environment).over(saved.Contexts[saved.Current])
	}
	c = c.over(connection{Server: defaultServer})
	return c, c.check()
}
