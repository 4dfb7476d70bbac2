package shell

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"

	"queued/internal/client"
	"queued/internal/flags"
)

const redriveUsage = `queued redrive moves the ready messages of a dead queue back to the queues that they came
from, or with -to to another queue. Their delivery attempts restart at zero. With -ids it
moves some messages, in any state except in flight; with "-" it reads their ids from the
standard input.

usage: queued redrive [flags] QUEUE
       queued redrive [flags] -ids ID...

examples:

  queued redrive bills-dead
  queued redrive -to bills -limit 10 bills-dead
  queued redrive -ids 01a21621-8dce-7b68-a2d8-ceda9e934dbf
  queued peek -json bills-dead | jq -r 'select(.last_error == "timeout") | .id' | queued redrive -yes -ids -

`

// redrive is a request to move messages.
type redrive struct {
	to    string // empty for the queues that the messages came from
	limit int    // unlimited if 0
	moved int
	left  int // messages that have stayed
}

// Redrive moves messages of a dead queue.
func Redrive(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("redrive", redriveUsage, stdin, stdout, stderr)
	o.Arguments(1, math.MaxInt, "QUEUE, or with -ids ID...")
	var v redrive
	o.StringVar(&v.to, "to", "", "`queue` to move the messages to; the queues that they came from if empty")
	o.IntVar(&v.limit, "limit", 0, "maximum `number` of messages to move; unlimited if 0")
	named := o.Bool("ids", false, "move the messages with these ids")
	o.confirmation.flags(o.Set)
	if err := o.start(args, getenv); err != nil {
		return err
	}
	o.Check(v.to == "" || client.ValidID(v.to), "to", "must be a valid queue id")
	o.Check(v.limit >= 0, "limit", "must not be negative")
	o.Check(v.limit == 0 || !*named, "limit", "must not be set with -ids")
	if err := o.Err(); err != nil {
		return err
	}
	var err error
	if *named {
		err = o.redriveNamed(ctx, &v)
	} else {
		err = o.redriveQueue(ctx, &v)
	}
	if err != nil && v.moved == 0 {
		return err
	}
	text := "moved " + count(v.moved, "message")
	if v.to != "" {
		text += " to " + v.to
	}
	if v.left > 0 {
		text += fmt.Sprintf("; %s stayed: in flight, or without a queue to go back to", count(v.left, "message"))
	}
	return cmp.Or(err, o.printf("%s", text))
}

// destination returns the destination, for questions.
func (v *redrive) destination() string {
	if v.to == "" {
		return "back to where they came from"
	}
	return "to queue " + v.to
}

func (o *operation) redriveQueue(ctx context.Context, v *redrive) error {
	if o.NArg() > 1 {
		return flags.Errorf("too many arguments: expected QUEUE; see queued redrive -help")
	}
	id, err := o.id("queue")
	if err != nil {
		return err
	}
	stats, err := readStats(ctx, &o.client, id)
	if err != nil {
		return err
	}
	n := stats.Messages.Ready
	request := map[string]any{}
	if v.limit > 0 {
		request["limit"], n = v.limit, min(n, v.limit)
	}
	if err := o.askFirst(ctx, "Move %s of queue %s %s, at %s?", count(n, "ready message"), id, v.destination(), o.client.Server()); err != nil {
		return err
	}
	return o.redrive(ctx, v, "/queues/"+id+"/redrive", request, fmt.Sprintf("queue %q", id))
}

func (o *operation) redriveNamed(ctx context.Context, v *redrive) error {
	ids, err := o.messageIDs()
	if err != nil {
		return err
	}
	if err := o.askFirst(ctx, "Move %s %s, at %s?", count(len(ids), "message"), v.destination(), o.client.Server()); err != nil {
		return err
	}
	for batch := range slices.Chunk(ids, client.MaxBatch) {
		if err := o.redrive(ctx, v, "/messages/redrive", map[string]any{"ids": batch}, ""); err != nil {
			return err
		}
	}
	return nil
}

// redrive sends a request, and adds its results to v. The object is the one that the path
// names.
func (o *operation) redrive(ctx context.Context, v *redrive, path string, request map[string]any, object string) error {
	if v.to != "" {
		request["destination_queue_id"] = v.to
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	header, err := o.client.Change(ctx, http.MethodPut, path, body)
	var refused *client.StatusError
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound && v.to != "" {
		refused.Object = fmt.Sprintf("-to %q", v.to)
		if object != "" {
			refused.Object = object + " or " + refused.Object
		}
	}
	if client.Status(err) == http.StatusUnprocessableEntity && v.to == "" {
		return fmt.Errorf("%w, with -to", err)
	}
	if err != nil {
		return err
	}
	v.moved += number(header, "X-Messages-Moved")
	v.left += number(header, "X-Messages-Left")
	return nil
}

// number returns a number in the header of a response; 0 if there is none.
func number(header http.Header, name string) int {
	n, _ := strconv.Atoi(header.Get(name))
	return n
}
