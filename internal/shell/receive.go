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
	"sync"
	"syscall"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
)

const receiveUsage = `Queued receive receives the messages of a queue until it is told to stop.

usage: queued receive [flags] QUEUE

Without -exec it prints each message as JSON, one a line, and acks it when it is
written; into a pipe on Linux, when it is read. A message shows its group, request_id
and traceparent if it has them. If the reader of the pipe goes away, the messages that
it has not read are for others, and queued exits with 141, as if SIGPIPE had ended it.

With -exec it runs a command for each message, with "sh -c" ("cmd /c" on Windows),
and acks the message if the command exits with 0. If it does not, the message comes
again after 1 s, next time after 2 s, then 4 s and so on up to 15 minutes, or goes to
the queue's dead queue. While the command runs nobody else gets the message, however
long that takes. If sh is missing, or exits with 126 or 127 because what it should run
cannot be executed or is not found, the message is given back, which does not count as
a delivery attempt, and queued receives nothing more, waits for the commands that run,
and exits with 1. The command has the message's data on its standard input, as JSON
on one line, and in its environment

  QUEUED_MESSAGE_ID          id of the message
  QUEUED_QUEUE_ID            id of its queue
  QUEUED_DELIVERY_ATTEMPTS   1 if it is delivered for the first time
  QUEUED_GROUP               id of its group, empty if it has none
  QUEUED_ATTRIBUTES          its attributes as JSON, null if it has none
  QUEUED_ATTRIBUTE_<NAME>    the attribute called name, in capitals; what is not a
                             letter from A to Z or a digit becomes _. If several
                             come to the same name the last one counts
  QUEUED_REQUEST_ID          X-Request-Id of the publish, empty if it had none
  TRACEPARENT                traceparent of the publish, for the command to go on with
                             the trace; not there if it had none
  QUEUED_URL, QUEUED_TOKEN,  the server, the token and the certificate, for what it
  QUEUED_TLS_CERT            does with queued

and not QUEUED_EXEC and the variables of the other flags of this command.
A value that has a zero byte, or more than 65536 bytes with its name, is left out, and
so are attributes beyond 524288 bytes in all: the system takes no more.

SIGTERM and SIGINT (Ctrl-C) end it: it receives nothing more, waits for the commands
that run, and exits with 0. A second one stops the commands. If the server goes away
it tries again until it is back.

`

// worker receives messages, and prints them or runs a command for each.
type worker struct {
	client    *client.Client
	queue     string
	command   string // empty: print
	parallel  int
	count     int // messages to receive, 0 for any number
	wait      flags.OptionalDuration
	variables []string // of the flags, which are not for commands
	stdout    io.Writer
	stderr    io.Writer

	forced    context.Context // ended by the second signal
	requests context.Context // and this a little later
	fail      func(error)     // ends the work with an error
	slots    chan struct{}   // one is in it for each command that runs
	running  sync.WaitGroup
	children children
	pipe     *pipe         // that stdout is; nil if it is none
	printBatch   int           // messages to receive to print them
	maxWait  time.Duration // of a long poll

	mu   sync.Mutex // of stderr and away
	unavailable bool       // which has been said
}

// received is a message as the worker has it.
type received struct {
	ID               string          `json:"id"`
	QueueID          string          `json:"queue_id"`
	Data             json.RawMessage `json:"data"`
	Attributes       json.RawMessage `json:"attributes"`
	DeliveryAttempts int             `json:"delivery_attempts"`
	ScheduledAt      string          `json:"scheduled_at"` // end of the lease, and its guard
	UpdatedAt        string          `json:"updated_at"`   // its beginning
	Group            string          `json:"group"`
	RequestID        string          `json:"request_id"`
	Traceparent      string          `json:"traceparent"`
	text             []byte          // all of it, on one line
}

const (
	drainTimeout = 15 * time.Second       // for acks and nacks after the end of the work
	closeTimeout = 5 * time.Second        // for what then is still under way
	firstPause   = 100 * time.Millisecond // between two tries; it doubles
	maxPause = 10 * time.Second
	defaultMaxWait  = 20 * time.Second      // the default of -max-wait
	maxPrintBatch  = 100                   // messages received at once to print them
	slowPrint    = time.Second           // to print what was received at once
	maxPipePause  = 50 * time.Millisecond // between two looks at whether a pipe was read
	firstRetryDelay   = time.Second           // of a command that failed; it doubles
	maxRetryDelay = 15 * time.Minute
	maxVariable  = 64 << 10  // bytes of a variable in the environment, with its name: Linux takes 128 KiB
	maxEnviron   = 512 << 10 // bytes of all variables of attributes: Linux takes 2 MiB with the usual stack
)

