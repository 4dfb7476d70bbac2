package shell

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
)

const queuesUsage = `queued queues lists the queues of a server, with the number of messages in each state.
The server counts at intervals that grow with the number of messages, so the counts may
be some seconds old; "queued stats" counts one queue at once. A new queue that was not
counted yet shows dashes.

usage: queued queues [flags]

examples:

  queued queues
  queued queues -watch
  queued queues -settings
  queued queues -json | jq 'select(.paused) | .id'

`

// listedQueue is a queue as the tables show it.
type listedQueue struct {
	ID                      string         `json:"id"`
	TopicID                 *string        `json:"topic_id"`
	DeadQueueID             *string        `json:"dead_queue_id"`
	AckDeadlineSeconds      int            `json:"ack_deadline_seconds"`
	MessageRetentionSeconds int            `json:"message_retention_seconds"`
	MessageMaxDeliveries    *int           `json:"message_max_deliveries"`
	DeliveryDelaySeconds    *int           `json:"delivery_delay_seconds"`
	RetryBackoffSeconds     []int          `json:"retry_backoff_seconds"`
	MaxMessages             *int           `json:"max_messages"`
	Messages                *messageCounts `json:"messages"` // null if not counted yet
	OldestAge               float64        `json:"oldest_message_age_seconds"`
	Paused                  bool           `json:"paused"`
}

// watchInterval is the time between two lists of -watch.
const watchInterval = 2 * time.Second

// Queues prints the queues of a server.
func Queues(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) error {
	c := &client.Client{}
	var asJSON, settings, watch bool
	f := flags.New("queued queues", queuesUsage, stdout)
	f.WithoutVariable = []string{"settings", "watch"}
	f.BoolVar(&asJSON, "json", false, "print all settings and counts as JSON, one queue per line")
	f.BoolVar(&settings, "settings", false, "show the settings and not the counts")
	f.BoolVar(&watch, "watch", false, fmt.Sprintf("show the queues again every %v, until Ctrl-C", watchInterval))
	c.Flags(f)
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	if err := c.Prepare(stderr); err != nil {
		return err
	}
	format := countsTable
	switch {
	case asJSON:
		format = linesOfJSON
	case settings:
		format = settingsTable
	}
	for {
		text, err := listQueues(ctx, c, format)
		if !watch {
			_, failed := stdout.Write(text)
			return cmp.Or(err, failed)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if !client.Unavailable(err) {
				return err
			}
			text = fmt.Appendf(nil, "queued: %v; retrying\n", err)
		}
		if !asJSON && isTerminal(stdout) {
			text = append([]byte("\x1b[H\x1b[2J"), text...) // clears the screen
		}
		if _, err := stdout.Write(text); err != nil {
			return err
		}
		if !sleep(ctx, watchInterval) {
			return nil
		}
	}
}

// listQueues returns all queues in a format.
func listQueues(ctx context.Context, c *client.Client, format func(io.Writer, []json.RawMessage) error) ([]byte, error) {
	var all []json.RawMessage
	for offset := new(0); offset != nil; {
		next, first := (*int)(nil), len(all)
		err := c.Call(ctx, http.MethodGet, fmt.Sprintf("/overview?offset=%d", *offset), nil, func(body io.Reader) error {
			var page struct {
				Server     *struct{}
				Data       []json.RawMessage
				NextOffset *int `json:"next_offset"`
			}
			if json.NewDecoder(body).Decode(&page) != nil || page.Server == nil {
				return client.ErrNotQueued
			}
			all, next = append(all, page.Data...), page.NextOffset
			return nil
		})
		if err != nil {
			return nil, err
		}
		if offset = next; len(all) == first {
			break
		}
	}
	var b bytes.Buffer
	err := format(&b, all)
	return b.Bytes(), err
}

// eachItem calls each with every item of a list.
func eachItem(ctx context.Context, c *client.Client, path string, each func(item json.RawMessage) error) error {
	limit := "&limit=100"
	for offset := 0; ; {
		n := 0
		err := c.Call(ctx, http.MethodGet, fmt.Sprintf("%s?offset=%d%s", path, offset, limit), nil, client.Items(func(item json.RawMessage) error {
			n++
			return each(item)
		}))
		offset += n
		switch {
		case client.Status(err) == http.StatusUnprocessableEntity && limit != "": // a server with a low -max-limit
			limit = ""
		case err != nil || n == 0:
			return err
		}
	}
}

func linesOfJSON(out io.Writer, all []json.RawMessage) error {
	for _, item := range all {
		fmt.Fprintf(out, "%s\n", item)
	}
	return nil
}

func countsTable(out io.Writer, all []json.RawMessage) error {
	table := newTable(out, "QUEUE", "TOPIC", "READY", "DELAYED", "IN FLIGHT", "EXHAUSTED", "OLDEST", "PAUSED", "DEAD QUEUE")
	return table.queues(all, func(q *listedQueue) []any {
		counts, oldest := []any{"-", "-", "-", "-"}, (*int)(nil)
		if m := q.Messages; m != nil {
			counts, oldest = []any{m.Ready, m.Delayed, m.InFlight, m.Exhausted}, new(int(q.OldestAge))
		}
		return append(append([]any{q.ID, q.TopicID}, counts...), seconds(oldest), map[bool]string{true: "yes", false: "-"}[q.Paused], q.DeadQueueID)
	})
}

func settingsTable(out io.Writer, all []json.RawMessage) error {
	table := newTable(out, "QUEUE", "TOPIC", "DEAD QUEUE", "ACK DEADLINE", "RETENTION", "MAX DELIVERIES", "DELAY", "RETRY BACKOFF", "MAX MESSAGES")
	return table.queues(all, func(q *listedQueue) []any {
		return []any{q.ID, q.TopicID, q.DeadQueueID, seconds(&q.AckDeadlineSeconds), seconds(&q.MessageRetentionSeconds), q.MessageMaxDeliveries, seconds(q.DeliveryDelaySeconds), steps(q.RetryBackoffSeconds), q.MaxMessages}
	})
}

// queues adds a row for each queue, and flushes the table.
func (t table) queues(all []json.RawMessage, row func(*listedQueue) []any) error {
	for _, item := range all {
		var q listedQueue
		if err := json.Unmarshal(item, &q); err != nil {
			return err
		}
		if err := t.row(row(&q)...); err != nil {
			return err
		}
	}
	return t.Flush()
}
