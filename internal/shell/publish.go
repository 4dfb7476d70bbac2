package shell

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"queued/internal/client"
	"queued/internal/flags"
	"queued/internal/rawjson"
)

const publishUsage = `queued publish publishes to a topic, or directly to a queue. For each copy of a
message it prints a line with the id of the message and the id of its queue.

usage: queued publish [flags] TOPIC [FILE]
       queued publish [flags] -to-queue QUEUE [FILE]

FILE is one JSON object, the data of one message. Without FILE, or with "-", it is
read from the standard input. With -lines each line is the data of a message, and
empty lines are skipped. Lines are published as they arrive, in batches of up to
1000 messages and 16 MiB. A batch is published completely or not at all. An error
names the first line that was not published.

If no queue gets a copy, because none subscribes to the topic or no filters match, the
message is not stored. A line on the standard error says so.

If the server is unavailable or does not respond, the request is repeated for
-retry. Each request has an Idempotency-Key, so no message is stored twice, if
the deduplication window of the queue is longer than -retry. With -deduplication-id
this also holds for a later call: a queue that got a message with the same id within
its window stores no other one, and the line shows the id of the first.

If $TRACEPARENT is a traceparent (W3C Trace Context), it is stored with the
messages, so that consumers can continue the trace.

examples:

  echo '{"order": 1}' | queued publish orders
  queued publish -attr country=es -delay 10m orders order.json
  queued publish -deduplication-id order-17 -scheduled-at 2026-12-24T18:00:00 orders order.json
  queued publish -lines -to-queue mails < mails.jsonl

`

// publisher publishes messages that differ only in their data.
type publisher struct {
	client  *client.Client
	path    string // of the messages of the topic or queue
	members []byte // JSON members of each message besides data, each after a comma
	retry   time.Duration
	out     *bufio.Writer
	stderr  io.Writer
	id      string // of the topic or queue
	topic   string // empty for a queue
	warned  bool   // that no queue got a copy
}

