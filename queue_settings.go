package main

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"

	"queued/internal/rawjson"

	"github.com/lib/pq"
)

// queueSettings are the settings of a queue that clients choose. schema.sql describes
// each, and what null means.
type queueSettings struct {
	TopicID                 *string         `json:"topic_id"`
	DeadQueueID             *string         `json:"dead_queue_id"`
	AckDeadlineSeconds      int             `json:"ack_deadline_seconds"`
	MessageRetentionSeconds int             `json:"message_retention_seconds"`
	MessageFilters          json.RawMessage `json:"message_filters"`
	MessageMaxDeliveries    *int            `json:"message_max_deliveries"`
	DeliveryDelaySeconds    *int            `json:"delivery_delay_seconds"`
	ownSettings
	SQS sqsSettings `json:"-"`
}

// sqsSettings is what only SQS's API has of a queue. A queue that was read lately shares it
// among requests, so a change begins with a clone.
type sqsSettings struct {
	Attributes map[string]string `json:"attributes,omitempty"` // those that are no setting of the queue
	Tags       map[string]string `json:"tags,omitempty"`
}

func (v sqsSettings) clone() sqsSettings {
	return sqsSettings{maps.Clone(v.Attributes), maps.Clone(v.Tags)}
}

// Scan reads a column of JSON; null is empty.
func (v *sqsSettings) Scan(src any) error {
	*v = sqsSettings{}
	if text, ok := src.([]byte); ok {
		return json.Unmarshal(text, v)
	}
	return nil
}

// Value returns JSON, or null if it is empty.
func (v sqsSettings) Value() (driver.Value, error) {
	if len(v.Attributes) == 0 && len(v.Tags) == 0 {
		return nil, nil
	}
	return string(appendJSON(nil, v)), nil
}

// ownSettings are the settings that fastqueue does not have. Responses contain them only
// if they are set, and an update without them does not change them. So fastqueue's clients
// neither see nor change them.
type ownSettings struct {
	DeliveryIntervalMS       *int  `json:"delivery_interval_ms,omitempty"`
	Ordered                  bool  `json:"ordered,omitempty"`
	ConsumedRetentionSeconds *int  `json:"consumed_retention_seconds,omitempty"`
	DeduplicationWindow      *int  `json:"deduplication_window_seconds,omitempty"`
	MaxMessages              *int  `json:"max_messages,omitempty"`
	RetryBackoff             steps `json:"retry_backoff_seconds,omitempty"`
	Paused                   bool  `json:"paused,omitempty"`

	leftOut leftOut // of a request
}

// leftOut marks the settings that a request does not have.
type leftOut struct{ deliveryInterval, ordered, consumedRetention, deduplicationWindow, maxMessages, retryBackoff, paused bool }

// over returns the settings. The ones that the request leaves out are taken from others.
func (v ownSettings) over(others ownSettings) ownSettings {
	if v.leftOut.deliveryInterval {
		v.DeliveryIntervalMS = others.DeliveryIntervalMS
	}
	if v.leftOut.ordered {
		v.Ordered = others.Ordered
	}
	if v.leftOut.consumedRetention {
		v.ConsumedRetentionSeconds = others.ConsumedRetentionSeconds
	}
	if v.leftOut.deduplicationWindow {
		v.DeduplicationWindow = others.DeduplicationWindow
	}
	if v.leftOut.maxMessages {
		v.MaxMessages = others.MaxMessages
	}
	if v.leftOut.retryBackoff {
		v.RetryBackoff = others.RetryBackoff
	}
	if v.leftOut.paused {
		v.Paused = others.Paused
	}
	v.leftOut = leftOut{}
	return v
}

// integers returns the settings that are integers by name, if they are set.
func (v *queueSettings) integers() map[string]int {
	all := map[string]int{"ack_deadline_seconds": v.AckDeadlineSeconds, "message_retention_seconds": v.MessageRetentionSeconds}
	for name, n := range map[string]*int{"message_max_deliveries": v.MessageMaxDeliveries, "delivery_delay_seconds": v.DeliveryDelaySeconds, "deduplication_window_seconds": v.DeduplicationWindow} {
		if n != nil {
			all[name] = *n
		}
	}
	return all
}

// ofGroups returns the settings that determine when a group is ready.
func (v *queueSettings) ofGroups() queueSettings {
	return queueSettings{DeadQueueID: v.DeadQueueID, MessageMaxDeliveries: v.MessageMaxDeliveries,
		ownSettings: ownSettings{DeliveryIntervalMS: v.DeliveryIntervalMS, Ordered: v.Ordered}}
}

// filters decodes an object of lists of strings within the limits of filters.
func (f *form) filters(name string) []byte {
	raw := f.object(name, false)
	if raw == nil {
		return nil
	}
	names, total := 0, 0
	rawjson.WalkObject(raw, func(key string, values []byte) {
		names++
		if rawjson.IsNull(values) {
			f.addMistake("none is not an allowed value", "type_error.none.not_allowed", name, key)
			return
		}
		if values[0] != '[' {
			f.addMistake("value is not a valid list", "type_error.list", name, key)
			return
		}
		i := 0
		rawjson.WalkArray(values, func(value []byte) {
			f.checkText(value, name, key, i)
			i++
		})
		total += i
	})
	filters := quoteScalars(raw)
	switch {
	case names > maxFilterNames:
		f.addMistake(fmt.Sprintf("ensure this value has at most %d attributes", maxFilterNames), "value_error.size", name)
	case total > maxFilterValues:
		f.addMistake(fmt.Sprintf("ensure this value has at most %d values in all", maxFilterValues), "value_error.size", name)
	case len(filters) > maxFilterSize:
		f.addMistake(fmt.Sprintf("ensure this value has at most %d bytes", maxFilterSize), "value_error.size", name)
	}
	return filters
}

