package shell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
)

const receiveUsage = `queued receive receives messages of a queue until it is stopped.

usage: queued receive [flags] QUEUE

Without -exec it prints each message as JSON, one per line, and acks it after it is
written. On Linux, a message that is written into a pipe is acked after it is read.
When the reader closes the pipe, unread messages stay in the queue, and queued exits
with status 141, like a program that SIGPIPE terminates. A message has the fields
group, request_id and traceparent if it was published with them.

With -exec it runs a command for each message, with "sh -c" ("cmd /c" on Windows).
Exit status 0 acks the message. Any other status nacks it with the exit status and
the end of the command's standard error as its error. The message is ready again
after the retry backoff of its queue or, if the queue has none, after 1 s, then 2 s,
4 s and so on up to 15 minutes. After the last delivery attempt the message
moves to the queue's dead queue. The lease is extended while the command runs. If sh
is missing, or exits with 126 or 127 because the command is not executable or not
found, the message is nacked without counting the attempt. queued then receives no
more messages, waits for the running commands, and exits with status 1.

A command reads the message's data from its standard input, as JSON on one line. Its
environment has

  QUEUED_MESSAGE_ID          id of the message
  QUEUED_QUEUE_ID            id of its queue
  QUEUED_DELIVERY_ATTEMPTS   number of deliveries, 1 for the first
  QUEUED_GROUP               group of the message, empty without a group
  QUEUED_ATTRIBUTES          attributes as JSON, null without attributes
  QUEUED_ATTRIBUTE_<NAME>    attribute with this name, in capitals; characters other
                             than A to Z and digits become _. If several attributes
                             have the same variable, the last one counts
  QUEUED_REQUEST_ID          X-Request-Id of the publish, empty without one
  TRACEPARENT                traceparent of the publish, not set without one
  QUEUED_URL, QUEUED_TOKEN,  URL, token and certificate file of the server, for other
  QUEUED_TLS_CERT            queued commands

but not the variables of the other flags of queued receive, such as QUEUED_EXEC.
A variable with a zero byte, or longer than 65536 bytes with its name, is omitted, and
so are attributes beyond 524288 bytes in all: these are limits of the system.

SIGTERM or SIGINT (Ctrl-C) stops it: it receives no more messages, waits for the
running commands, and exits with status 0. A second signal terminates the commands.
While the server is unavailable it retries. If the queue is paused, a line on the
standard error says so.

examples:

  queued receive mails
  queued receive -count 1 -wait 0s mails
  queued receive -exec ./send-mail -parallel 8 mails

`

// worker receives messages and prints them, or runs a command for each.
type worker struct {
	client    *client.Client
	queue     string
	command   string // messages are printed if empty
	parallel  int
	count     int // number of messages to receive; 0 is unlimited
	wait      flags.OptionalDuration
	variables []string // environment variables of the flags, hidden from commands
	stdout    io.Writer
	stderr    io.Writer

	forced     context.Context // ends at the second signal
	requests   context.Context // of acks, nacks and extensions; ends some time after forced
	fail       func(error)     // stops the worker with an error
	slots      chan struct{}   // has one element for each running command
	running    sync.WaitGroup
	children   children
	pipe       *pipe         // stdout, if it is a pipe; else nil
	printBatch int           // number of messages to receive at once to print
	maxWait    time.Duration // of a long poll
	settings   watchedSettings

	outcomesMu sync.Mutex
	outcomes   outcomes

	mu          sync.Mutex // of stderr and unavailable
	unavailable bool       // the server is unavailable, which was logged
}

// received is a received message.
type received struct {
	ID               string          `json:"id"`
	QueueID          string          `json:"queue_id"`
	Data             json.RawMessage `json:"data"`
	Attributes       json.RawMessage `json:"attributes"`
	DeliveryAttempts int             `json:"delivery_attempts"`
	ScheduledAt      string          `json:"scheduled_at"` // end of the lease, and the lease token
	UpdatedAt        string          `json:"updated_at"`   // start of the lease
	Group            string          `json:"group"`
	RequestID        string          `json:"request_id"`
	Traceparent      string          `json:"traceparent"`
	text             []byte          // JSON of the message, on one line
}

