package shell

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"queued/internal/client"
	"queued/internal/flags"
)

const createTopicUsage = `queued create topic creates a topic. Every queue that subscribes to it gets a copy of
each message that is published to it.

usage: queued create topic [flags] ID

examples:

  queued create topic orders
  queued create queue -topic orders bills

`

// CreateTopic creates a topic.
func CreateTopic(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("create topic", createTopicUsage, stdin, stdout, stderr)
	o.Arguments(1, 1, "ID")
	asJSON := o.Bool("json", false, "print the topic as JSON, on one line")
	if err := o.start(args, getenv); err != nil {
		return err
	}
	id, err := o.id("topic")
	if err != nil {
		return err
	}
	return o.create(ctx, "topic", id, map[string]any{"id": id}, *asJSON)
}

const createQueueUsage = `queued create queue creates a queue. With -topic it gets a copy of each message that is
published to the topic from now on.

usage: queued create queue [flags] ID

examples:

  queued create queue mails
  queued create queue -topic orders -ack-deadline 2m -retention 4d bills
  queued create queue -topic orders -filter country=fr -filter country=es south
  queued create queue -dead-queue bills-dead -max-deliveries 5 -retry-backoff 5s,30s,5m bills
  queued create queue -max-messages 100000 thumbnails

`

// CreateQueue creates a queue.
func CreateQueue(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	o := newOperation("create queue", createQueueUsage, stdin, stdout, stderr)
	o.Arguments(1, 1, "ID")
	var topic, dead string
	var deliveries, most int
	var backoff []int
	filters := map[string][]string{}
	var deadline, retention time.Duration
	var optional struct{ delay, interval, consumed, window flags.OptionalDuration }
	o.StringVar(&topic, "topic", "", "`topic` to subscribe to; none if empty")
	o.Func("filter", "attribute that messages of the topic must have, as `name=value`; may be\nrepeated, also with other values of the same attribute", func(text string) error {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return errors.New("must be name=value")
		}
		filters[name] = append(filters[name], value)
		return nil
	})
	o.StringVar(&dead, "dead-queue", "", "`queue` for messages that are not acked after -max-deliveries; none if empty")
	o.IntVar(&deliveries, "max-deliveries", 5, "maximum `number` of deliveries of a message, with -dead-queue")
	o.IntVar(&most, "max-messages", 0, "`number` of messages from which publishes are refused; 0 is unlimited")
	o.Func("retry-backoff", "`durations` until a message is ready again after its first failed delivery, its\nsecond and so on, such as 5s,30s,5m; the last one repeats", func(text string) error {
		backoff = nil
		for step := range strings.SplitSeq(text, ",") {
			var d flags.OptionalDuration
			if d.Set(strings.TrimSpace(step)) != nil || d.D < 0 || d.D%time.Second != 0 {
				return errors.New("must be durations in whole seconds, such as 5s,30s,5m")
			}
			backoff = append(backoff, int(d.D/time.Second))
		}
		return nil
	})
	o.DurationVar(&deadline, "ack-deadline", time.Minute, "`time` that a received message is hidden from other consumers")
	o.DurationVar(&retention, "retention", 4*24*time.Hour, "`time` that a message is kept")
	o.Var(&optional.delay, "delay", "delivery delay of new messages, a `duration`")
	o.Var(&optional.interval, "delivery-interval", "minimum `duration` between two deliveries of one group")
	paused := o.Bool("paused", false, "create the queue paused: it delivers no message before queued resume")
	ordered := o.Bool("ordered", false, "deliver the messages of a group one after the other")
	o.Var(&optional.consumed, "consumed-retention", "`duration` that messages consumed through the API of pgQueue or micro-queue are kept")
	o.Var(&optional.window, "deduplication-window", "`duration` in which a message with the same deduplication id is a duplicate")
	asJSON := o.Bool("json", false, "print the queue as JSON, on one line")
	if err := o.start(args, getenv); err != nil {
		return err
	}
	id, err := o.id("queue")
	if err != nil {
		return err
	}
	o.Check(topic == "" || client.ValidID(topic), "topic", "must be a valid topic id")
	o.Check(dead == "" || client.ValidID(dead), "dead-queue", "must be a valid queue id")
	o.Check(dead != "" || !o.Given("max-deliveries"), "max-deliveries", "requires -dead-queue")
	o.Check(most >= 0, "max-messages", "must not be negative")
	settings := map[string]any{"id": id}
	set := func(flagName, name string, d, unit time.Duration, given bool) {
		o.Check(d >= 0 && d%unit == 0, flagName, map[time.Duration]string{time.Second: "must be whole seconds", time.Millisecond: "must be whole milliseconds"}[unit])
		if given {
			settings[name] = d / unit
		}
	}
	set("ack-deadline", "ack_deadline_seconds", deadline, time.Second, true)
	set("retention", "message_retention_seconds", retention, time.Second, true)
	set("delay", "delivery_delay_seconds", optional.delay.D, time.Second, optional.delay.Given)
	set("delivery-interval", "delivery_interval_ms", optional.interval.D, time.Millisecond, optional.interval.Given)
	set("consumed-retention", "consumed_retention_seconds", optional.consumed.D, time.Second, optional.consumed.Given)
	set("deduplication-window", "deduplication_window_seconds", optional.window.D, time.Second, optional.window.Given)
	if err := o.Err(); err != nil {
		return err
	}
	if topic != "" {
		settings["topic_id"] = topic
	}
	if dead != "" {
		settings["dead_queue_id"], settings["message_max_deliveries"] = dead, deliveries
	}
	if len(filters) > 0 {
		settings["message_filters"] = filters
	}
	if most > 0 {
		settings["max_messages"] = most
	}
	if backoff != nil {
		settings["retry_backoff_seconds"] = backoff
	}
	if *ordered {
		settings["ordered"] = true
	}
	if *paused {
		settings["paused"] = true
	}
	err = o.create(ctx, "queue", id, settings, *asJSON)
	var refused *client.StatusError
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		if refused.Object = `-topic "` + topic + `"`; strings.HasPrefix(refused.Detail, "Queue") {
			refused.Object = `-dead-queue "` + dead + `"`
		}
	}
	return err
}

// create creates a topic or queue.
func (o *operation) create(ctx context.Context, kind, id string, settings map[string]any, asJSON bool) error {
	body, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	var text []byte
	err = o.client.Call(ctx, http.MethodPost, "/"+kind+"s", body, func(response io.Reader) (err error) {
		text, err = io.ReadAll(response)
		var created struct{ ID string }
		if err == nil && (json.Unmarshal(text, &created) != nil || created.ID != id) {
			return client.ErrNotQueued
		}
		return err
	})
	var refused *client.StatusError
	if errors.As(err, &refused) {
		refused.Object = kind + ` "` + id + `"`
	}
	switch {
	case err != nil:
		return err
	case asJSON:
		return o.printf("%s", text)
	}
	return o.printf("created %s %s", kind, id)
}