// Publish publishes a file or the standard input.
func Publish(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	c := &client.Client{}
	var toQueue, lines bool
	var attributes [][]byte // as members of a JSON object
	var group, deduplicationID string
	var delay, retention flags.OptionalDuration
	var scheduledAt flags.Time
	var retry time.Duration
	f := flags.New("queued publish", publishUsage, stdout)
	f.Arguments(1, 2, "TOPIC [FILE]")
	c.Flags(f)
	f.BoolVar(&toQueue, "to-queue", false, "publish directly to the queue QUEUE, without a topic")
	f.BoolVar(&lines, "lines", false, "publish each line as a message")
	f.DurationVar(&retry, "retry", 30*time.Second, "`time` to repeat a request while the server is unavailable")
	f.WithoutVariable = []string{"attr", "group", "delay", "scheduled-at", "retention", "deduplication-id"} // in a command of queued receive, $QUEUED_GROUP is the group of its message
	f.Func("attr", "attribute of the messages, as `name=value`; may be repeated", func(text string) error {
		name, value, ok := strings.Cut(text, "=")
		if !ok || !utf8.ValidString(text) {
			return errors.New("must be name=value in UTF-8")
		}
		attributes = append(attributes, fmt.Appendf(nil, "%s:%s", rawjson.Quote(name), rawjson.Quote(value)))
		return nil
	})
	f.StringVar(&group, "group", "", "`group` of the messages; no group if empty")
	f.Var(&delay, "delay", "delivery delay, a `duration` in whole seconds; the default is the queue's")
	f.Var(&scheduledAt, "scheduled-at", "due `time` in UTC, such as 2026-12-24T18:00:00, in place of a delay")
	f.Var(&retention, "retention", "`duration` in whole seconds that a message is kept, if shorter than the queue's")
	f.StringVar(&deduplicationID, "deduplication-id", "", "`id` with which a queue stores the message once; none if empty")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	id, file := f.Arg(0), f.Arg(1)
	if !client.ValidID(id) {
		return flags.Errorf("%q is not a valid topic or queue id: %s", id, client.IDForm)
	}
	f.Check(utf8.ValidString(group), "group", "must be UTF-8")
	f.Check(delay.D >= 0 && delay.D%time.Second == 0, "delay", "must be whole seconds")
	f.Check(!delay.Given || scheduledAt.IsZero(), "scheduled-at", "excludes -delay")
	f.Check(retention.D >= 0 && retention.D%time.Second == 0, "retention", "must be whole seconds")
	f.Check(deduplicationID == "" || !lines, "deduplication-id", "excludes -lines: the lines would be duplicates of each other")
	f.Check(utf8.ValidString(deduplicationID), "deduplication-id", "must be UTF-8")
	f.Check(retry >= 0, "retry", "must not be negative")
	if err := f.Err(); err != nil {
		return err
	}
	if err := c.Prepare(stderr); err != nil {
		return err
	}
	// The server ignores an invalid traceparent. Here it only has to be valid in a header.
	unprintable := func(c rune) bool { return c <= ' ' || c > '~' }
	if traceparent := getenv("TRACEPARENT"); !strings.ContainsFunc(traceparent, unprintable) {
		c.Traceparent = traceparent
	}
	defer ignoreBrokenPipes()()
	p := &publisher{client: c, path: "/topics/" + id + "/messages", retry: retry, out: bufio.NewWriter(stdout), stderr: stderr, id: id, topic: id}
	if toQueue {
		p.topic = ""
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
	if !scheduledAt.IsZero() {
		p.members = fmt.Appendf(p.members, `,"scheduled_at":%q`, scheduledAt.Format(client.TimestampLayout))
	}
	if retention.Given {
		p.members = fmt.Appendf(p.members, `,"retention_seconds":%d`, retention.D/time.Second)
	}
	if deduplicationID != "" {
		p.members = fmt.Appendf(p.members, `,"deduplication_id":%s`, rawjson.Quote(deduplicationID))
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
	const maxInput = 64 << 20 // the largest -max-body
	var data []byte
	var err error
	read := make(chan struct{})
	go func() { // it outlives this function if ctx ends: a read of a terminal cannot be aborted
		defer close(read)
		data, err = io.ReadAll(io.LimitReader(in, maxInput+1))
	}()
	select {
	case <-read:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	if len(data) > maxInput {
		return fmt.Errorf("input exceeds %d bytes; use -lines to publish one message per line", maxInput)
	}
	data = rawjson.TrimBOM(data)
	if !isObject(data) {
		return errors.New("input is not a single JSON object; use -lines to publish one object per line")
	}
	return p.post(ctx, "", p.appendMessage(nil, data))
}

// explain adds to the error of a publish to a topic that does not exist that a queue has its
// name, and the reverse.
func (p *publisher) explain(ctx context.Context, err error) error {
	status, ok := errors.AsType[*client.StatusError](err)
	if !ok || status.Status != http.StatusNotFound {
		return err
	}
	other, remedy := "/queues/"+p.id, "a queue has this name: publish with -to-queue"
	if p.topic == "" {
		other, remedy = "/topics/"+p.id, "a topic has this name: publish without -to-queue"
	}
	exists := func(io.Reader) error { return nil }
	if p.client.Call(ctx, http.MethodGet, other, nil, exists) != nil {
		return err
	}
	return fmt.Errorf("%w; %s", err, remedy)
}

// isObject reports whether a text is a single JSON object.
func isObject(text []byte) bool {
	text = bytes.TrimSpace(text)
	return len(text) > 0 && text[0] == '{' && utf8.Valid(text) && json.Valid(text)
}

func (p *publisher) appendMessage(body, data []byte) []byte {
	return fmt.Appendf(body, `{"data":%s%s}`, data, p.members)
}

// responseTimeout limits the wait for the response to a pending publish when the command
// is interrupted. The response says what was stored.
const responseTimeout = 5 * time.Second

// Time between two attempts of a request. It doubles from one to the next.
const (
	firstRetry = 100 * time.Millisecond
	maxRetry   = 2 * time.Second
)

// post publishes and prints the ids of the copies. It repeats the request while the server
// is unavailable, with the same Idempotency-Key: an earlier attempt may have been stored.
func (p *publisher) post(ctx context.Context, batch string, body []byte) error {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(responseTimeout, cancel) })()
	c := *p.client
	c.Key = rand.Text()
	began := time.Now()
	for pause := firstRetry; ; pause = min(2*pause, maxRetry) {
		var copies bytes.Buffer
		err := c.Call(lasting, http.MethodPost, p.path+batch, body, client.Items(func(item json.RawMessage) error {
			var m received
			if err := json.Unmarshal(item, &m); err != nil {
				return err
			}
			_, err := fmt.Fprintln(&copies, m.ID, m.QueueID)
			return err
		}))
		if err == nil {
			p.warnIfNotStored(copies.Len())
			_, err = p.out.Write(copies.Bytes())
			return cmp.Or(err, p.out.Flush())
		}
		if !client.Unavailable(err) || ctx.Err() != nil || time.Since(began)+pause > p.retry {
			return p.explain(lasting, err)
		}
		if pause == firstRetry {
			fmt.Fprintf(p.stderr, "queued: %v; retrying\n", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// warnIfNotStored warns once if a publish to a topic has no copies.
func (p *publisher) warnIfNotStored(copies int) {
	if copies > 0 || p.topic == "" || p.warned {
		return
	}
	p.warned = true
	fmt.Fprintf(p.stderr, "queued: topic %q at %s: no queue subscribes to it with filters that match, so the message was not stored; create one with queued create queue -topic %s\n",
		p.topic, p.client.Server(), p.topic)
}

// lineBatch is a batch of publishLines.
type lineBatch struct {
	body  []byte // without batchSuffix
	lines []int  // line numbers of the messages, from 1
}

const (
	batchPrefix = `{"messages":[`
	batchSuffix = "]}"
)

// publishLines publishes each line as a message. Lines that arrive during a request
// are the next batch, so a line waits at most for one request. At most two batches
// and a line are in memory.
func (p *publisher) publishLines(ctx context.Context, in io.Reader) error {
	g := &lineBuffer{publisher: p}
	g.changed.L = &g.mu
	interrupted := context.AfterFunc(ctx, g.close)
	defer interrupted()
	defer g.close()
	go g.read(in) // it outlives this function if ctx ends: a read of a terminal cannot be aborted
	for next := 1; ; {
		b, err := g.take()
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("interrupted; lines from %d on were not published", next)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if err := p.post(ctx, "/batch", append(b.body, batchSuffix...)); err != nil {
			return b.wrap(err)
		}
		next = b.lines[len(b.lines)-1] + 1
	}
}

// lineBuffer collects the lines of the next batch.
type lineBuffer struct {
	publisher *publisher

	mu      sync.Mutex
	changed sync.Cond // one of the fields below
	batch   lineBatch
	err     error // after the last line; io.EOF at the end of the input
	closed  bool  // no further batch is taken
}

func (g *lineBuffer) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.changed.Broadcast()
}

// read adds the lines of the input until its end, an error, or close.
func (g *lineBuffer) read(in io.Reader) {
	r := bufio.NewReaderSize(in, 64<<10)
	for number := 1; g.add(r, number); number++ {
	}
}

// add reads one line and adds it, and waits while the batch is full. It reports
// whether to continue.
func (g *lineBuffer) add(r *bufio.Reader, number int) bool {
	line, err := readLine(r, client.MaxBatchBody)
	message := g.publisher.appendMessage(nil, line)
	switch {
	case err == nil && len(line) == 0:
		return true
	case err == nil && !isObject(line):
		err = errors.New("not a JSON object")
	case err == nil && len(batchPrefix)+len(message)+len(batchSuffix) > client.MaxBatchBody:
		err = errLineTooLong
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	b := &g.batch
	for err == nil && !g.closed && (len(b.lines) == client.MaxBatch || len(b.body)+1+len(message)+len(batchSuffix) > client.MaxBatchBody) {
		g.changed.Wait()
	}
	switch {
	case err == io.EOF:
		g.err = err
	case err != nil:
		g.err = fmt.Errorf("line %d: %w; lines from %d on were not published", number, err, number)
	case b.lines == nil:
		b.body = append([]byte(batchPrefix), message...)
		b.lines = append(b.lines, number)
	default:
		b.body = append(append(b.body, ','), message...)
		b.lines = append(b.lines, number)
	}
	g.changed.Broadcast()
	return g.err == nil && !g.closed
}

// take waits for the next batch and returns it, or the error after the last one.
func (g *lineBuffer) take() (lineBatch, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.batch.lines == nil && g.err == nil && !g.closed {
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

// wrap adds to an error which lines were not published.
func (b *lineBatch) wrap(err error) error {
	first, last := b.lines[0], b.lines[len(b.lines)-1]
	status := client.Status(err)
	var network *net.OpError
	unsent := errors.As(err, &network) && network.Op == "dial"
	if status >= 500 || status == 0 && !unsent {
		return fmt.Errorf("lines %d to %d: %w; these lines may have been published, later lines were not", first, last, err)
	}
	var refused *client.StatusError
	if errors.As(err, &refused) {
		for _, m := range refused.Mistakes { // loc is body, messages, the index of a message, …
			if len(m.Loc) > 2 {
				if i, ok := m.Loc[2].(float64); ok && 0 <= i && int(i) < len(b.lines) {
					return fmt.Errorf("line %d: %w; lines from %d on were not published", b.lines[int(i)], err, first)
				}
			}
		}
	}
	return fmt.Errorf("lines %d to %d: %w; lines from %d on were not published", first, last, err, first)
}

var errLineTooLong = fmt.Errorf("longer than the maximum batch, %d bytes", client.MaxBatchBody)

// readLine returns the next line, of at most max bytes, without white space around it
// and without a byte order mark, which concatenated files have in the middle. It
// returns io.EOF after the last line.
func readLine(r *bufio.Reader, max int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > max:
			return nil, errLineTooLong
		case err == io.EOF && len(line) == 0:
			return nil, io.EOF
		case err == nil || err == io.EOF:
			return rawjson.TrimBOM(bytes.TrimSpace(line)), nil
		case err != bufio.ErrBufferFull:
			return nil, err
		}
	}
}
