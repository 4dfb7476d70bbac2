package shell

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"queued/internal/client"
	"queued/internal/flags"
)

const peekUsage = `queued peek shows messages of a queue without receiving them, in any state, the oldest
due first. The data is cut to fit on a line; -json prints all of it.

usage: queued peek [flags] QUEUE

The flags for a search select messages that meet all of them. A search of a large queue
takes several requests, each of which reads at most 50000 messages. Ctrl-C ends it.

examples:

  queued peek bills
  queued peek -limit 100 bills
  queued peek -state exhausted -attr country=es -contains '{"order": 17}' bills
  queued peek -q "no paper" -after 2h bills-dead
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
	search, err := o.searchFlags(args, getenv)
	if err != nil {
		return err
	}
	id, err := o.id("queue")
	if err != nil {
		return err
	}
	o.Check(*limit > 0, "limit", "must be at least 1")
	o.Check(!*consumed || len(search) == 0, "consumed", "excludes the flags for a search")
	if err := o.Err(); err != nil {
		return err
	}
	path := "/queues/" + id + "/messages/peek"
	if *consumed {
		path = "/queues/" + id + "/messages/consumed"
	}
	out := bufio.NewWriter(stdout)
	table := newTable(out, "ID", "STATE", "ATTEMPTS", "CREATED", "DUE", "GROUP", "ERROR", "DATA")
	err = o.eachMessage(ctx, path, search, *limit, func(item json.RawMessage, m *shownMessage) error {
		if *asJSON {
			_, err := fmt.Fprintf(out, "%s\n", item)
			return err
		}
		return table.row(m.ID, m.State, m.DeliveryAttempts, timeOf(m.CreatedAt), timeOf(m.ScheduledAt), line(m.Group, 20), ends(m.LastError, 60), line(new(string(m.Data)), 60))
	})
	if err == nil && !*asJSON {
		err = table.Flush()
	}
	return cmp.Or(err, out.Flush())
}

// searchFlags adds the flags for a search, parses the arguments, and returns the parameters of
// the search; none if no flag is given.
func (o *operation) searchFlags(args []string, getenv func(string) string) (url.Values, error) {
	search := url.Values{}
	texts := map[string]*string{
		"state":    o.String("state", "", "only messages in this `state`: ready, delayed, in_flight or exhausted"),
		"group":    o.String("group", "", "only messages of this `group`"),
		"contains": o.String("contains", "", "only messages whose data contains this `JSON` object"),
		"q":        o.String("q", "", "only messages with this `text` in their data, attributes or last error, in\nupper or lower case"),
	}
	o.Func("attr", "only messages with this attribute, as `name=value`; may be repeated", func(text string) error {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return errors.New("must be name=value")
		}
		search.Set("attribute."+name, value)
		return nil
	})
	times := map[string]*flags.Time{"after": {Past: true}, "before": {Past: true}}
	o.Var(times["after"], "after", "only messages published at this `time` or later, in UTC, or a duration before now,\nsuch as 2026-11-26T04:00:00 or 2h")
	o.Var(times["before"], "before", "only messages published before this `time`")
	o.Group("flags for a search", "state", "group", "attr", "contains", "q", "after", "before")
	o.Arguments(1, 1, "QUEUE")
	if err := o.start(args, getenv); err != nil {
		return nil, err
	}
	var object map[string]json.RawMessage
	o.Check(*texts["contains"] == "" || json.Unmarshal([]byte(*texts["contains"]), &object) == nil && object != nil, "contains", `must be a JSON object, such as {"order": 17}`)
	if err := o.Err(); err != nil {
		return nil, err
	}
	for name, text := range texts {
		if *text != "" {
			search.Set(name, *text)
		}
	}
	for name, at := range times {
		if !at.IsZero() {
			search.Set(name, at.Format(client.TimestampLayout))
		}
	}
	return search, nil
}

// eachMessage calls each with up to limit messages. It reads a page to its end before it
// calls each. The pages of a search are linked by their next.
func (o *operation) eachMessage(ctx context.Context, path string, search url.Values, limit int, each func(item json.RawMessage, m *shownMessage) error) error {
	const maxPeek = 300
	for offset, next := 0, ""; limit > 0; {
		var page []json.RawMessage
		query := url.Values{"limit": {strconv.Itoa(min(maxPeek, limit))}}
		maps.Copy(query, search)
		if len(search) == 0 {
			query.Set("offset", strconv.Itoa(offset))
		} else if next != "" {
			query.Set("next", next)
		}
		next = ""
		err := o.client.Call(ctx, http.MethodGet, path+"?"+query.Encode(), nil, client.ItemsAnd(func(item json.RawMessage) error {
			page = append(page, item)
			return nil
		}, func(name string, value json.RawMessage) {
			if name == "next" {
				json.Unmarshal(value, &next) // null is the end
			}
		}))
		if err != nil {
			return err
		}
		for _, item := range page {
			var m shownMessage
			if err := json.Unmarshal(item, &m); err != nil {
				return err
			}
			if err := each(item, &m); err != nil {
				return err
			}
		}
		offset += len(page)
		limit -= len(page)
		if len(page) == 0 && len(search) == 0 || len(search) > 0 && next == "" {
			return nil
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

// ends returns a text as line does, but omits its middle: the end of an error says the most if
// it ends in the last lines of a program's output.
func ends(text *string, max int) *string {
	all := line(text, math.MaxInt)
	if all == nil {
		return nil
	}
	short := []rune(strings.Join(strings.Fields(*all), " "))
	if first := max / 3; len(short) > max {
		short = slices.Concat(short[:first], []rune{'…'}, short[len(short)-(max-first-1):])
	}
	return new(string(short))
}
