// Package shell is what uses a running server from a shell: it publishes, receives,
// shows queues, and asks whether the server is alive.
package shell

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"queued/internal/flags"
	"queued/internal/rawjson"
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

const publishUsage = `Queued publish publishes to a topic, or straight to a queue, and prints what was
stored: a line for each copy, with the id of the message and that of its queue.

usage: queued publish [flags] TOPIC [FILE]
       queued publish [flags] -to-queue QUEUE [FILE]

The file, or the standard input without one or with "-", is one JSON object: the
data of one message. With -lines each line is, and lines without anything are
skipped. Then messages are published as they come, in batches of up to 1000
messages and 16 MiB, each of them as a whole or not at all; where it stops, the
error says from which line on nothing was published.

A publish is not tried again, because a server that does not answer may have
stored it.

If $TRACEPARENT is a traceparent (W3C Trace Context), the messages keep it, and who
receives them can go on with the trace.

`

// publisher publishes what it reads.
type publisher struct {
	client  *client
	path    string // of the topic or queue
	members []byte // JSON of what all messages have besides data, each member after a comma
	out     *bufio.Writer
}

func Publish(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout io.Writer) error {
	c := &client{}
	var toQueue, lines bool
	var attributes [][]byte // as members of a JSON object
	var group string
	var delay flags.OptionalDuration
	f := flags.New("queued publish", publishUsage, stdout)
	f.Takes(1, 2, "the TOPIC to publish to, and a FILE if it is not the standard input")
	c.flags(f)
	f.BoolVar(&toQueue, "to-queue", false, "the first argument is a queue: publish straight to it, without a topic")
	f.BoolVar(&lines, "lines", false, "each line is the data of a message")
	f.WithoutVariable = []string{"attr", "group", "delay"} // a worker's command has $QUEUED_GROUP from its message
	f.Func("attr", "`name=value` of an attribute of the messages; may be given several times", func(text string) error {
		name, value, ok := strings.Cut(text, "=")
		if !ok || !utf8.ValidString(text) {
			return errors.New("it must be like name=value, in UTF-8")
		}
		attributes = append(attributes, fmt.Appendf(nil, "%s:%s", rawjson.Quote(name), rawjson.Quote(value)))
		return nil
	})
	f.StringVar(&group, "group", "", "`group` that the messages belong to")
	f.Var(&delay, "delay", "`time` that the messages are hidden, in whole seconds, like 90s or 10m; without it that of the queue")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	id, file := f.Arg(0), f.Arg(1)
	for _, check := range []struct {
		ok   bool
		what string
	}{
		{validID(id), fmt.Sprintf("%q is no id of a topic or queue", id)},
		{utf8.ValidString(group), "-group: must be UTF-8"},
		{delay.D >= 0 && delay.D%time.Second == 0, "-delay: must be whole seconds"},
	} {
		if !check.ok {
			return flags.UsageError{Err: errors.New(check.what)}
		}
	}
	if err := c.prepare(); err != nil {
		return err
	}
	unprintable := func(c rune) bool { return c <= ' ' || c > '~' }
	if traceparent := getenv("TRACEPARENT"); !strings.ContainsFunc(traceparent, unprintable) { // the server checks the rest
		c.traceparent = traceparent
	}
	defer ignoreBrokenPipes()()
	p := &publisher{client: c, path: "/topics/" + id + "/messages", out: bufio.NewWriter(stdout)}
	if toQueue {
		p.path = "/queues/" + id + "/messages"
	}
	if attributes != nil {
		p.members = fmt.Appendf(p.members, `,"attributes":{%s}`, bytes.Join(attributes, []byte(",")))
	}
	if group != "" {
		p.members = fmt.Appendf(p.members, `,"group":%s`, rawjson.Quote(group))
	}
	if delay.Given {
		p.members = fmt.Appendf(p.members, `,"delay_seconds":%d`, delay.D/time.Second)
	}
	if file != "" && file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return err
		}
		defer opened.Close()
		stdin = opened
	}
	if lines {
		return p.publishLines(ctx, stdin)
	}
	return p.publishOne(ctx, stdin)
}

