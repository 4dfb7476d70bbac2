package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
)

// topology is a file of topics and queues to create at the start, for example for a
// sidecar: {"topics": […], "queues": […]}, each as in a request to the API.
type topology struct {
	topics []string
	queues []declaredQueue
}

type declaredQueue struct {
	id       string
	settings queueSettings
}

// maxTopologyItems is the maximum number of topics, and of queues, in a topology.
const maxTopologyItems = 100_000

// readTopology reads and checks a file. Its error lists the invalid fields by their
// paths.
func readTopology(path string, l *limits) (*topology, error) {
	f, err := parseFile(path)
	if err != nil {
		return nil, err
	}
	t := &topology{}
	f.only("topics", "queues")
	f.declared("topics", []string{"id"}, func(item *form, id string) {
		t.topics = append(t.topics, id)
	})
	f.declared("queues", []string{"id", "topic_id", "dead_queue_id", "ack_deadline_seconds", "message_retention_seconds",
		"message_filters", "message_max_deliveries", "delivery_delay_seconds",
		"delivery_interval_ms", "ordered", "consumed_retention_seconds", "deduplication_window_seconds", "max_messages", "retry_backoff_seconds", "paused"}, func(item *form, id string) {
		t.queues = append(t.queues, declaredQueue{id, item.queueSettings(l)})
	})
	if err := f.err(); err != nil {
		return nil, err
	}
	return t, nil
}

// declared reads an optional list of objects with unique ids and these fields. It
// ignores created_at and updated_at, so that the output of a server can be used as a
// topology.
func (f *form) declared(name string, fields []string, each func(item *form, id string)) {
	if raw := f.value(name, false); raw == nil || string(quoteScalars(raw)) == "[]" {
		return
	}
	seen := make(map[string]bool)
	fields = append(fields, "created_at", "updated_at")
	f.objects(name, maxTopologyItems, func(item *form) {
		item.only(fields...)
		id := item.id("id", true)
		if id == nil {
			return
		}
		if seen[*id] {
			item.addMistake(fmt.Sprintf("duplicate id %q", *id), "value_error", "id")
		}
		seen[*id] = true
		each(item, *id)
	})
}

// apply creates the missing topics and queues and updates those that differ, with a line in
// the log for each. It deletes nothing.
func (t *topology) apply(ctx context.Context, s *store, log *slog.Logger) error {
	created := func(err error, kind, id string) error {
		if err == nil {
			log.Info(kind+" created", kind, id, "by", "topology")
		}
		if err != nil && !errors.Is(err, errExists) {
			return fmt.Errorf("%s %q: %w", kind, id, err)
		}
		return nil
	}
	for _, id := range t.topics {
		_, err := s.createTopic(ctx, id)
		if err := created(err, "topic", id); err != nil {
			return err
		}
	}
	// Queues are first created without their dead queues, which may come later in the list.
	isNew := make(map[string]bool)
	for _, q := range t.queues {
		alone := q.settings
		alone.DeadQueueID, alone.MessageMaxDeliveries = nil, nil
		_, err := s.createQueue(ctx, q.id, alone)
		isNew[q.id] = err == nil
		if err := created(err, "queue", q.id); err != nil {
			return err
		}
	}
	for _, q := range t.queues {
		is, err := s.queue(ctx, q.id)
		q.settings.ownSettings, q.settings.SQS = q.settings.over(is.ownSettings), is.SQS
		if err == nil && !reflect.DeepEqual(is.queueSettings, q.settings) {
			if _, err = s.updateQueue(ctx, q.id, q.settings); err == nil && !isNew[q.id] {
				log.Info("queue changed", "queue", q.id, "by", "topology")
			}
		}
		if err != nil {
			return fmt.Errorf("queue %q: %w", q.id, err)
		}
	}
	return nil
}
