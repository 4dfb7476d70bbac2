package main

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"queued/internal/rawjson"
)

// sqsQueue is a queue as SQS shows it to the client of a request.
type sqsQueue struct {
	queue
	arn func(queueID string) string
}

func (r *request) sqsQueueOf(q queue) *sqsQueue { return &sqsQueue{q, r.sqsARN} }

func (q *sqsQueue) isFIFO() bool { return isFIFO(q.ID, q.Ordered) }

// sqsAttribute is an attribute of queues.
type sqsAttribute struct {
	name string
	fifo bool // only FIFO queues have it

	// get returns the value, empty if it is not set.
	get func(q *sqsQueue) string

	// set changes the value. An empty value removes it. It is nil if the attribute can only
	// be read.
	set func(q *sqsQueue, value string) error
}

// sqsAttributes are the attributes of queues, except for the counts of messages.
var sqsAttributes = []sqsAttribute{
	sqsNumber("VisibilityTimeout", sqsVisibility, func(q *sqsQueue) int { return q.AckDeadlineSeconds }, func(q *sqsQueue, n int) { q.AckDeadlineSeconds = n }),
	sqsNumber("DelaySeconds", sqsDelay, func(q *sqsQueue) int { return zeroIfNil(q.DeliveryDelaySeconds) }, func(q *sqsQueue, n int) { q.DeliveryDelaySeconds = nilIfZero(n) }),
	sqsNumber("MessageRetentionPeriod", bounds{60, 1209600}, func(q *sqsQueue) int { return q.MessageRetentionSeconds }, func(q *sqsQueue, n int) { q.MessageRetentionSeconds = n }),
	sqsStoredNumber("ReceiveMessageWaitTimeSeconds", sqsWait, 0),
	sqsStoredNumber("MaximumMessageSize", bounds{1024, maxSQSMessage}, maxSQSMessage),
	{name: "RedrivePolicy", get: (*sqsQueue).redrivePolicy, set: (*sqsQueue).setRedrivePolicy},
	sqsText("RedriveAllowPolicy", checkRedriveAllowPolicy),
	{name: "FifoQueue", fifo: true, get: func(*sqsQueue) string { return "true" }, set: func(_ *sqsQueue, value string) error {
		if value != "true" {
			return sqsInvalidAttribute.errorf("Modifying queue type is not supported.")
		}
		return nil
	}},
	sqsChoice("ContentBasedDeduplication", true, "false", "true"),
	sqsChoice("DeduplicationScope", true, "queue", "messageGroup"),
	sqsChoice("FifoThroughputLimit", true, "perQueue", "perMessageGroupId"),
	sqsText("Policy", func(value string) error {
		if !isJSONObject(value) {
			return sqsInvalidAttribute.errorf("Invalid value for the parameter Policy.")
		}
		return nil
	}),
	sqsText("KmsMasterKeyId", func(string) error { return nil }),
	sqsOptionalNumber("KmsDataKeyReusePeriodSeconds", bounds{60, 86400}),
	sqsChoice("SqsManagedSseEnabled", false, "true", "false"),
	{name: "QueueArn", get: func(q *sqsQueue) string { return q.arn(q.ID) }},
	{name: "CreatedTimestamp", get: func(q *sqsQueue) string { return strconv.FormatInt(q.CreatedAt.Unix(), 10) }},
	{name: "LastModifiedTimestamp", get: func(q *sqsQueue) string { return strconv.FormatInt(q.UpdatedAt.Unix(), 10) }},
}

// maxSQSMessage is the maximum size of a message, and of the messages of a batch, in bytes
// of bodies and attributes.
const maxSQSMessage = 1 << 20

// sqsCount is an attribute that counts messages.
type sqsCount struct {
	name string
	of   func(c messageCounts) int64
}