// queueSettings decodes the settings of a queue.
func (f *form) queueSettings(l *limits) queueSettings {
	v := queueSettings{
		TopicID:     f.id("topic_id", false),
		DeadQueueID: f.id("dead_queue_id", false),
	}
	if n := f.integer("ack_deadline_seconds", l.ackDeadline, true); n != nil {
		v.AckDeadlineSeconds = *n
	}
	retention := l.messageRetention
	if raw, _ := f.find("message_retention_seconds"); string(raw) == strconv.Itoa(noExpirySeconds) {
		retention.max = noExpirySeconds
	}
	if n := f.integer("message_retention_seconds", retention, true); n != nil {
		v.MessageRetentionSeconds = *n
	}
	v.MessageFilters = f.filters("message_filters")
	v.MessageMaxDeliveries = f.integer("message_max_deliveries", l.maxDeliveries, false)
	v.DeliveryDelaySeconds = f.integer("delivery_delay_seconds", l.deliveryDelay, false)
	if delay, retention := v.DeliveryDelaySeconds, v.MessageRetentionSeconds; delay != nil && retention > 0 && *delay >= retention &&
		!(f.isUnchanged("delivery_delay_seconds", *delay) && f.isUnchanged("message_retention_seconds", retention)) {
		f.addMistake("ensure this value is less than message_retention_seconds, or every message expires before it is due", "value_error.number.not_lt", "delivery_delay_seconds")
	}
	switch { // also if one of the two is present but invalid
	case v.DeadQueueID != nil && v.MessageMaxDeliveries == nil:
		f.addMistake("message_max_deliveries is required for dead queue support", "value_error", "__root__")
	case v.DeadQueueID == nil && v.MessageMaxDeliveries != nil:
		f.addMistake("dead_queue_id is required for dead queue support", "value_error", "__root__")
	}
	v.ownSettings = f.ownSettings(l)
	return v
}

// maxInterval is the maximum delivery interval in milliseconds: almost 25 days.
const maxInterval = math.MaxInt32

// ownSettings decodes the settings that fastqueue does not have.
func (f *form) ownSettings(l *limits) ownSettings {
	return ownSettings{
		DeliveryIntervalMS:       f.integer("delivery_interval_ms", bounds{0, maxInterval}, false),
		Ordered:                  f.boolean("ordered"),
		ConsumedRetentionSeconds: f.integer("consumed_retention_seconds", bounds{1, l.messageRetention.max}, false),
		DeduplicationWindow:      f.integer("deduplication_window_seconds", bounds{1, int(maxDeduplicationWindow / time.Second)}, false),
		MaxMessages:              f.integer("max_messages", bounds{1, math.MaxInt32}, false),
		RetryBackoff:             f.steps("retry_backoff_seconds"),
		Paused:                   f.boolean("paused"),
		leftOut:                  leftOut{!f.has("delivery_interval_ms"), !f.has("ordered"), !f.has("consumed_retention_seconds"), !f.has("deduplication_window_seconds"), !f.has("max_messages"), !f.has("retry_backoff_seconds"), !f.has("paused")},
	}
}

// steps are delays in seconds: after the first failed delivery, the second, and so on. The
// last one repeats.
type steps []int64

// maxSteps is the maximum number of steps of a retry backoff.
const maxSteps = 100

// steps decodes a list of delays. It returns nil if the list is null, missing or empty.
func (f *form) steps(name string) (all steps) {
	f.optionalList(name, maxSteps, func(i int, raw []byte) {
		const most = int(maxLease / time.Second)
		switch n, ok := asInteger(raw); {
		case !ok:
			f.addMistake("value is not a valid integer", "type_error.integer", name, i)
		case n < 0:
			f.addMistakeCtx(limitCtx{0}, "ensure this value is greater than or equal to 0", "value_error.number.not_ge", name, i)
		case n > most:
			f.addMistakeCtx(limitCtx{most}, fmt.Sprintf("ensure this value is less than or equal to %d", most), "value_error.number.not_le", name, i)
		default:
			all = append(all, int64(n))
		}
	})
	return all
}

// Scan reads an integer[]; null is nil.
func (v *steps) Scan(src any) error { return (*pq.Int64Array)(v).Scan(src) }

// Value returns an integer[], or null for nil.
func (v steps) Value() (driver.Value, error) {
	if v == nil {
		return nil, nil
	}
	return intArray(v).Value()
}

// isFIFO reports whether a queue is a FIFO queue. Only an ordered queue can be one.
func isFIFO(queueID string, ordered bool) bool {
	return ordered && strings.HasSuffix(queueID, sqsFIFOSuffix)
}
