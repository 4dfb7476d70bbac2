package shell

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

const topicsUsage = `queued topics lists the topics of a server, each with the queues that subscribe to it.

usage: queued topics [flags]

examples:

  queued topics
  queued topics -json | jq -r .id

`

// Topics prints the topics of a server.
func Topics(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("topics", topicsUsage, stdin, stdout, stderr)
	asJSON := o.Bool("json", false, "print the topics as JSON, one per line")
	if err := o.start(args, getenv); err != nil {
		return err
	}
	var topics []json.RawMessage
	err := eachItem(ctx, &o.client, "/topics", func(item json.RawMessage) error {
		topics = append(topics, item)
		return nil
	})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if *asJSON {
		for _, item := range topics {
			fmt.Fprintf(&b, "%s\n", item)
		}
		_, err := stdout.Write(b.Bytes())
		return err
	}
	queues := map[string][]string{} // by topic
	err = eachItem(ctx, &o.client, "/queues", func(item json.RawMessage) error {
		var q listedQueue
		if err := json.Unmarshal(item, &q); err != nil {
			return err
		}
		if q.TopicID != nil {
			queues[*q.TopicID] = append(queues[*q.TopicID], q.ID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	table := newTable(&b, "TOPIC", "CREATED", "QUEUES")
	for _, item := range topics {
		var topic struct {
			ID        string
			CreatedAt string `json:"created_at"`
		}
		if err := json.Unmarshal(item, &topic); err != nil {
			return err
		}
		if err := table.row(topic.ID, timeOf(topic.CreatedAt), cmp.Or(strings.Join(queues[topic.ID], " "), "-")); err != nil {
			return err
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err = stdout.Write(b.Bytes())
	return err
}
