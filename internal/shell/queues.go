package shell

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"queued/internal/client"
	"queued/internal/flags"
)

const queuesUsage = `queued queues lists the queues of a server and their settings.

usage: queued queues [flags]

`

// listedQueue is a queue as the table shows it.
type listedQueue struct {
	ID                      string  `json:"id"`
	TopicID                 *string `json:"topic_id"`
	DeadQueueID             *string `json:"dead_queue_id"`
	AckDeadlineSeconds      int     `json:"ack_deadline_seconds"`
	MessageRetentionSeconds int     `json:"message_retention_seconds"`
	MessageMaxDeliveries    *int    `json:"message_max_deliveries"`
	DeliveryDelaySeconds    *int    `json:"delivery_delay_seconds"`
}

// Queues prints the queues of a server.
func Queues(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	c := &client.Client{}
	var asJSON bool
	f := flags.New("queued queues", queuesUsage, stdout)
	c.Flags(f)
	f.BoolVar(&asJSON, "json", false, "print all settings as JSON, one queue per line")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	if err := c.Prepare(stderr); err != nil {
		return err
	}
	out := bufio.NewWriter(stdout)
	table := newTable(out, "QUEUE", "TOPIC", "DEAD QUEUE", "ACK DEADLINE", "RETENTION", "MAX DELIVERIES", "DELAY")
	err := eachQueue(ctx, c, func(item json.RawMessage) error {
		if asJSON {
			_, err := fmt.Fprintf(out, "%s\n", item)
			return err
		}
		var q listedQueue
		if err := json.Unmarshal(item, &q); err != nil {
			return err
		}
		return table.row(q.ID, q.TopicID, q.DeadQueueID, seconds(&q.AckDeadlineSeconds), seconds(&q.MessageRetentionSeconds), q.MessageMaxDeliveries, seconds(q.DeliveryDelaySeconds))
	})
	if err == nil && !asJSON {
		err = table.Flush()
	}
	return cmp.Or(err, out.Flush())
}

// eachQueue calls each with every queue. It reads a page to its end before it calls
// each, which may block for longer than a response may take.
func eachQueue(ctx context.Context, c *client.Client, each func(item json.RawMessage) error) error {
	limit := "&limit=100"
	for offset := 0; ; {
		var page []json.RawMessage
		err := c.Call(ctx, http.MethodGet, fmt.Sprintf("/queues?offset=%d%s", offset, limit), nil, client.Items(func(item json.RawMessage) error {
			page = append(page, item)
			return nil
		}))
		offset += len(page)
		switch {
		case client.Status(err) == http.StatusUnprocessableEntity && limit != "": // a server with a low -max-limit
			limit = ""
			continue
		case err != nil || len(page) == 0:
			return err
		}
		for _, item := range page {
			if err := each(item); err != nil {
				return err
			}
		}
	}
}
