package shell

import (
	"context"
	"io"
	"net/http"
)

const purgeUsage = `queued purge deletes the messages that are in a queue, in any state, including kept
consumed ones.

usage: queued purge [flags] QUEUE

examples:

  queued purge mails
  queued purge -yes mails

`

// Purge deletes the messages of a queue.
func Purge(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("purge", purgeUsage, stdin, stdout, stderr)
	o.confirmation.flags(o.Set)
	id, err := o.startOn("queue", args, getenv)
	if err != nil {
		return err
	}
	v, err := readStats(ctx, &o.client, id)
	if err != nil {
		return err
	}
	if err := o.askFirst(ctx, "Delete %s of queue %s at %s?", count(v.Messages.total(), "message"), id, o.client.Server()); err != nil {
		return err
	}
	if _, err := o.client.Change(ctx, http.MethodPut, "/queues/"+id+"/purge", nil); err != nil {
		return err
	}
	return o.printf("purged queue %s", id)
}
