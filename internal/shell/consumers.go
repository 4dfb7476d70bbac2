package shell

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"queued/internal/client"
)

const consumersUsage = `queued consumers shows who received from a queue in the last hour, the one that was seen
last first: the names of tokens or, without tokens, the addresses that requests come from.
A server knows only its own consumers, since its start.

IN FLIGHT is the number of the last 100 messages of a consumer that are still leased to it,
and "100 or more" if all of them are.

usage: queued consumers [flags] QUEUE

examples:

  queued consumers bills
  queued consumers -json bills | jq -r .address

`

// maxInFlight is the number of messages in flight up to which a server counts those of a consumer.
const maxInFlight = 100

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
	table := newTable(stdout, "CONSUMER", "LAST RECEIVE", "IN FLIGHT", "LAST MINUTE", "LAST HOUR")
	for _, item := range list.Data {
		var v struct {
			Token      *string
			Address    *string
			SeenAgo    float64 `json:"last_seen_seconds_ago"`
			InFlight   int     `json:"in_flight"`
			LastMinute int     `json:"received_last_minute"`
			LastHour   int     `json:"received_last_hour"`
		}
		if err := json.Unmarshal(item, &v); err != nil {
			return err
		}
		inFlight := strconv.Itoa(v.InFlight)
		if v.InFlight >= maxInFlight {
			inFlight += " or more"
		}
		if err := table.row(cmp.Or(v.Token, v.Address), fmt.Sprintf("%s ago", *seconds(new(int(v.SeenAgo)))), inFlight, v.LastMinute, v.LastHour); err != nil {
			return err
		}
	}
	return table.Flush()
}
