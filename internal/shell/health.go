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

const healthUsage = `Queued health asks a server whether it is alive (GET /livez), for the health check of a container:
a server is alive without its database, and to restart it would not bring that back. With
-ready it asks whether the server is ready for requests (GET /readyz).

`

// healthTimeout is how long the response may take.
const healthTimeout = 5 * time.Second

// Health asks the server that the same settings would start.
func Health(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	c := &client.Client{}
	var listen string
	var ready bool
	f := flags.New("queued health", healthUsage, stdout)
	f.BoolVar(&ready, "ready", false, "ask whether the server is ready for requests, with a database that can be written")
	f.StringVar(&listen, "listen", "127.0.0.1:8000", "`address` of the server, as given to it")
	f.StringVar(&c.URL, "url", "", "`URL` of the server, in place of -listen")
	f.StringVar(&c.Cert, "tls-cert", "", "PEM `file` of its certificate, as given to it")
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
		return fmt.Errorf("%s answers %s", c.URL, response.Status)
	}
	return nil
}