const (
	drainTimeout    = 15 * time.Second       // for acks and nacks after the worker was stopped
	closeTimeout    = 5 * time.Second        // for what remains after that
	firstPause      = 100 * time.Millisecond // before the first retry of a request; it doubles up to maxPause
	maxPause        = 10 * time.Second
	defaultMaxWait  = 20 * time.Second      // of the server
	maxPrintBatch   = 100                   // messages to receive at once to print
	slowPrint       = time.Second           // maximum time to print the messages of one receive
	maxPipePause    = 50 * time.Millisecond // between two checks whether a pipe was read
	firstRetryDelay = time.Second           // of a message whose command failed; it doubles up to maxRetryDelay
	maxRetryDelay   = 15 * time.Minute
	maxVariable     = 64 << 10  // bytes of an environment variable with its name; Linux allows 128 KiB
	maxEnviron      = 512 << 10 // bytes of all attributes; Linux allows 2 MiB with the default stack limit
)

// Receive receives messages and prints them, or runs a command for each.
func Receive(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) error {
	c := &client.Client{}
	w := &worker{client: c, stdout: stdout, stderr: stderr, printBatch: 1, maxWait: defaultMaxWait}
	f := flags.New("queued receive", receiveUsage, stdout)
	f.Arguments(1, 1, "QUEUE")
	f.StringVar(&w.command, "exec", "", "`command` to run for each message; messages are printed if empty")
	f.IntVar(&w.parallel, "parallel", 1, "maximum `number` of commands running at once")
	f.IntVar(&w.count, "count", 0, "exit after this `number` of messages; 0 is unlimited")
	f.Var(&w.wait, "wait", "exit after this `duration` without a message; the default is to wait forever")
	f.VisitAll(func(v *flag.Flag) { w.variables = append(w.variables, flags.Variable(v.Name)) })
	c.Flags(f)
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	w.queue = f.Arg(0)
	if !client.ValidID(w.queue) {
		return flags.Errorf("%q is not a valid queue id: %s", w.queue, client.IDForm)
	}
	f.Check(1 <= w.parallel && w.parallel <= client.MaxBatch, "parallel", fmt.Sprintf("must be 1 to %d", client.MaxBatch))
	f.Check(w.count >= 0, "count", "must not be negative")
	f.Check(w.wait.D >= 0, "wait", "must not be negative")
	if err := f.Err(); err != nil {
		return err
	}
	if err := c.Prepare(stderr); err != nil {
		return err
	}
	if err := shellCommand(ctx, w.command).Err; err != nil && w.command != "" {
		return fmt.Errorf("-exec: %w", err)
	}
	return w.run(ctx)
}

