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
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
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

// changeTimeout is the maximum time for a change, such as a purge of many messages.
const changeTimeout = time.Hour

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
	f.Group("flags for the connection to the server", "url", "token", "tls-cert")
}

// Server returns the URL of the server, for people: without a password.
func (c *Client) Server() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return c.URL
	}
	return u.Redacted()
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
// closes its body. Errors name the server.
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
	response, err := c.HTTP.Do(r)
	if err != nil {
		return nil, c.noResponse(err)
	}
	return response, nil
}

// noResponse returns the error of a request without a response, with the server and, where
// it is known, the remedy.
func (c *Client) noResponse(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	var network *net.OpError
	var certificate *tls.CertificateVerificationError
	remedy := ""
	switch {
	case errors.As(err, &network) && network.Op == "dial":
		remedy = "; check that the server is running, and -url or $" + flags.Variable("url")
	case errors.Is(err, http.ErrSchemeMismatch):
		remedy = "; use http:// in -url"
	case errors.As(err, &certificate):
		remedy = "; if the certificate is self-signed, set -tls-cert"
	}
	return fmt.Errorf("no response from %s: %w%s", c.Server(), err, remedy)
}

// Call sends a request, and passes the body of a 2xx response to read. If read is nil, the
// response must be a 204. Other statuses are a StatusError. The end of ctx ends the wait of
// a receive, and aborts other requests within endTimeout. A response that has begun is read
// to its end, because it may contain leased messages.
func (c *Client) Call(ctx context.Context, method, path string, body []byte, read func(io.Reader) error) error {
	_, err := c.call(ctx, requestTimeout, method, path, body, read)
	return err
}

// Change is a Call whose response must be a 204. It returns the header of the response.
func (c *Client) Change(ctx context.Context, method, path string, body []byte) (http.Header, error) {
	return c.call(ctx, changeTimeout, method, path, body, nil)
}

func (c *Client) call(ctx context.Context, timeout time.Duration, method, path string, body []byte, read func(io.Reader) error) (http.Header, error) {
	exchange, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	response, err := c.doUntil(ctx, exchange, cancel, method, path, body)
	if err != nil {
		return nil, cmp.Or(ctx.Err(), err)
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode >= 300:
		err = c.readStatusError(response)
	case read != nil:
		err = read(response.Body)
	case response.StatusCode != http.StatusNoContent:
		err = ErrNotQueued
	}
	switch {
	case err != nil && ctx.Err() != nil:
		err = ctx.Err() // the response may be one to the shut down connection
	case errors.Is(err, ErrNotQueued):
		err = fmt.Errorf("server %s: %w", c.Server(), err)
	}
	return response.Header, err
}

// endTimeout is the maximum time for the response to a request that was ended.
const endTimeout = 2 * time.Second

// doUntil is Do with the context exchange. When ctx ends, it shuts down its side of the
// connection: then the server ends the wait of a receive, and the response still has the
// messages that it has leased meanwhile. If that is not possible, or if no response
// arrives, it cancels the exchange.
func (c *Client) doUntil(ctx, exchange context.Context, cancel func(), method, path string, body []byte) (*http.Response, error) {
	var conn atomic.Pointer[net.Conn] // of the request; nil if it has none yet
	exchange = httptrace.WithClientTrace(exchange, &httptrace.ClientTrace{
		GotConn: func(v httptrace.GotConnInfo) { conn.Store(&v.Conn) },
	})
	responded := make(chan struct{})
	defer close(responded)
	defer context.AfterFunc(ctx, func() {
		if v := conn.Load(); v != nil && shutDown(*v) {
			select {
			case <-responded:
				return
			case <-time.After(endTimeout):
			}
		}
		select {
		case <-responded:
		default:
			cancel()
		}
	})()
	return c.Do(exchange, method, path, body)
}

// shutDown shuts down this side of a connection, unless it has other requests.
func shutDown(conn net.Conn) bool {
	if secure, ok := conn.(*tls.Conn); ok && secure.ConnectionState().NegotiatedProtocol == "h2" {
		return false
	}
	v, ok := conn.(interface{ CloseWrite() error })
	return ok && v.CloseWrite() == nil
}

// StatusError is a response with a status other than 2xx.
type StatusError struct {
	Status   int
	Server   string    // URL
	Object   string    // that the request is about, such as queue "q"; empty if unknown
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
	if remedy := e.remedy(); remedy != "" {
		text += "; " + remedy
	}
	text = fmt.Sprintf("server %s returned %d: %s", e.Server, e.Status, text)
	if e.Object != "" {
		text = e.Object + ": " + text
	}
	return text
}

// remedy returns what to do about the error; empty if the detail is enough, or has its own
// remedy after a semicolon.
func (e *StatusError) remedy() string {
	switch {
	case strings.Contains(e.Detail, "; "):
		return ""
	case e.Status == http.StatusUnauthorized:
		return "set -token or $" + flags.Variable("token")
	case e.Status == http.StatusForbidden:
		return "check the permissions of the token"
	case e.Status == http.StatusServiceUnavailable:
		return "try again later"
	case e.Status == http.StatusNotFound && strings.HasPrefix(e.Detail, "Queue"):
		return "list the queues with queued queues"
	case e.Status == http.StatusNotFound && strings.HasPrefix(e.Detail, "Topic"):
		return "list the topics with queued topics"
	case e.Status == http.StatusNotFound && strings.HasPrefix(e.Detail, "Message"):
		return "it may have been acked, deleted or expired"
	case e.Status == http.StatusNotFound:
		return "check -url"
	case e.Status == http.StatusRequestEntityTooLarge:
		return "the server's -max-body is the limit"
	case e.Status == http.StatusBadRequest && strings.Contains(e.Detail, "HTTP request to an HTTPS server"):
		return "use https:// in -url"
	}
	return ""
}

// objectPattern matches the paths of requests about one topic, queue or message.
var objectPattern = regexp.MustCompile(`^/(topic|queue|message)s/([^/?]+)(.*)`)

// objectOf returns the topic, queue or message that a path names; empty if none.
func objectOf(path string) string {
	m := objectPattern.FindStringSubmatch(path)
	if m == nil || m[1] == "message" && (m[2] == "ack" || m[2] == "nack" || m[2] == "redrive") {
		return ""
	}
	return fmt.Sprintf("%s %q", m[1], m[2])
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
func (c *Client) readStatusError(response *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	path := strings.TrimPrefix(response.Request.URL.String(), c.URL)
	e := &StatusError{Status: response.StatusCode, Server: c.Server(), Object: objectOf(path)}
	if target := response.Header.Get("Location"); target != "" {
		e.Detail = "redirect to " + target + "; check -url"
		return e
	}
	var body struct{ Detail json.RawMessage }
	if json.Unmarshal(text, &body) != nil || json.Unmarshal(body.Detail, &e.Detail) != nil && json.Unmarshal(body.Detail, &e.Mistakes) != nil {
		e.Detail = strings.TrimSpace(string(text[:min(len(text), 200)])) // perhaps from a proxy
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

// IDForm says in errors which ids are valid.
const IDForm = "it must have 1 to 128 letters a to z or A to Z, digits, hyphens, dots or underscores"

// ValidID reports whether a topic or queue can have the id.
func ValidID(id string) bool { return id != "." && id != ".." && idPattern.MatchString(id) }
