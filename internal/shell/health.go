package shell

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"queued/internal/flags"
)

const healthUsage = `Queued health asks a server whether it is alive (GET /livez), for the health check of a container:
a server is alive without its database, and to restart it would not bring that back. With
-ready it asks whether the server is ready for requests (GET /readyz).

`

// healthTimeout is how long the answer may take.
const healthTimeout = 5 * time.Second

// Health asks the server that the same settings would start.
func Health(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	var listen, url, cert string
	var ready bool
	f := flags.New("queued health", healthUsage, stdout)
	f.BoolVar(&ready, "ready", false, "ask whether the server is ready for requests, with a database that can be written")
	f.StringVar(&listen, "listen", "127.0.0.1:8000", "`address` of the server, as given to it")
	f.StringVar(&url, "url", "", "`URL` of the server, in place of -listen")
	f.StringVar(&cert, "tls-cert", "", "PEM `file` of its certificate, as given to it")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	if url == "" {
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			return flags.UsageError{Err: fmt.Errorf("-listen: %w", err)}
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		url = "http://" + net.JoinHostPort(host, port)
		if cert != "" {
			url = "https://" + net.JoinHostPort(host, port)
		}
	}
	client := http.DefaultClient
	if cert != "" {
		config, err := trusting(cert)
		if err != nil {
			return fmt.Errorf("-tls-cert: %w", err)
		}
		client = &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	}
	path := "/livez"
	if ready {
		path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+path, nil)
	if err != nil {
		return fmt.Errorf("-url: %w", err)
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
	fmt.Fprintln(stdout, string(body))
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, answer.Status)
	}
	return nil
}

// trusting returns settings for a client that trusts the server with the
// certificate in a file, and no other, whatever name it has: the client knows
// the server by its address.
func trusting(certFile string) (*tls.Config, error) {
	text, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no certificate in PEM")
	}
	return &tls.Config{
		InsecureSkipVerify: true,
		VerifyPeerCertificate: func(certificates [][]byte, _ [][]*x509.Certificate) error {
			if len(certificates) == 0 || !bytes.Equal(certificates[0], block.Bytes) {
				return errors.New("the server has another certificate")
			}
			return nil
		},
	}, nil
}