// publishOne publishes one message.
func (p *publisher) publishOne(ctx context.Context, in io.Reader) error {
	const most = 64 << 20 // of -max-body
	var data []byte
	var err error
	read := make(chan struct{})
	go func() { // which is left behind if ctx ends: nothing ends a read of a terminal
		defer close(read)
		data, err = io.ReadAll(io.LimitReader(in, most+1))
	}()
	select {
	case <-read:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	if len(data) > most {
		return fmt.Errorf("the input has more than %d bytes; -lines takes many messages, one a line", most)
	}
	data = rawjson.WithoutMark(data)
	if !isObject(data) {
		return errors.New("the input is not one JSON object; -lines takes many, one a line")
	}
	return p.post(ctx, "", p.appendMessage(nil, data))
}

// isObject reports whether a text is one JSON object and nothing else.
func isObject(text []byte) bool {
	text = bytes.TrimSpace(text)
	return len(text) > 0 && text[0] == '{' && utf8.Valid(text) && json.Valid(text)
}

func (p *publisher) appendMessage(body, data []byte) []byte {
	return fmt.Appendf(body, `{"data":%s%s}`, data, p.members)
}

// answerTimeout is how long a publish that is under way may take when the
// command is interrupted, to know what was stored.
const answerTimeout = 5 * time.Second

// post publishes, and prints the copies.
func (p *publisher) post(ctx context.Context, batch string, body []byte) error {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(answerTimeout, cancel) })()
	err := p.client.call(lasting, http.MethodPost, p.path+batch, body, eachOf(func(item json.RawMessage) error {
		var m received
		if err := json.Unmarshal(item, &m); err != nil {
			return err
		}
		_, err := fmt.Fprintln(p.out, m.ID, m.QueueID)
		return err
	}))
	return cmp.Or(err, p.out.Flush())
}

// lineBatch is a request of publishLines.
type lineBatch struct {
	body  []byte // but for its end
	lines []int  // of the messages, from 1
}

const (
	batchStart = `{"messages":[`
	batchEnd   = "]}"
)

// publishLines publishes a message a line. What comes while a batch is under way
// is the next batch, so it waits for nothing, and holds two batches and a line.
func (p *publisher) publishLines(ctx context.Context, in io.Reader) error {
	g := &gathering{publisher: p}
	g.changed.L = &g.mu
	interrupted := context.AfterFunc(ctx, g.end)
	defer interrupted()
	defer g.end()
	go g.read(in) // which is left behind if ctx ends: nothing ends a read of a terminal
	for next := 1; ; {
		b, err := g.take()
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("interrupted; nothing from line %d on was published", next)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if err := p.post(ctx, "/batch", append(b.body, batchEnd...)); err != nil {
			return b.explain(err)
		}
		next = b.lines[len(b.lines)-1] + 1
	}
}

// gathering is the batch that comes next.
type gathering struct {
	publisher *publisher

	mu      sync.Mutex
	changed sync.Cond // something below
	batch   lineBatch
	err     error // why there are no more lines; io.EOF at the end
	ended   bool  // nobody takes batches any more
}

func (g *gathering) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	g.changed.Broadcast()
}

// read gathers lines until there are no more.
func (g *gathering) read(in io.Reader) {
	r := bufio.NewReaderSize(in, 64<<10)
	for number := 1; g.add(r, number); number++ {
	}
}