var sqsCounts = []sqsCount{
	{"ApproximateNumberOfMessages", func(c messageCounts) int64 { return c.Ready }},
	{"ApproximateNumberOfMessagesNotVisible", func(c messageCounts) int64 { return c.InFlight + c.Exhausted }},
	{"ApproximateNumberOfMessagesDelayed", func(c messageCounts) int64 { return c.Delayed }},
}

func zeroIfNil(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

func nilIfZero(n int) *int {
	if n == 0 {
		return nil
	}
	return &n
}

// sqsNumber returns an attribute that is a number.
func sqsNumber(name string, within bounds, get func(q *sqsQueue) int, set func(q *sqsQueue, n int)) sqsAttribute {
	return sqsAttribute{name: name, get: func(q *sqsQueue) string { return strconv.Itoa(get(q)) }, set: func(q *sqsQueue, value string) error {
		n, err := sqsNumberIn(name, value, within)
		if err == nil {
			set(q, n)
		}
		return err
	}}
}

// sqsStoredNumber returns an attribute that is a number and no setting of the queue.
func sqsStoredNumber(name string, within bounds, missing int) sqsAttribute {
	return sqsNumber(name, within, func(q *sqsQueue) int { return q.number(name, missing) }, func(q *sqsQueue, n int) { q.keep(name, strconv.Itoa(n)) })
}

// sqsOptionalNumber returns an attribute that is a number, has no default, and can be removed.
func sqsOptionalNumber(name string, within bounds) sqsAttribute {
	a := sqsStoredNumber(name, within, 0)
	setNumber := a.set
	a.get = func(q *sqsQueue) string { return q.SQS.Attributes[name] }
	a.set = func(q *sqsQueue, value string) error {
		if value == "" {
			q.keep(name, "")
			return nil
		}
		return setNumber(q, value)
	}
	return a
}

// number returns the value of an attribute that is stored.
func (q *sqsQueue) number(name string, missing int) int {
	if n, err := strconv.Atoi(q.SQS.Attributes[name]); err == nil {
		return n
	}
	return missing
}

// keep stores the value of an attribute, or removes it if the value is empty.
func (q *sqsQueue) keep(name, value string) {
	if value == "" {
		delete(q.SQS.Attributes, name)
		return
	}
	if q.SQS.Attributes == nil {
		q.SQS.Attributes = make(map[string]string)
	}
	q.SQS.Attributes[name] = value
}

func sqsNumberIn(name, value string, within bounds) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < within.min || n > within.max {
		return 0, sqsInvalidAttribute.errorf("Invalid value for the parameter %s.", name)
	}
	return n, nil
}

// sqsChoice returns an attribute that is one of some texts, of which the first is the
// default.
func sqsChoice(name string, fifo bool, values ...string) sqsAttribute {
	return sqsAttribute{name: name, fifo: fifo,
		get: func(q *sqsQueue) string {
			if value := q.SQS.Attributes[name]; value != "" {
				return value
			}
			return values[0]
		},
		set: func(q *sqsQueue, value string) error {
			for _, v := range values {
				if strings.EqualFold(v, value) {
					q.keep(name, v)
					return nil
				}
			}
			return sqsInvalidAttribute.errorf("Invalid value for the parameter %s.", name)
		},
	}
}

// maxSQSText is the maximum length of an attribute that is a text, in bytes.
const maxSQSText = 64 << 10

// sqsText returns an attribute that is returned as it was set, and that can be removed.
func sqsText(name string, check func(value string) error) sqsAttribute {
	return sqsAttribute{name: name,
		get: func(q *sqsQueue) string { return q.SQS.Attributes[name] },
		set: func(q *sqsQueue, value string) error {
			if value != "" {
				if !isSQSText(value) || len(value) > maxSQSText {
					return sqsInvalidAttribute.errorf("Invalid value for the parameter %s.", name)
				}
				if err := check(value); err != nil {
					return err
				}
			}
			q.keep(name, value)
			return nil
		},
	}
}