// run receives until ctx ends or the limits of the flags are reached, and then waits
// for the running commands. A second signal ends forced, and requests end
// 2*closeTimeout later.
func (w *worker) run(ctx context.Context) error {
	forced, force := context.WithCancel(context.Background())
	requests, abandon := context.WithCancel(context.Background())
	w.forced, w.requests, w.slots = forced, requests, make(chan struct{}, w.parallel)
	ended := make(chan struct{}) // closed when all commands have ended
	var watching sync.WaitGroup
	watching.Go(func() {
		defer abandon()
		defer force()
		select {
		case <-ctx.Done():
		case <-ended:
			return
		}
		again, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		select {
		case <-again.Done():
			force()
		case <-ended:
			return
		}
		select {
		case <-time.After(2 * closeTimeout):
		case <-ended:
		}
	})
	defer ignoreBrokenPipes()()
	defer w.children.inherit()()
	working, end := context.WithCancelCause(ctx)
	defer end(nil)
	w.fail = end
	if w.pipe = asPipe(w.stdout); w.pipe != nil {
		go func() { // it outlives this function: its wait cannot be aborted
			w.pipe.closed(-1)
			end(ErrOutputClosed)
		}()
	}
	err := w.receiveAll(working)
	w.running.Wait()
	close(ended)
	watching.Wait()
	if cause := context.Cause(working); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// receiveAll receives messages and starts to process them, until ctx ends or -count
// or -wait is reached.
func (w *worker) receiveAll(ctx context.Context) error {
	defer func() {
		for _, o := range w.takeOutcomes() {
			w.send(ctx, o)
		}
	}()
	var idleSince time.Time // start of the first of the last polls without a message
	for got := 0; ctx.Err() == nil && (w.count == 0 || got < w.count); {
		w.readSettings(ctx)
		limit := w.printBatch
		if w.command != "" {
			limit = w.parallel
		}
		if w.count > 0 {
			limit = min(limit, w.count-got)
		}
		if w.command != "" {
			limit = w.acquireSlots(ctx, limit)
		}
		if idleSince.IsZero() {
			idleSince = time.Now()
		}
		messages, err := w.poll(ctx, limit, idleSince)
		if w.command != "" {
			w.releaseSlots(limit - len(messages))
			w.openOutcomes()
		}
		if err == nil {
			err = w.work(ctx, messages)
		}
		if err != nil {
			return err
		}
		got += len(messages)
		switch {
		case len(messages) > 0:
			idleSince = time.Time{}
		case w.wait.Given && time.Since(idleSince) >= w.wait.D:
			return nil
		}
	}
	return nil
}

// acquireSlots waits until another command may run, and takes the free slots, at
// most max. It returns their number, 0 if ctx has ended.
func (w *worker) acquireSlots(ctx context.Context, max int) int {
	select {
	case w.slots <- struct{}{}:
	case <-ctx.Done():
		return 0
	}
	for taken := 1; ; taken++ {
		if taken == max {
			return taken
		}
		select {
		case w.slots <- struct{}{}:
		default:
			return taken
		}
	}
}

func (w *worker) releaseSlots(n int) {
	for range n {
		<-w.slots
	}
}

// poll receives up to limit messages, and sends the waiting outcomes with the request.
// It returns none if ctx ends, if -wait is reached, or after the longest long poll of
// the server.
func (w *worker) poll(ctx context.Context, limit int, idleSince time.Time) (messages []received, err error) {
	until := ctx // of retries
	if w.wait.Given {
		var cancel context.CancelFunc
		until, cancel = context.WithDeadline(ctx, idleSince.Add(w.wait.D))
		defer cancel()
	}
	unsent := w.takeOutcomes()
	err = w.retry(until, func() error {
		if ctx.Err() != nil {
			return nil
		}
		began, wait := time.Now(), w.maxWait
		if w.wait.Given {
			wait = min(wait, max(0, w.wait.D-time.Since(idleSince)))
		}
		request := receiveRequest{Limit: limit, WaitSeconds: wait.Seconds(), Fields: []string{"group", "request_id", "traceparent"}}
		request.add(unsent)
		body, err := json.Marshal(request)
		if err != nil {
			return err
		}
		messages = nil
		var conflicts []string
		err = w.client.Call(ctx, http.MethodPost, "/queues/"+w.queue+"/messages/receive", body, client.ItemsAnd(func(item json.RawMessage) error {
			m, err := parseReceived(item)
			messages = append(messages, m)
			return err
		}, func(name string, value json.RawMessage) {
			if name == "conflicts" {
				json.Unmarshal(value, &conflicts) // without them, the messages are delivered again
			}
		}))
		if err == nil || len(messages) > 0 { // the acks were committed before the response
			unsent = slices.DeleteFunc(unsent, func(o outcome) bool { return !slices.Contains(conflicts, o.m.ID) })
			for _, o := range unsent {
				w.send(ctx, o) // its lease token may have changed, by an extend without a response
			}
			unsent = nil
		}
		switch {
		case len(messages) > 0, ctx.Err() != nil:
			return nil // messages lost on the way are delivered again
		case client.Status(err) == http.StatusUnprocessableEntity && w.maxWait > 0: // the server has a shorter -max-wait
			if w.maxWait /= 2; w.maxWait < time.Second {
				w.maxWait = 0
			}
			return nil
		case err == nil && len(messages) == 0 && (w.maxWait == 0 || time.Since(began) < wait/2): // the server does not wait
			sleep(until, time.Second)
		}
		return err
	})
	for _, o := range unsent {
		w.send(ctx, o)
	}
	if ctx.Err() != nil && client.Unavailable(err) {
		err = nil // stopped while the server was unavailable
	}
	return messages, err
}

func parseReceived(text []byte) (m received, err error) {
	if err := json.Unmarshal(text, &m); err != nil {
		return m, err
	}
	for _, v := range []struct {
		to   *[]byte
		from []byte
	}{{&m.text, text}, {(*[]byte)(&m.Data), m.Data}, {(*[]byte)(&m.Attributes), m.Attributes}} {
		var b bytes.Buffer
		if err := json.Compact(&b, v.from); err != nil {
			return m, err
		}
		*v.to = b.Bytes()
	}
	return m, nil
}

// work prints the messages, or starts a command for each, which the caller has
// acquired slots for. When ctx ends it nacks the remaining messages without counting
// the attempt.
func (w *worker) work(ctx context.Context, messages []received) error {
	if w.command == "" {
		return w.print(ctx, messages)
	}
	for i := range messages {
		if ctx.Err() != nil {
			w.releaseSlots(len(messages) - i)
			return w.finishAll(ctx, "nack", messages[i:])
		}
		w.running.Go(func() {
			defer w.releaseSlots(1)
			w.execute(ctx, &messages[i])
		})
	}
	return nil
}
