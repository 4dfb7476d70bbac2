package shell

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"queued/internal/client"
	"queued/internal/flags"
)

const statsUsage = `queued stats prints the number of messages of a queue in each state, the number of
messages in its dead queue, and the age of the oldest message that can be received.

usage: queued stats [flags] QUEUE

`

// Stats prints the statistics of a queue.
func Stats(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	c := &client.Client{}
	var asJSON bool
	f := flags.New("queued stats", statsUsage, stdout)
	f.Arguments(1, 1, "QUEUE")
	c.Flags(f)
	f.BoolVar(&asJSON, "json", false, "print the statistics as JSON, on one line")
	if err := f.Parse(args, getenv); err != nil {
		return err
	}
	if !client.ValidID(f.Arg(0)) {
		return flags.Errorf("%q is not a valid queue id", f.Arg(0))
	}
	if err := c.Prepare(stderr); err != nil {
		return err
	}
	var v struct {
		Messages *struct {
			Ready, Delayed, Exhausted int
			InFlight                  int `json:"in_flight"`
		}
		DeadQueueMessages *int `json:"dead_queue_messages"`
		Oldest            int  `json:"oldest_unacked_message_age_seconds"`
	}
	var text []byte
	err := c.Call(ctx, http.MethodGet, "/queues/"+f.Arg(0)+"/stats?detail=true", nil, func(body io.Reader) (err error) {
		if text, err = io.ReadAll(body); err != nil {
			return err
		}
		if json.Unmarshal(text, &v) != nil || v.Messages == nil {
			return client.ErrNotQueued
		}
		return nil
	})
	if err != nil {
		return err
	}
	if asJSON {
		_, err := fmt.Fprintf(stdout, "%s\n", text)
		return err
	}
	table := newTable(stdout, "READY", "DELAYED", "IN FLIGHT", "EXHAUSTED", "DEAD QUEUE", "OLDEST")
	m := v.Messages
	return cmp.Or(table.row(m.Ready, m.Delayed, m.InFlight, m.Exhausted, v.DeadQueueMessages, seconds(&v.Oldest)), table.Flush())
}