func isJSONObject(text string) bool {
	b := []byte(text)
	at := rawjson.SkipSpace(b, 0)
	return at < len(b) && b[at] == '{' && json.Valid(b)
}

// findSQSAttribute returns the attribute with a name, or nil.
func findSQSAttribute(name string) *sqsAttribute {
	if i := slices.IndexFunc(sqsAttributes, func(a sqsAttribute) bool { return a.name == name }); i >= 0 {
		return &sqsAttributes[i]
	}
	return nil
}

// setAttributes changes attributes of the queue.
func (q *sqsQueue) setAttributes(values []sqsEntry[string]) error {
	for _, v := range values {
		a := findSQSAttribute(v.key)
		switch {
		case a == nil || a.set == nil:
			return sqsUnknownAttribute(v.key)
		case a.name == "FifoQueue" && !q.isFIFO():
			return sqsInvalidAttribute.errorf("Modifying queue type is not supported.")
		case a.fifo && !q.isFIFO():
			return sqsUnknownAttribute(v.key)
		}
		if err := a.set(q, v.value); err != nil {
			return err
		}
	}
	return nil
}

func sqsUnknownAttribute(name string) error {
	return sqsInvalidAttributeName.errorf("Unknown Attribute %s.", name)
}

// different returns the name of the first attribute whose value is not the same in another
// queue, or an empty text. Policies are compared as JSON.
func (q *sqsQueue) different(other *sqsQueue, values []sqsEntry[string]) string {
	for _, v := range values {
		a := findSQSAttribute(v.key)
		if x, y := a.get(q), a.get(other); x != y && !(strings.HasSuffix(a.name, "Policy") && sameJSON(x, y)) {
			return a.name
		}
	}
	return ""
}

func sameJSON(x, y string) bool {
	var a, b any
	return json.Unmarshal([]byte(x), &a) == nil && json.Unmarshal([]byte(y), &b) == nil && reflect.DeepEqual(a, b)
}

// getAttributes returns the attributes with these names that are set, or all. A name of an
// attribute that queues of this type do not have is an error. It calls counts only for
// attributes that count messages.
func (q *sqsQueue) getAttributes(names []string, counts func() (messageCounts, error)) (all sqsMap, err error) {
	everything := slices.Contains(names, "All")
	for _, name := range names {
		if name == "All" || slices.ContainsFunc(sqsCounts, func(a sqsCount) bool { return a.name == name }) {
			continue
		}
		if a := findSQSAttribute(name); a == nil || a.fifo && !q.isFIFO() {
			return nil, sqsUnknownAttribute(name)
		}
	}
	for _, a := range sqsAttributes {
		if (everything || slices.Contains(names, a.name)) && (!a.fifo || q.isFIFO()) {
			if value := a.get(q); value != "" {
				all = append(all, sqsMember{a.name, value})
			}
		}
	}
	var c messageCounts
	counted := false
	for _, a := range sqsCounts {
		if !everything && !slices.Contains(names, a.name) {
			continue
		}
		if !counted {
			if c, err = counts(); err != nil {
				return nil, err
			}
			counted = true
		}
		all = append(all, sqsMember{a.name, strconv.FormatInt(a.of(c), 10)})
	}
	return all, nil
}

// redrivePolicy returns the dead queue and the maximum number of deliveries in the form
// that tools compare with.
func (q *sqsQueue) redrivePolicy() string {
	if q.DeadQueueID == nil {
		return ""
	}
	return `{"deadLetterTargetArn":"` + q.arn(*q.DeadQueueID) + `","maxReceiveCount":` + strconv.Itoa(zeroIfNil(q.MessageMaxDeliveries)) + `}`
}

