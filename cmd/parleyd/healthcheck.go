package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// healthcheckLimit is below the three seconds that the image gives the check.
const healthcheckLimit = 2 * time.Second

// newHealthcheck asks the broker that runs with the same settings whether it is
// ready. An image without a shell has nothing else to ask with.
func newHealthcheck(given map[string]string, lookup func(string) (string, bool)) *cobra.Command {
	return &cobra.Command{
		Use:     "healthcheck",
		Short:   "Exit 0 if the broker with these settings is ready",
		Example: "  parleyd healthcheck --http 127.0.0.1:8222",
		Args:    cobra.NoArgs,
		Hidden:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load(sources{flags: given, lookup: lookup})
			if err != nil {
				return err
			}
			if s.HTTP == httpOff {
				return usagef("http is off: there is nothing to ask")
			}
			return healthcheck(s.HTTP, cmd.OutOrStdout())
		},
	}
}

func healthcheck(listen string, out io.Writer) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("check health: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url := "http://" + net.JoinHostPort(host, port) + "/readyz"
	client := http.Client{Timeout: healthcheckLimit}
	resp, err := client.Get(url)
	if err != nil {
		return fmt.Errorf("check health: %w", err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("check health: %s answers %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	fmt.Fprintln(out, "ready")
	return nil
}
