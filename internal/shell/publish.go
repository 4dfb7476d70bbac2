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
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"queued/internal/client"
	"queued/internal/flags"
	"queued/internal/rawjson"
)

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
	client  *client.Client
	path    string // of the topic or queue
	members []byte // JSON of what all messages have besides data, each member after a comma
	out     *bufio.Writer
}

func Publish(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	c := &client.Client{}
	var toQueue, lines bool
	var attributes [][]byte // as members of a JSON object
	var group string
	var delay flags.OptionalDuration
	f := flags.New("queued publish", publishUsage, stdout)
	f.Arguments(1, 2, "TOPIC [FILE]")
	c.Flags(f)
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
		{client.ValidID(id), fmt.Sprintf("%q is no id of a topic or queue", id)},
		{utf8.ValidString(group), "-group: must be UTF-8"},
		{delay.D >= 0 && delay.D%time.Second == 0, "-delay: must be whole seconds"},
	} {
		if !check.ok {
			return flags.Errorf("%s", check.what)
		}
	}
	if err := c.Prepare(stderr); err != nil {
		return err
	}
	unprintable := func(c rune) bool { return c <= ' ' || c > '~' }
	if traceparent := getenv("TRACEPARENT"); !strings.ContainsFunc(traceparent, unprintable) { // the server checks the rest
		c.Traceparent = traceparent
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
const responseTimeout = 5 * time.Second

// post publishes, and prints the copies.
func (p *publisher) post(ctx context.Context, batch string, body []byte) error {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(responseTimeout, cancel) })()
	err := p.client.Call(lasting, http.MethodPost, p.path+batch, body, client.Items(func(item json.RawMessage) error {
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
	batchPrefix = `{"messages":[`
	batchSuffix   = "]}"
)

// publishLines publishes a message a line. What comes while a batch is under way
// is the next batch, so it waits for nothing, and holds two batches and a line.
func (p *publisher) publishLines(ctx context.Context, in io.Reader) error {
	g := &lineBuffer{publisher: p}
	g.changed.L = &g.mu
	interrupted := context.AfterFunc(ctx, g.close)
	defer interrupted()
	defer g.close()
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
		if err := p.post(ctx, "/batch", append(b.body, batchSuffix...)); err != nil {
			return b.wrap(err)
		}
		next = b.lines[len(b.lines)-1] + 1
	}
}

// gathering is the batch that comes next.
type lineBuffer struct {
	publisher *publisher

	mu      sync.Mutex
	changed sync.Cond // something below
	batch   lineBatch
	err     error // why there are no more lines; io.EOF at the end
	closed   bool  // nobody takes batches any more
}

func (g *lineBuffer) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.changed.Broadcast()
}

// read gathers lines until there are no more.
func (g *lineBuffer) read(in io.Reader) {
	r := bufio.NewReaderSize(in, 64<<10)
	for number := 1; g.add(r, number); number++ {
	}
}

// add gathers one line, and reports whether to go on.
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
		g.err = fmt.Errorf("line %d: %w; nothing from this line on was published", number, err)
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

// take waits for the next batch, and returns it, or why there is none.
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

// explain adds to an error which lines it is about.
func (b *lineBatch) wrap(err error) error {
	first, last := b.lines[0], b.lines[len(b.lines)-1]
	status := client.Status(err)
	var network *net.OpError
	unsent := errors.As(err, &network) && network.Op == "dial"
	if status >= 500 || status == 0 && !unsent {
		return fmt.Errorf("lines %d to %d: %w; whether they were stored is not known, and nothing after them was published", first, last, err)
	}
	var refused *client.StatusError
	if errors.As(err, &refused) {
		for _, m := range refused.Mistakes { // loc is body, messages, the index of a message, …
			if len(m.Loc) > 2 {
				if i, ok := m.Loc[2].(float64); ok && 0 <= i && int(i) < len(b.lines) {
					return fmt.Errorf("line %d: %w; nothing from line %d on was published", b.lines[int(i)], err, first)
				}
			}
		}
	}
	return fmt.Errorf("lines %d to %d: %w; nothing from line %d on was published", first, last, err, first)
}

var errLineTooLong = fmt.Errorf("longer than a batch, of %d bytes, may be", client.MaxBatchBody)

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
