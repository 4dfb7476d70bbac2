// Package shell is what uses a running server from a shell: it publishes, receives,
// shows queues, and asks whether the server is alive.
package shell

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"queued/internal/flags"
)

// client is how the commands for a shell use a running server.
type client struct {
	url   string
	token string
	cert  string
	http  *http.Client

	traceparent string // sent if it is not empty
}

// requestTimeout is how long an answer may take to its end, which is more than
// the longest wait of a long poll here.
const requestTimeout = time.Minute

// Bounds of a batch in the API.
const (
	maxBatch     = 1000     // messages
	maxBatchBody = 16 << 20 // bytes
)

// idPattern is that of the API. It also takes . and .., which no URL can name.
var idPattern = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,128}$`)

func validID(id string) bool { return id != "." && id != ".." && idPattern.MatchString(id) }

func (c *client) flags(f *flags.Set) {
	f.StringVar(&c.url, "url", "http://127.0.0.1:8000", "`URL` of the server")
	f.StringVar(&c.token, "token", "", "`token` to send")
	f.StringVar(&c.cert, "tls-cert", "", "PEM `file` of the server's certificate, if no authority that is known here has signed it")
}

// prepare checks what the flags say.
func (c *client) prepare() error {
	c.url = strings.TrimSuffix(c.url, "/")
	if u, err := url.Parse(c.url); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return flags.UsageError{Err: errors.New("-url: must be like http://127.0.0.1:8000 or https://queue.example")}
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 1000, DisableCompression: true}
	if c.cert != "" {
		config, err := trusting(c.cert)
		if err != nil {
			return flags.UsageError{Err: fmt.Errorf("-tls-cert: %w", err)}
		}
		transport.TLSClientConfig = config
	}
	// A redirect would turn a POST into a GET, which may be a receive.
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return nil
}

// refusal is an answer that is no success.
type refusal struct {
	status   int
	detail   string    // empty if there are mistakes
	mistakes []mistake // of the request
}

// mistake is one thing wrong with a request, at Loc.
type mistake struct {
	Loc []any
	Msg string
}

func (r *refusal) Error() string {
	text := r.detail
	var parts []string
	for _, m := range r.mistakes {
		parts = append(parts, strings.Trim(fmt.Sprint(m.Loc), "[]")+": "+m.Msg)
	}
	text = cmp.Or(text, strings.Join(parts, "; "), http.StatusText(r.status))
	switch r.status {
	case http.StatusUnauthorized:
		text += ": give a token with -token or $QUEUED_TOKEN"
	case http.StatusForbidden:
		text += ": see the rights of the token"
	}
	return fmt.Sprintf("the server says %d: %s", r.status, text)
}

// is reports whether err is an answer with this status.
func (r *refusal) is(status int) bool { return r != nil && r.status == status }

// refused returns the refusal in err, nil if there is none.
func refused(err error) (r *refusal) {
	errors.As(err, &r)
	return r
}

// isAway reports whether the same request may succeed later: the server, or the
// way to it, is away.
func isAway(err error) bool {
	r := refused(err)
	return r == nil && !errors.Is(err, errNotQueued) || r != nil && (r.status >= 500 || r.status == http.StatusTooManyRequests)
}

var errNotQueued = errors.New("the answer is not one of queued, see -url")

// call makes a request, and has a success read by read, if that is not nil.
// Another answer is a refusal. When ctx ends a request is given up, but an answer
// that has begun is read to its end: it may hold messages that are leased.
func (c *client) call(ctx context.Context, method, path string, body []byte, read func(io.Reader) error) error {
	exchange, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	begun := context.AfterFunc(ctx, cancel)
	r, err := http.NewRequestWithContext(exchange, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("-url: %w", err)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.traceparent != "" {
		r.Header.Set("Traceparent", c.traceparent)
	}
	answer, err := c.http.Do(r)
	begun()
	if err != nil {
		return cmp.Or(ctx.Err(), err)
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 300 {
		return readRefusal(answer)
	}
	if read == nil {
		if answer.StatusCode != http.StatusNoContent {
			return errNotQueued
		}
		return nil
	}
	return read(answer.Body)
}

// readRefusal reads {"detail": …}, a text or a list of mistakes.
func readRefusal(answer *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return err
	}
	v := &refusal{status: answer.StatusCode}
	var body struct{ Detail json.RawMessage }
	if to := answer.Header.Get("Location"); to != "" {
		v.detail = "it leads to " + to + ", see -url"
		return v
	}
	if json.Unmarshal(text, &body) != nil || json.Unmarshal(body.Detail, &v.detail) != nil && json.Unmarshal(body.Detail, &v.mistakes) != nil {
		v.detail = string(text[:min(len(text), 200)]) // of a proxy, perhaps
	}
	return v
}

// eachOf returns a reader of {"data": […]} that calls each with one item after
// the other, as they come.
func eachOf(each func(item json.RawMessage) error) func(io.Reader) error {
	return func(body io.Reader) error {
		d := json.NewDecoder(body)
		for _, want := range []json.Token{json.Delim('{'), "data", json.Delim('[')} {
			got, err := d.Token()
			if errors.As(err, new(*json.SyntaxError)) || err == nil && got != want {
				return errNotQueued
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
		_, err := io.Copy(io.Discard, body)
		return err
	}
}
