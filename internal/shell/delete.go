package shell

import (
	"context"
	"io"
	"net/http"
)

const deleteTopicUsage = `queued delete topic deletes a topic. Its queues and their messages stay, without a topic.

usage: queued delete topic [flags] TOPIC

examples:

  queued delete topic orders

`

// DeleteTopic deletes a topic.
func DeleteTopic(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("delete topic", deleteTopicUsage, stdin, stdout, stderr)
	o.confirmation.flags(o.Set)
	id, err := o.startOn("topic", args, getenv)
	if err != nil {
		return err
	}
	if err := o.client.Call(ctx, http.MethodGet, "/topics/"+id, nil, discard); err != nil {
		return err
	}
	if err := o.askFirst(ctx, "Delete topic %s at %s? Its queues stay, without a topic.", id, o.client.Server()); err != nil {
		return err
	}
	if _, err := o.client.Change(ctx, http.MethodDelete, "/topics/"+id, nil); err != nil {
		return err
	}
	return o.printf("deleted topic %s", id)
}

const deleteQueueUsage = `queued delete queue deletes a queue and its messages.

usage: queued delete queue [flags] QUEUE

examples:

  queued delete queue bills
  queued delete queue -yes bills

`

// DeleteQueue deletes a queue.
func DeleteQueue(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("delete queue", deleteQueueUsage, stdin, stdout, stderr)
	o.confirmation.flags(o.Set)
	id, err := o.startOn("queue", args, getenv)
	if err != nil {
		return err
	}
	v, err := readStats(ctx, &o.client, id)
	if err != nil {
		return err
	}
	if err := o.askFirst(ctx, "Delete queue %s and its %s at %s?", id, count(v.Messages.total(), "message"), o.client.Server()); err != nil {
		return err
	}
	if _, err := o.client.Change(ctx, http.MethodDelete, "/queues/"+id, nil); err != nil {
		return err
	}
	return o.printf("deleted queue %s", id)
}

const deleteMessageUsage = `queued delete message deletes messages by their ids, in any state, also leased ones. An
ack does the same, but counts as processed. An id without a message is ignored. With "-"
the ids are read from the standard input.

usage: queued delete message [flags] ID...
       queued delete message [flags] -

examples:

  queued delete message 01a21621-8dce-7b68-a2d8-ceda9e934dbf
  queued peek -json bills-dead | jq -r .id | queued delete message -yes -

`

// DeleteMessage deletes messages.
func DeleteMessage(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("delete message", deleteMessageUsage, stdin, stdout, stderr)
	o.confirmation.flags(o.Set)
	ids, err := o.startOnMessages(args, getenv)
	if err != nil {
		return err
	}
	if err := o.askFirst(ctx, "Delete %s at %s?", count(len(ids), "message"), o.client.Server()); err != nil {
		return err
	}
	return o.changeMessages(ctx, "deleted", http.MethodDelete, "/messages", ids, map[string]any{})
}

func discard(body io.Reader) error {
	_, err := io.Copy(io.Discard, body)
	return err
}