// add gathers one line, and reports whether to go on.
func (g *gathering) add(r *bufio.Reader, number int) bool {
	line, err := readLine(r, maxBatchBody)
	message := g.publisher.appendMessage(nil, line)
	switch {
	case err == nil && len(line) == 0:
		return true
	case err == nil && !isObject(line):
		err = errors.New("not a JSON object")
	case err == nil && len(batchStart)+len(message)+len(batchEnd) > maxBatchBody:
		err = errLineTooLong
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	b := &g.batch
	for err == nil && !g.ended && (len(b.lines) == maxBatch || len(b.body)+1+len(message)+len(batchEnd) > maxBatchBody) {
		g.changed.Wait()
	}
	switch {
	case err == io.EOF:
		g.err = err
	case err != nil:
		g.err = fmt.Errorf("line %d: %w; nothing from this line on was published", number, err)
	case b.lines == nil:
		b.body = append([]byte(batchStart), message...)
		b.lines = append(b.lines, number)
	default:
		b.body = append(append(b.body, ','), message...)
		b.lines = append(b.lines, number)
	}
	g.changed.Broadcast()
	return g.err == nil && !g.ended
}

// take waits for the next batch, and returns it, or why there is none.
func (g *gathering) take() (lineBatch, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.batch.lines == nil && g.err == nil && !g.ended {
		g.changed.Wait()
	}
	b := g.batch
	g.batch = lineBatch{}
	g.changed.Broadcast()
	if b.lines != nil {
		return b, nil
	}
	return b, g.err
}

// explain adds to an error which lines it is about.
func (b *lineBatch) explain(err error) error {
	first, last := b.lines[0], b.lines[len(b.lines)-1]
	r := refused(err)
	var network *net.OpError
	if r == nil && errors.As(err, &network) && network.Op == "dial" {
		r = &refusal{} // nobody was there to store it
	}
	if r == nil || r.status >= 500 {
		return fmt.Errorf("lines %d to %d: %w; whether they were stored is not known, and nothing after them was published", first, last, err)
	}
	for _, m := range r.mistakes { // loc is body, messages, the number of one, …
		if len(m.Loc) > 2 {
			if i, ok := m.Loc[2].(float64); ok && 0 <= i && int(i) < len(b.lines) {
				return fmt.Errorf("line %d: %w; nothing from line %d on was published", b.lines[int(i)], err, first)
			}
		}
	}
	return fmt.Errorf("lines %d to %d: %w; nothing from line %d on was published", first, last, err, first)
}

var errLineTooLong = fmt.Errorf("longer than a batch, of %d bytes, may be", maxBatchBody)

// readLine reads a line of at most so many bytes, without white space around it and
// without a byte order mark, as files that were put together have some.
// It returns io.EOF when there is none left.
func readLine(r *bufio.Reader, most int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > most:
			return nil, errLineTooLong
		case err == io.EOF && len(line) == 0:
			return nil, io.EOF
		case err == nil || err == io.EOF:
			return rawjson.WithoutMark(bytes.TrimSpace(line)), nil
		case err != bufio.ErrBufferFull:
			return nil, err
		}
	}
}

const queuesUsage = `Queued queues lists the queues of a server.

usage: queued queues [flags]

`

// listedQueue is what a table shows of a queue.
type listedQueue struct {
	ID                      string  `json:"id"`
	TopicID                 *string `json:"topic_id"`
	DeadQueueID             *string `json:"dead_queue_id"`
	AckDeadlineSeconds      int     `json:"ack_deadline_seconds"`
	MessageRetentionSeconds int     `json:"message_retention_seconds"`
	MessageMaxDeliveries    *int    `json:"message_max_deliveries"`
	DeliveryDelaySeconds    *int    `json:"delivery_delay_seconds"`
}

func Queues(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	c := &client{}
	var asJSON bool
	f := flags.New("queued queues", queuesUsage, stdout)
	c.flags(f)
	f.BoolVar(&asJSON, "json", false, "print all settings as JSON, a queue a line")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	if err := c.prepare(); err != nil {
		return err
	}
	out := bufio.NewWriter(stdout)
	table := newTable(out, "QUEUE", "TOPIC", "DEAD QUEUE", "ACK DEADLINE", "RETENTION", "MAX DELIVERIES", "DELAY")
	err := c.eachQueue(ctx, func(item json.RawMessage) error {
		if asJSON {
			_, err := fmt.Fprintf(out, "%s\n", item)
			return err
		}
		var q listedQueue
		if err := json.Unmarshal(item, &q); err != nil {
			return err
		}
		return table.row(q.ID, q.TopicID, q.DeadQueueID, seconds(&q.AckDeadlineSeconds), seconds(&q.MessageRetentionSeconds), q.MessageMaxDeliveries, seconds(q.DeliveryDelaySeconds))
	})
	if err == nil && !asJSON {
		err = table.Flush()
	}
	return cmp.Or(err, out.Flush())
}

