// Package client sends requests to a queued server. The client programs share it.
package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"queued/internal/flags"
)

// Limits of a batch in the API.
const (
	MaxBatch     = 1000     // messages
	MaxBatchBody = 16 << 20 // bytes
)

// TimestampLayout is the layout of times in the API, which are in UTC.
const TimestampLayout = "2006-01-02T15:04:05.000000"

// requestTimeout is the maximum time for a whole response. It is longer than the longest
// long poll.
const requestTimeout = time.Minute

// ErrNotQueued is the error of a response that is not from a queued server.
var ErrNotQueued = errors.New("the response is not from a queued server; check -url")

// Client sends requests to one server. Prepare must be called before the first request.
type Client struct {
	URL         string
	Token       string       // bearer token; not sent if empty
	Cert        string       // PEM file of the only certificate to trust; the system's authorities if empty
	Traceparent string       // not sent if empty
	Key         string       // Idempotency-Key; not sent if empty
	HTTP        *http.Client // set by Prepare

	flags *flags.Set // nil if no flags set the fields
}

// Flags defines the flags of the server's address and of access to it.
func (c *Client) Flags(f *flags.Set) {
	c.flags = f
	f.StringVar(&c.URL, "url", "http://127.0.0.1:8000", "`URL` of the server")
	f.StringVar(&c.Token, "token", "", "bearer `token` to send; no token if empty")
	f.StringVar(&c.Cert, "tls-cert", "", "PEM `file` of the server's certificate, if it is self-signed")
}

// Prepare checks the URL and reads the certificate. Its errors are usage errors. It
// warns on stderr of a token in the arguments.
func (c *Client) Prepare(stderr io.Writer) error {
	if c.Token != "" && c.flags != nil && c.flags.Given("token") {
		fmt.Fprintf(stderr, "queued: -token: other users can read the token in the process list; set $%s instead\n", flags.Variable("token"))
	}
	c.URL = strings.TrimSuffix(c.URL, "/")
	if u, err := url.Parse(c.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return flags.Errorf("-url: must be a URL such as http://127.0.0.1:8000 or https://queue.example")
	}
	// All connections stay open for later requests.
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: math.MaxInt, DisableCompression: true}
	if c.Cert != "" {
		config, err := trustOnly(c.Cert)
		if err != nil {
			return flags.Errorf("-tls-cert: %w", err)
		}
		transport.TLSClientConfig = config
	}
	// Following a redirect would turn a POST into a GET, which may be a receive.
	c.HTTP = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return nil
}

// trustOnly returns the settings of a client that trusts only the certificate in the file,
// for any host name: clients know the server by its address.
func trustOnly(certFile string) (*tls.Config, error) {
	text, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the file has no certificate in PEM")
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

// Do sends a request and returns the response, whatever its status. The caller
// closes its body.
func (c *Client) Do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("-url: %w", err)
	}
	if c.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.Token)
	}
	if c.Traceparent != "" {
		r.Header.Set("Traceparent", c.Traceparent)
	}
	if c.Key != "" {
		r.Header.Set("Idempotency-Key", c.Key)
	}
	return c.HTTP.Do(r)
}

// Call sends a request, and passes the body of a 2xx response to read. If read is nil, the
// response must be a 204. Other statuses are a StatusError. The end of ctx aborts the
// request, but a response that has begun is read to its end, because it may contain leased
// messages.
func (c *Client) Call(ctx context.Context, method, path string, body []byte, read func(io.Reader) error) error {
	exchange, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	responding := context.AfterFunc(ctx, cancel)
	response, err := c.Do(exchange, method, path, body)
	responding()
	if err != nil {
		return cmp.Or(ctx.Err(), err)
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		return readStatusError(response)
	}
	if read == nil {
		if response.StatusCode != http.StatusNoContent {
			return ErrNotQueued
		}
		return nil
	}
	return read(response.Body)
}

// StatusError is a response with a status other than 2xx.
type StatusError struct {
	Status   int
	Detail   string    // empty if there are mistakes
	Mistakes []Mistake // in the request
}

// Mistake is an invalid field of a request.
type Mistake struct {
	Loc []any // its place: "body", then names of fields and indexes
	Msg string
}

func (e *StatusError) Error() string {
	var parts []string
	for _, m := range e.Mistakes {
		parts = append(parts, strings.Trim(fmt.Sprint(m.Loc), "[]")+": "+m.Msg)
	}
	text := cmp.Or(e.Detail, strings.Join(parts, "; "), http.StatusText(e.Status))
	switch e.Status {
	case http.StatusUnauthorized:
		text += "; set -token or $QUEUED_TOKEN"
	case http.StatusForbidden:
		text += "; check the permissions of the token"
	}
	return fmt.Sprintf("server returned %d: %s", e.Status, text)
}

// Status returns the status of the StatusError in err, or 0 if there is none.
func Status(err error) int {
	var e *StatusError
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// Unavailable reports whether the same request may succeed later, because the
// server could not be reached, failed or was overloaded.
func Unavailable(err error) bool {
	status := Status(err)
	return status == 0 && !errors.Is(err, ErrNotQueued) || status >= 500 || status == http.StatusTooManyRequests
}

// readStatusError reads {"detail": …}, a text or a list of mistakes.
func readStatusError(response *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	e := &StatusError{Status: response.StatusCode}
	if target := response.Header.Get("Location"); target != "" {
		e.Detail = "redirect to " + target + "; check -url"
		return e
	}
	var body struct{ Detail json.RawMessage }
	if json.Unmarshal(text, &body) != nil || json.Unmarshal(body.Detail, &e.Detail) != nil && json.Unmarshal(body.Detail, &e.Mistakes) != nil {
		e.Detail = string(text[:min(len(text), 200)]) // perhaps from a proxy
	}
	return e
}

// Items returns a function that reads {"data": […]}, and calls each with every item as
// it arrives.
func Items(each func(item json.RawMessage) error) func(io.Reader) error {
	return ItemsAnd(each, func(string, json.RawMessage) {})
}

// ItemsAnd is Items, and calls member with the members after data.
func ItemsAnd(each func(item json.RawMessage) error, member func(name string, value json.RawMessage)) func(io.Reader) error {
	return func(body io.Reader) error {
		d := json.NewDecoder(body)
		for _, want := range []json.Token{json.Delim('{'), "data", json.Delim('[')} {
			got, err := d.Token()
			if errors.As(err, new(*json.SyntaxError)) || err == nil && got != want {
				return ErrNotQueued
			}
			if err != nil {
				return err
			}
		}
		for d.More() {
			var item json.RawMessage
			if err := d.Decode(&item); err != nil {
				return err
			}
			if err := each(item); err != nil {
				return err
			}
		}
		if _, err := d.Token(); err != nil {
			return err
		}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return err
			}
			var value json.RawMessage
			if err := d.Decode(&value); err != nil {
				return err
			}
			member(name.(string), value)
		}
		_, err := io.Copy(io.Discard, body)
		return err
	}
}

// idPattern is the pattern of ids in the API. It also matches "." and "..", which a URL
// cannot contain.
var idPattern = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,128}$`)

// ValidID reports whether a topic or queue can have the id.
func ValidID(id string) bool { return id != "." && id != ".." && idPattern.MatchString(id) }
