package shell

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
)

const queuesUsage = `queued queues lists the queues of a server, with the number of messages in each state.
The server counts at intervals that grow with the number of messages, so the counts may
be some seconds old; "queued stats" counts one queue at once. A new queue that was not
counted yet shows dashes. With -watch, the table also has the rates of publishes, acks and
nacks since the last one, and the number of consumers that wait for messages. Those are
the rates and the consumers of the server that responds.

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
	WaitingReceivers        int            `json:"waiting_receivers"`
	Published               int            `json:"published_total"`
	Acked                   int            `json:"acked_total"`
	Nacked                  int            `json:"nacked_total"`
}

// serverTime is which server responded, and when it did.
type serverTime struct {
	ID     string
	Uptime float64 `json:"uptime_seconds"`
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
	if watch {
		format = (&queueRates{}).table
	}
	switch {
	case asJSON:
		format = func(out io.Writer, _ serverTime, all []json.RawMessage) error { return linesOfJSON(out, all) }
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
func listQueues(ctx context.Context, c *client.Client, format queuesFormat) ([]byte, error) {
	var all []json.RawMessage
	var server serverTime
	for offset := new(0); offset != nil; {
		next, first := (*int)(nil), len(all)
		err := c.Call(ctx, http.MethodGet, fmt.Sprintf("/overview?offset=%d", *offset), nil, func(body io.Reader) error {
			var page struct {
				Server     *serverTime
				Data       []json.RawMessage
				NextOffset *int `json:"next_offset"`
			}
			if json.NewDecoder(body).Decode(&page) != nil || page.Server == nil {
				return client.ErrNotQueued
			}
			all, next, server = append(all, page.Data...), page.NextOffset, *page.Server
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
	err := format(&b, server, all)
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

// queuesFormat writes the queues of a response of a server.
type queuesFormat func(out io.Writer, server serverTime, all []json.RawMessage) error

func linesOfJSON(out io.Writer, all []json.RawMessage) error {
	for _, item := range all {
		fmt.Fprintf(out, "%s\n", item)
	}
	return nil
}

var countsColumns = []string{"QUEUE", "TOPIC", "READY", "DELAYED", "IN FLIGHT", "EXHAUSTED", "OLDEST", "PAUSED", "DEAD QUEUE"}

func countsTable(out io.Writer, _ serverTime, all []json.RawMessage) error {
	return newTable(out, countsColumns...).queues(all, countsOf)
}

// countsOf returns a row of countsTable.
func countsOf(q *listedQueue) []any {
	counts, oldest := []any{"-", "-", "-", "-"}, (*int)(nil)
	if m := q.Messages; m != nil {
		counts, oldest = []any{m.Ready, m.Delayed, m.InFlight, m.Exhausted}, new(int(q.OldestAge))
	}
	return append(append([]any{q.ID, q.TopicID}, counts...), seconds(oldest), map[bool]string{true: "yes", false: "-"}[q.Paused], q.DeadQueueID)
}

// queueRates prints tables that also have the rates since the last one.
type queueRates struct {
	server serverTime
	queues map[string]listedQueue // of the last table, by id
}

func (r *queueRates) table(out io.Writer, server serverTime, all []json.RawMessage) error {
	elapsed := server.Uptime - r.server.Uptime
	known := server.ID == r.server.ID && elapsed > 0
	last := r.queues
	r.server, r.queues = server, map[string]listedQueue{}
	table := newTable(out, slices.Concat(countsColumns, []string{"WAITING", "PUBLISHED/S", "ACKED/S", "NACKED/S"})...)
	return table.queues(all, func(q *listedQueue) []any {
		r.queues[q.ID] = *q
		before, found := last[q.ID]
		rate := func(now, before int) string {
			if !known || !found || now < before { // a queue of this id is new
				return "-"
			}
			return strconv.FormatFloat(float64(now-before)/elapsed, 'f', 1, 64)
		}
		return append(countsOf(q), q.WaitingReceivers, rate(q.Published, before.Published), rate(q.Acked, before.Acked), rate(q.Nacked, before.Nacked))
	})
}

func settingsTable(out io.Writer, _ serverTime, all []json.RawMessage) error {
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
