package shell

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"queued/internal/client"
)

const peekUsage = `queued peek shows messages of a queue without receiving them, in any state, the oldest
due first. The data is cut to fit on a line; -json prints all of it.

usage: queued peek [flags] QUEUE

examples:

  queued peek bills
  queued peek -limit 100 bills
  queued peek -json bills-dead | jq -r .last_error | sort | uniq -c

`

// shownMessage is a message as peek shows it.
type shownMessage struct {
	ID               string          `json:"id"`
	QueueID          string          `json:"queue_id"`
	State            string          `json:"state"`
	DeliveryAttempts int             `json:"delivery_attempts"`
	CreatedAt        string          `json:"created_at"`
	ScheduledAt      string          `json:"scheduled_at"`
	Group            *string         `json:"group"`
	LastError        *string         `json:"last_error"`
	Data             json.RawMessage `json:"data"`
}

// Peek prints messages of a queue.
func Peek(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("peek", peekUsage, stdin, stdout, stderr)
	limit := o.Int("limit", 10, "maximum `number` of messages")
	consumed := o.Bool("consumed", false, "show the consumed messages that the queue keeps, the latest first")
	asJSON := o.Bool("json", false, "print the messages as JSON, one per line")
	id, err := o.startOn("queue", args, getenv)
	if err != nil {
		return err
	}
	o.Check(*limit > 0, "limit", "must be at least 1")
	if err := o.Err(); err != nil {
		return err
	}
	path := "/queues/" + id + "/messages/peek"
	if *consumed {
		path = "/queues/" + id + "/messages/consumed"
	}
	out := bufio.NewWriter(stdout)
	table := newTable(out, "ID", "STATE", "ATTEMPTS", "CREATED", "DUE", "GROUP", "ERROR", "DATA")
	err = o.eachMessage(ctx, path, *limit, func(item json.RawMessage, m *shownMessage) error {
		if *asJSON {
			_, err := fmt.Fprintf(out, "%s\n", item)
			return err
		}
		return table.row(m.ID, m.State, m.DeliveryAttempts, timeOf(m.CreatedAt), timeOf(m.ScheduledAt), line(m.Group, 20), line(m.LastError, 40), line(new(string(m.Data)), 60))
	})
	if err == nil && !*asJSON {
		err = table.Flush()
	}
	return cmp.Or(err, out.Flush())
}

// eachMessage calls each with up to limit messages. It reads a page to its end before it
// calls each.
func (o *operation) eachMessage(ctx context.Context, path string, limit int, each func(item json.RawMessage, m *shownMessage) error) error {
	const maxPeek = 300
	for offset := 0; limit > 0; {
		var page []json.RawMessage
		query := url.Values{"offset": {strconv.Itoa(offset)}, "limit": {strconv.Itoa(min(maxPeek, limit))}}
		err := o.client.Call(ctx, http.MethodGet, path+"?"+query.Encode(), nil, client.Items(func(item json.RawMessage) error {
			page = append(page, item)
			return nil
		}))
		if err != nil || len(page) == 0 {
			return err
		}
		offset += len(page)
		limit -= len(page)
		for _, item := range page {
			var m shownMessage
			if err := json.Unmarshal(item, &m); err != nil {
				return err
			}
			if err := each(item, &m); err != nil {
				return err
			}
		}
	}
	return nil
}

// timeOf shortens a time of the API to seconds.
func timeOf(text string) string {
	text, _, _ = strings.Cut(text, ".")
	return text
}

// line returns a text on one line of at most max characters, without what could control a
// terminal; nil if there is none.
func line(text *string, max int) *string {
	if text == nil {
		return nil
	}
	short := []rune(strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, *text))
	if len(short) > max {
		short = append(short[:max-1], '…')
	}
	return new(string(short))
}
