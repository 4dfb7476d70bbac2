package shell

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"queued/internal/client"
)

const consumersUsage = `queued consumers shows who received from a queue in the last hour, the one that was seen
last first: the names of tokens or, without tokens, the addresses that requests come from.
A server knows only its own consumers, since its start.

usage: queued consumers [flags] QUEUE

examples:

  queued consumers bills
  queued consumers -json bills | jq -r .address

`

// Consumers prints the consumers of a queue.
func Consumers(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("consumers", consumersUsage, stdin, stdout, stderr)
	asJSON := o.Bool("json", false, "print the consumers as JSON, one per line")
	id, err := o.startOn("queue", args, getenv)
	if err != nil {
		return err
	}
	var list struct {
		ServerID string `json:"server_id"`
		Data     []json.RawMessage
	}
	err = o.client.Call(ctx, http.MethodGet, "/queues/"+id+"/consumers", nil, func(body io.Reader) error {
		if json.NewDecoder(body).Decode(&list) != nil || list.ServerID == "" {
			return client.ErrNotQueued
		}
		return nil
	})
	if err != nil {
		return err
	}
	if *asJSON {
		return linesOfJSON(stdout, list.Data)
	}
	table := newTable(stdout, "CONSUMER", "LAST RECEIVE", "LAST MINUTE", "LAST HOUR")
	for _, item := range list.Data {
		var v struct {
			Token      *string
			Address    *string
			SeenAgo    float64 `json:"last_seen_seconds_ago"`
			LastMinute int     `json:"received_last_minute"`
			LastHour   int     `json:"received_last_hour"`
		}
		if err := json.Unmarshal(item, &v); err != nil {
			return err
		}
		if err := table.row(cmp.Or(v.Token, v.Address), fmt.Sprintf("%s ago", *seconds(new(int(v.SeenAgo)))), v.LastMinute, v.LastHour); err != nil {
			return err
		}
	}
	return table.Flush()
}
