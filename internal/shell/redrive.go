package shell

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"queued/internal/client"
)

const redriveUsage = `queued redrive moves the ready messages of a queue, in most cases a dead queue, to
another queue. Their delivery attempts restart at zero.

usage: queued redrive [flags] QUEUE

examples:

  queued redrive -to bills bills-dead
  queued redrive -to bills -limit 10 bills-dead

`

// Redrive moves messages of a dead queue.
func Redrive(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("redrive", redriveUsage, stdin, stdout, stderr)
	o.Arguments(1, 1, "QUEUE")
	to := o.String("to", "", "`queue` to move the messages to; required")
	limit := o.Int("limit", 0, "maximum `number` of messages to move; unlimited if 0")
	o.confirmation.flags(o.Set)
	if err := o.start(args, getenv); err != nil {
		return err
	}
	id, err := o.id("queue")
	if err != nil {
		return err
	}
	o.Check(client.ValidID(*to), "to", "must be a valid queue id")
	o.Check(*limit >= 0, "limit", "must not be negative")
	if err := o.Err(); err != nil {
		return err
	}
	v, err := readStats(ctx, &o.client, id)
	if err != nil {
		return err
	}
	n := v.Messages.Ready
	request := map[string]any{"destination_queue_id": *to}
	if *limit > 0 {
		request["limit"], n = *limit, min(n, *limit)
	}
	if err := o.askFirst(ctx, "Move %s from queue %s to %s at %s?", count(n, "ready message"), id, *to, o.client.Server()); err != nil {
		return err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	_, err = o.client.Change(ctx, http.MethodPut, "/queues/"+id+"/redrive", body)
	var refused *client.StatusError
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		refused.Object = fmt.Sprintf("queue %q or -to %q", id, *to)
	}
	if err != nil {
		return err
	}
	return o.printf("moved the ready messages of queue %s to %s", id, *to)
}
