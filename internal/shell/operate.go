package shell

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"

	"queued/internal/client"
	"queued/internal/flags"
)

// operation is a command for an operator: its server, and what it gets from the process.
type operation struct {
	*flags.Set
	client client.Client
	confirmation
	stdin          io.Reader
	stdout, stderr io.Writer
}

// newOperation returns an operation without flags of its own.
func newOperation(name, usage string, stdin io.Reader, stdout, stderr io.Writer) *operation {
	return &operation{Set: flags.New("queued "+name, usage, stdout), stdin: stdin, stdout: stdout, stderr: stderr}
}

// start adds the flags of the connection, and parses the arguments. The other flags have
// no environment variables, because those of other commands and of the commands of queued
// receive have the same names.
func (o *operation) start(args []string, getenv func(string) string) error {
	o.VisitAll(func(v *flag.Flag) { o.WithoutVariable = append(o.WithoutVariable, v.Name) })
	o.client.Flags(o.Set)
	if err := o.Parse(args, getenv); err != nil {
		return err
	}
	return o.client.Prepare(o.stderr)
}

// startOn is start for a command whose only argument is a topic or queue, and returns its
// id.
func (o *operation) startOn(kind string, args []string, getenv func(string) string) (id string, err error) {
	o.Arguments(1, 1, strings.ToUpper(kind))
	if err := o.start(args, getenv); err != nil {
		return "", err
	}
	return o.id(kind)
}

// startOnMessages is start for a command whose arguments are messages, and returns their
// ids.
func (o *operation) startOnMessages(args []string, getenv func(string) string) (ids []string, err error) {
	o.Arguments(1, math.MaxInt, "ID...")
	if err := o.start(args, getenv); err != nil {
		return nil, err
	}
	return o.messageIDs()
}

// id returns the first argument, which must be the id of a topic or queue.
func (o *operation) id(kind string) (string, error) {
	id := o.Arg(0)
	if !client.ValidID(id) {
		return "", flags.Errorf("%q is not a valid %s id: %s", id, kind, client.IDForm)
	}
	return id, nil
}

// askFirst asks for confirmation.
func (o *operation) askFirst(ctx context.Context, format string, args ...any) error {
	return o.ask(ctx, o.stdin, o.stderr, format, args...)
}

// printf reports what was done.
func (o *operation) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(o.stdout, format+"\n", args...)
	return err
}

// messageCounts are the numbers of messages of a queue by state.
type messageCounts struct {
	Ready, Delayed, Exhausted int
	InFlight                  int `json:"in_flight"`
}

func (m *messageCounts) total() int { return m.Ready + m.Delayed + m.Exhausted + m.InFlight }

// queueStats is the response to a request for the statistics of a queue.
type queueStats struct {
	Messages          *messageCounts
	DeadQueueMessages *int `json:"dead_queue_messages"`
	Oldest            int  `json:"oldest_unacked_message_age_seconds"`
	Paused            bool
	text              []byte
}

// readStats returns the statistics of a queue.
func readStats(ctx context.Context, c *client.Client, queueID string) (v queueStats, err error) {
	err = c.Call(ctx, http.MethodGet, "/queues/"+queueID+"/stats?detail=true", nil, func(body io.Reader) (err error) {
		if v.text, err = io.ReadAll(body); err != nil {
			return err
		}
		if json.Unmarshal(v.text, &v) != nil || v.Messages == nil {
			return client.ErrNotQueued
		}
		return nil
	})
	return v, err
}

// count returns a number with a noun: 1 message, 2 messages.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