// eachQueue calls each with all queues, page by page.
func (c *client) eachQueue(ctx context.Context, each func(item json.RawMessage) error) error {
	limit := "&limit=100"
	for offset := 0; ; {
		var page []json.RawMessage
		err := c.call(ctx, http.MethodGet, fmt.Sprintf("/queues?offset=%d%s", offset, limit), nil, eachOf(func(item json.RawMessage) error {
			page = append(page, item)
			return nil
		}))
		offset += len(page)
		switch {
		case refused(err).is(http.StatusUnprocessableEntity) && limit != "": // a server with a low -max-limit
			limit = ""
			continue
		case err != nil || len(page) == 0:
			return err
		}
		for _, item := range page { // in its own time: the request has ended
			if err := each(item); err != nil {
				return err
			}
		}
	}
}

const statsUsage = `Queued stats shows how many messages a queue has in each state, how many its dead
queue has, and how old the oldest message is that could be received.

usage: queued stats [flags] QUEUE

`

func Stats(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	c := &client{}
	var asJSON bool
	f := flags.New("queued stats", statsUsage, stdout)
	f.Takes(1, 1, "the QUEUE to look at")
	c.flags(f)
	f.BoolVar(&asJSON, "json", false, "print them as JSON, on one line")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	if !validID(f.Arg(0)) {
		return flags.UsageError{Err: fmt.Errorf("%q is no id of a queue", f.Arg(0))}
	}
	if err := c.prepare(); err != nil {
		return err
	}
	var v struct {
		Messages *struct {
			Ready, Delayed, Exhausted int
			InFlight                  int `json:"in_flight"`
		}
		DeadQueueMessages *int `json:"dead_queue_messages"`
		Oldest            int  `json:"oldest_unacked_message_age_seconds"`
	}
	var text []byte
	err := c.call(ctx, http.MethodGet, "/queues/"+f.Arg(0)+"/stats?detail=true", nil, func(body io.Reader) (err error) {
		if text, err = io.ReadAll(body); err != nil {
			return err
		}
		if json.Unmarshal(text, &v) != nil || v.Messages == nil {
			return errNotQueued
		}
		return nil
	})
	if err != nil {
		return err
	}
	if asJSON {
		_, err := fmt.Fprintf(stdout, "%s\n", text)
		return err
	}
	table := newTable(stdout, "READY", "DELAYED", "IN FLIGHT", "EXHAUSTED", "DEAD QUEUE", "OLDEST")
	m := v.Messages
	return cmp.Or(table.row(m.Ready, m.Delayed, m.InFlight, m.Exhausted, v.DeadQueueMessages, seconds(&v.Oldest)), table.Flush())
}

// table aligns its columns when it is flushed.
type table struct{ *tabwriter.Writer }

func newTable(out io.Writer, columns ...string) table {
	t := table{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	fmt.Fprintln(t, strings.Join(columns, "\t")) // an error shows in Flush, too
	return t
}

// row adds a row. A nil pointer is shown as a dash.
func (t table) row(values ...any) error {
	cells := make([]string, len(values))
	for i, value := range values {
		switch v := value.(type) {
		case *string:
			cells[i] = "-"
			if v != nil {
				cells[i] = *v
			}
		case *int:
			cells[i] = "-"
			if v != nil {
				cells[i] = strconv.Itoa(*v)
			}
		default:
			cells[i] = fmt.Sprint(v)
		}
	}
	_, err := fmt.Fprintln(t, strings.Join(cells, "\t"))
	return err
}

// seconds shows a duration like 1h30m.
func seconds(n *int) *string {
	if n == nil {
		return nil
	}
	text := (time.Duration(*n) * time.Second).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return &text
}