func Receive(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	c := &client.Client{}
	w := &worker{client: c, stdout: stdout, stderr: stderr, printBatch: 1, maxWait: defaultMaxWait}
	f := flags.New("queued receive", receiveUsage, stdout)
	f.Arguments(1, 1, "QUEUE")
	f.StringVar(&w.command, "exec", "", "`command` to run for each message")
	f.IntVar(&w.parallel, "parallel", 1, "`number` of commands that run at once")
	f.IntVar(&w.count, "count", 0, "`number` of messages to receive before it ends, 0 for any number")
	f.Var(&w.wait, "wait", "`time` without a message after which it ends; with 0s it takes what is there now;\nwithout -wait it waits for ever")
	f.VisitAll(func(v *flag.Flag) { w.variables = append(w.variables, flags.Variable(v.Name)) })
	c.Flags(f)
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	w.queue = f.Arg(0)
	for _, check := range []struct {
		ok   bool
		what string
	}{
		{client.ValidID(w.queue), fmt.Sprintf("%q is no id of a queue", w.queue)},
		{1 <= w.parallel && w.parallel <= client.MaxBatch, fmt.Sprintf("-parallel: must be 1 to %d", client.MaxBatch)},
		{w.count >= 0, "-count: must not be negative"},
		{w.wait.D >= 0, "-wait: must not be negative"},
	} {
		if !check.ok {
			return flags.Errorf("%s", check.what)
		}
	}
	if err := c.Prepare(stderr); err != nil {
		return err
	}
	if err := shellCommand(ctx, w.command).Err; err != nil && w.command != "" {
		return fmt.Errorf("-exec: %w", err)
	}
	return w.run(ctx)
}

// run works until ctx ends, or what the flags say is done, and then waits for the
// commands that run.
func (w *worker) run(ctx context.Context) error {
	hurry, kill := context.WithCancel(context.Background())
	settling, abandon := context.WithCancel(context.Background())
	w.forced, w.requests, w.slots = hurry, settling, make(chan struct{}, w.parallel)
	ended := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		defer abandon()
		defer kill()
		select {
		case <-ctx.Done():
		case <-ended:
			return
		}
		again, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		select {
		case <-again.Done():
			kill()
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
		go func() { // which is left behind: nothing ends its wait
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

// receiveAll receives and begins to work on messages until there shall be no more.
func (w *worker) receiveAll(ctx context.Context) error {
	var idleSince time.Time // when the first of the polls began that brought nothing
	for got := 0; ctx.Err() == nil && (w.count == 0 || got < w.count); {
		most := w.printBatch
		if w.command != "" {
			most = w.parallel
		}
		if w.count > 0 {
			most = min(most, w.count-got)
		}
		if w.command != "" {
			most = w.acquireSlots(ctx, most)
		}
		if idleSince.IsZero() {
			idleSince = time.Now()
		}
		messages, err := w.poll(ctx, most, idleSince)
		if w.command != "" {
			w.releaseSlots(most - len(messages))
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

// takeSlots waits until a command may be run, and returns how many may, at most
// so many; 0 if ctx has ended.
func (w *worker) acquireSlots(ctx context.Context, most int) int {
	select {
	case w.slots <- struct{}{}:
	case <-ctx.Done():
		return 0
	}
	for taken := 1; ; taken++ {
		if taken == most {
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

// poll receives up to so many messages, or none if ctx ends or for that long there
// are none.
func (w *worker) poll(ctx context.Context, most int, idleSince time.Time) (messages []received, err error) {
	until := ctx // tries after which there is no other
	if w.wait.Given {
		var cancel context.CancelFunc
		until, cancel = context.WithDeadline(ctx, idleSince.Add(w.wait.D))
		defer cancel()
	}
	err = w.retry(until, func() error {
		if ctx.Err() != nil {
			return nil
		}
		began, wait := time.Now(), w.maxWait
		if w.wait.Given {
			wait = min(wait, max(0, w.wait.D-time.Since(idleSince)))
		}
		messages = nil
		target := fmt.Sprintf("/queues/%s/messages?limit=%d&wait_seconds=%.3f&fields=group,request_id,traceparent", w.queue, most, wait.Seconds())
		err := w.client.Call(ctx, http.MethodGet, target, nil, client.Items(func(item json.RawMessage) error {
			m, err := parseReceived(item)
			messages = append(messages, m)
			return err
		}))
		switch {
		case len(messages) > 0, ctx.Err() != nil:
			return nil // what was lost on the way comes again
		case client.Status(err) == http.StatusUnprocessableEntity && w.maxWait > 0: // a server with a lower -max-wait
			if w.maxWait /= 2; w.maxWait < time.Second {
				w.maxWait = 0
			}
			return nil
		case err == nil && len(messages) == 0 && (w.maxWait == 0 || time.Since(began) < wait/2): // it does not wait
			sleep(until, time.Second)
		}
		return err
	})
	if ctx.Err() != nil && client.Unavailable(err) {
		err = nil // told to stop while the server was away
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

// work prints the messages, or runs a command for each, for which there are slots.
// What it has not begun when ctx ends others can receive.
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
