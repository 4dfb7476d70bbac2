package shell

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
)

const healthUsage = `queued health checks whether a server is alive (GET /livez), for use as the health check of a
container. A server whose database is unavailable counts as alive, because a restart would
not help. With -ready it checks whether the server can serve requests (GET /readyz).

usage: queued health [flags]

examples:

  queued health
  queued health -ready -url https://queue.example

`

// healthTimeout is the maximum time for the response.
const healthTimeout = 5 * time.Second

// Health checks whether a server is alive or ready. -listen has the default of the
// server's flag.
func Health(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, _ io.Writer) error {
	c := &client.Client{}
	var listen string
	var ready bool
	f := flags.New("queued health", healthUsage, stdout)
	f.BoolVar(&ready, "ready", false, "check that the server is ready to serve requests and can write to its database")
	f.StringVar(&listen, "listen", "127.0.0.1:8000", "`address` the server listens on")
	f.StringVar(&c.URL, "url", "", "`URL` of the server; replaces -listen")
	f.StringVar(&c.Cert, "tls-cert", "", "PEM `file` of the server's certificate")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	if c.URL == "" {
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			return flags.Errorf("-listen: %w", err)
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		c.URL = "http://" + net.JoinHostPort(host, port)
		if c.Cert != "" {
			c.URL = "https://" + net.JoinHostPort(host, port)
		}
	}
	if err := c.Prepare(io.Discard); err != nil {
		return err
	}
	path := "/livez"
	if ready {
		path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	response, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
	fmt.Fprintln(stdout, string(body))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s returned %s", c.URL, response.Status)
	}
	return nil
}
