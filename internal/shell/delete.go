package shell

import (
	"context"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"slices"

	"queued/internal/client"
)

const deleteTopicUsage = `queued delete topic deletes a topic. Its queues and their messages stay, without a topic.

usage: queued delete topic [flags] TOPIC

examples:

  queued delete topic orders

`

// DeleteTopic deletes a topic.
func DeleteTopic(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("delete topic", deleteTopicUsage, stdin, stdout, stderr)
	o.Arguments(1, 1, "TOPIC")
	o.confirmation.flags(o.Set)
	if err := o.start(args, getenv); err != nil {
		return err
	}
	id, err := o.id("topic")
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
	o.Arguments(1, 1, "QUEUE")
	o.confirmation.flags(o.Set)
	if err := o.start(args, getenv); err != nil {
		return err
	}
	id, err := o.id("queue")
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
	o.Arguments(1, math.MaxInt, "ID...")
	o.confirmation.flags(o.Set)
	if err := o.start(args, getenv); err != nil {
		return err
	}
	ids, err := o.messageIDs()
	if err != nil {
		return err
	}
	if err := o.askFirst(ctx, "Delete %s at %s?", count(len(ids), "message"), o.client.Server()); err != nil {
		return err
	}
	deleted := 0
	for batch := range slices.Chunk(ids, client.MaxBatch) {
		body, err := json.Marshal(map[string]any{"ids": batch})
		if err != nil {
			return err
		}
		header, err := o.client.Change(ctx, http.MethodDelete, "/messages", body)
		if err != nil {
			if deleted > 0 {
				o.printf("deleted %s", count(deleted, "message"))
			}
			return err
		}
		deleted += number(header, "X-Messages-Deleted")
	}
	return o.printf("deleted %s", count(deleted, "message"))
}

func discard(body io.Reader) error {
	_, err := io.Copy(io.Discard, body)
	return err
}