// setRedrivePolicy sets the dead queue. The caller checks that it may be one, with
// checkDeadQueue.
func (q *sqsQueue) setRedrivePolicy(value string) error {
	if value == "" {
		q.DeadQueueID, q.MessageMaxDeliveries = nil, nil
		return nil
	}
	invalid := func(format string, args ...any) error {
		return sqsInvalidValue(value, "RedrivePolicy", format, args...)
	}
	if !isJSONObject(value) {
		return invalid("Redrive policy is not a valid JSON map.")
	}
	policy := &sqsInput{}
	policy.root = policy
	policy.readObject([]byte(value)[rawjson.SkipSpace([]byte(value), 0):])
	for _, name := range []string{"deadLetterTargetArn", "maxReceiveCount"} {
		if !policy.has(name) {
			return invalid("Redrive policy does not contain mandatory attribute: %s.", name)
		}
	}
	arn := policy.text("deadLetterTargetArn")
	text, _ := policy.find("maxReceiveCount")
	if text[0] == '"' {
		text = []byte(rawjson.Unquote(text))
	}
	name := sqsNameOf(arn)
	n, ok := parseInteger(string(text))
	switch {
	case !ok || n < 1 || n > 1000:
		return invalid("Invalid value for maxReceiveCount: %s, valid values are from 1 to 1000 both inclusive.", text)
	case policy.err() != nil || !strings.HasPrefix(arn, "arn:") || !validID(name):
		return invalid("Invalid value for deadLetterTargetArn.")
	}
	q.DeadQueueID, q.MessageMaxDeliveries = &name, &n
	return nil
}

// redriveAllowPolicy is the value of the attribute of that name.
type redriveAllowPolicy struct {
	Permission string   `json:"redrivePermission"`
	Sources    []string `json:"sourceQueueArns"`
}

// Limits of a redriveAllowPolicy.
const maxSQSSources = 10

func checkRedriveAllowPolicy(value string) error {
	invalid := func(text string) error { return sqsInvalidValue(value, "RedriveAllowPolicy", "%s", text) }
	var v redriveAllowPolicy
	if !isJSONObject(value) || json.Unmarshal([]byte(value), &v) != nil {
		return invalid("Redrive allow policy is not a valid JSON map.")
	}
	switch v.Permission {
	case "allowAll", "denyAll":
		if len(v.Sources) > 0 {
			return invalid("sourceQueueArns is only allowed with redrivePermission byQueue.")
		}
	case "byQueue":
		if len(v.Sources) < 1 || len(v.Sources) > maxSQSSources {
			return invalid("sourceQueueArns must have 1 to 10 ARNs.")
		}
	default:
		return invalid("redrivePermission must be allowAll, denyAll or byQueue.")
	}
	return nil
}

// checkDeadQueue returns an error unless the dead queue of the queue exists, is of the same
// type, and allows the queue to move messages to it.
func (s *server) checkDeadQueue(ctx context.Context, q *sqsQueue) error {
	if q.DeadQueueID == nil {
		return nil
	}
	invalid := func(text string) error { return sqsInvalidValue(q.redrivePolicy(), "RedrivePolicy", "%s", text) }
	found, err := s.store.queue(ctx, *q.DeadQueueID)
	if errors.Is(err, errQueueNotFound) {
		return invalid("Dead letter target does not exist.")
	} else if err != nil {
		return err
	}
	dead := &sqsQueue{found, q.arn}
	if dead.isFIFO() != q.isFIFO() {
		if q.isFIFO() {
			return invalid("Dead-letter queue must be same type of queue as the source. A FIFO queue needs a FIFO queue.")
		}
		return invalid("Dead-letter queue must be same type of queue as the source.")
	}
	var allows redriveAllowPolicy
	json.Unmarshal([]byte(dead.SQS.Attributes["RedriveAllowPolicy"]), &allows)
	isSource := slices.ContainsFunc(allows.Sources, func(arn string) bool { return sqsNameOf(arn) == q.ID })
	if allows.Permission == "denyAll" || allows.Permission == "byQueue" && !isSource {
		return invalid("The RedriveAllowPolicy of the dead-letter queue does not allow this queue.")
	}
	return nil
}
