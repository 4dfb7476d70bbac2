package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/lib/pq"

	"queued/internal/rawjson"
)

// publication is one request to publish and, after its turn in the lane, the
// answer to it. It goes to a topic, or straight to a queue: one of the two is set.
type publication struct {
	topicID  string
	queueID  string
	trace    trace // of all its messages
	messages []draft
	acks     []ackItem // messages to ack in the same commit

	address address // as of the last look at the topic

	stored []message // in the order sent, copies of one in order of queue id; nil until then
	err    error
}

// draft is a message that is to be published.
type draft struct {
	data       []byte         // JSON as sent
	attributes []byte         // JSON as sent; nil if there are none
	group      string         // empty if it has none
	delay      *time.Duration // in place of the queue's
	job        *job           // nil if it is none; one that is is published alone, to a queue
}

// maxCopies is the most messages that one request may make.
const maxCopies = 100_000

var errTooManyCopies = fmt.Errorf("too many message copies: a request may create at most %d", maxCopies)

// errNeverDue says that a message would expire in a queue before it is due there.
type errNeverDue struct {
	message int // its place in the publication
	queueID string
}

func (e errNeverDue) Error() string {
	return fmt.Sprintf("the message would expire in queue %q before it is due; use a delay shorter than the queue's retention", e.queueID)
}

// directory is what is known of the queues of topics, for those who match messages
// with filters before they wait for their turn: a large filter, or a large batch, is
// to take the time of its own request. It may be out of date, which shows in the
// lane.
type directory struct {
	mu      sync.Mutex
	byTopic map[string]*subscribers
}

// of returns the queues of a topic, nil if they are not known.
func (d *directory) of(topicID string) *subscribers {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byTopic[topicID]
}

// share makes known what was read of a topic. It returns the same queues, but as
// others know them if nothing of them has changed.
func (d *directory) share(topicID string, read *subscribers) *subscribers {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.byTopic[topicID]
	if known == read || known != nil && slices.EqualFunc(known.queues, read.queues, subscription.equal) {
		return known
	}
	if d.byTopic == nil || len(d.byTopic) >= settingsKept {
		d.byTopic = make(map[string]*subscribers)
	}
	d.byTopic[topicID] = read
	return read
}

// publish stores, in one commit, one copy of each message for each queue of the
// topic whose filter matches, or one for the queue, and wakes the receivers.
func (e *engine) publish(ctx context.Context, p *publication) ([]message, error) {
	size := 0
	for _, m := range p.messages {
		size += len(m.data) + len(m.attributes)
	}
	for range settingsAttempts {
		if to := e.directory.of(p.topicID); to != nil && to != p.address.to {
			if err := p.match(ctx, to); err != nil {
				return nil, err
			}
		}
		err := e.publications.do(ctx, p, len(p.messages)+len(p.acks), size)
		if err != nil && (ctx.Err() != nil || p.stored == nil) {
			return nil, err
		}
		if p.stored != nil || p.err != nil {
			return p.stored, p.err
		}
		// The queues of the topic were not known, or have changed.
	}
	return nil, asUnavailable(errStale)
}

// runPublications stores what a batch of publications makes: in one statement,
// or in several if there are many copies, but each publication whole in one. It
// leaves alone those that an earlier run of the batch has stored, and those that were
// matched with other queues than the topic has now.
func (e *engine) runPublications(s *pinnedConn, batch []*publication) error {
	for range settingsAttempts {
		if err := e.insertPublications(s, batch); !errors.Is(err, errStale) {
			return err
		}
		s.settings = settings{}
	}
	return errStale
}

// insertPublications is runPublications with the settings that s remembers. It returns
// errStale if they have changed.
func (e *engine) insertPublications(s *pinnedConn, batch []*publication) error {
	if err := s.readDestinations(batch); err != nil {
		return err
	}
	var matched, acking, jobs []*publication
	var messages []outgoing
	copies := 0
	insert := func() error {
		if len(matched) == 0 {
			return nil
		}
		began := time.Now()
		stored, readyAt, err := s.insert(messages)
		if errors.Is(err, errStale) {
			return err
		}
		// Even if it failed: an unknown outcome may be that they are stored.
		e.wakePublished(messages, stored, readyAt)
		if time.Since(began) > watermarkMargin/2 {
			// Claims at other servers may have passed the rows, which are due since the
			// statement began. They shall know before the publisher goes on, or what it
			// publishes next would be received first.
			e.notifier.sendNow(s)
		}
		if err != nil {
			return err
		}
		e.finishPublications(matched, stored)
		matched, messages, copies = nil, nil, 0
		return nil
	}
	for _, p := range batch {
		if p.stored != nil {
			continue
		}
		p.err = e.readdress(p, &s.settings)
		if p.err != nil || p.address.to == nil {
			continue
		}
		n := p.address.copies
		if p.messages[0].job != nil {
			jobs = append(jobs, p)
			continue
		}
		if len(p.acks) > 0 {
			acking = append(acking, p)
			continue
		}
		if copies > 0 && copies+n > publishRows {
			if err := insert(); err != nil {
				return err
			}
		}
		matched = append(matched, p)
		messages = p.appendOutgoing(messages)
		copies += n
	}
	if err := insert(); err != nil {
		return err
	}
	if err := e.publishAndAck(s, acking); err != nil {
		return err
	}
	return e.storeJobs(s, jobs)
}

// finishPublications returns the stored copies of messages to the publications that
// they belong to, and counts them.
func (e *engine) finishPublications(all []*publication, stored [][]message) {
	counts := make(map[string]int, 1)
	for _, p := range all {
		p.stored, p.err = slices.Concat(stored[:len(p.messages)]...), nil // an earlier run may have missed the topic
		if p.stored == nil {
			p.stored = []message{}
		}
		for _, m := range p.stored {
			counts[m.QueueID]++
		}
		stored = stored[len(p.messages):]
	}
	for queueID, n := range counts {
		e.metrics.add(messagesPublished, queueID, n)
	}
}

// readDestinations makes s remember where the publications of a batch go to.
func (s *pinnedConn) readDestinations(batch []*publication) error {
	for range settingsAttempts {
		resets := s.settings.resets
		topics, queues := map[string]bool{}, map[string]bool{}
		for _, p := range batch {
			if _, known := s.settings.queues[p.queueID]; p.queueID != "" && !known {
				queues[p.queueID] = true
			}
			if _, known := s.settings.topics[p.topicID]; p.topicID != "" && !known {
				topics[p.topicID] = true
			}
		}
		if err := s.readSubscriptions(slices.Collect(maps.Keys(topics))); err != nil {
			return err
		}
		if err := s.readNamed(slices.Collect(maps.Keys(queues))); err != nil {
			return err
		}
		if s.settings.resets == resets { // else some that was known is forgotten
			return nil
		}
	}
	return errStale
}

// address says which queues each message of a publication goes to.
type address struct {
	to     *subscribers // nil: that is not known yet
	queues [][]int32    // for each message their places among them
	copies int
	err    error // why it cannot go there
}

// match addresses a publication to those of the queues whose filters match. It
// returns the error of ctx if that ends.
func (p *publication) match(ctx context.Context, to *subscribers) error {
	v := address{to: to, queues: make([][]int32, len(p.messages))}
	var all []int32
	met := make([]int32, len(to.queues))
	for i, m := range p.messages {
		if err := ctx.Err(); err != nil {
			return err
		}
		first := len(all)
		all = to.match(m.attributes, met, all)
		for _, place := range all[first:] {
			if queue := to.queues[place]; v.err == nil && m.delayIn(queue) >= queue.retention {
				v.err = errNeverDue{i, queue.queueID}
			}
		}
		if len(all) > maxCopies {
			v.err = errTooManyCopies
			break
		}
		v.queues[i] = all[first:]
	}
	v.copies = len(all)
	p.address = v
	return nil
}

// delayIn returns for how long the message is hidden in a queue.
func (m *draft) delayIn(queue subscription) time.Duration {
	if m.delay != nil {
		return *m.delay
	}
	return queue.delay
}

// readdress makes sure that the address of a publication is as the settings say, or
// forgets it: then its request has to match it anew. It returns why the publication
// cannot go there.
func (e *engine) readdress(p *publication, v *settings) error {
	if p.queueID != "" {
		to, found := v.queues[p.queueID]
		if !found {
			return errQueueNotFound
		}
		if err := p.match(context.Background(), to); err != nil { // quick, without filters
			return err
		}
		return p.address.err
	}
	to, found := v.topics[p.topicID]
	if !found {
		return errTopicNotFound
	}
	to = e.directory.share(p.topicID, to)
	v.topics[p.topicID] = to
	if p.address.to != to {
		p.address = address{}
	}
	return p.address.err
}

// appendOutgoing appends the messages of a publication with the queues that each
// goes to.
func (p *publication) appendOutgoing(messages []outgoing) []outgoing {
	all := p.address.to.queues
	for i, m := range p.messages {
		to := all
		if places := p.address.queues[i]; m.delay != nil || len(places) < len(all) {
			to = make([]subscription, len(places))
			for j, place := range places {
				to[j] = all[place]
				to[j].delay = m.delayIn(to[j])
			}
		}
		messages = append(messages, outgoing{data: m.data, attributes: m.attributes, group: m.group, trace: p.trace, to: to})
	}
	return messages
}

// wakePublished wakes the receivers of the queues that messages go to, but of those
// with a group only where one is ready sooner than it was. Without stored, what
// became of the messages is unknown and they count as due now.
func (e *engine) wakePublished(messages []outgoing, stored [][]message, readyAt map[int64]time.Time) {
	dueAt := make(map[string]time.Time, 1)
	for i, m := range messages {
		for j, to := range m.to {
			var at time.Time
			if stored != nil && m.group != "" {
				ready, sooner := readyAt[stored[i][j].queueKey]
				if !sooner {
					continue
				}
				at = ready
			} else if stored != nil {
				at = stored[i][j].ScheduledAt.Time
			}
			if earliest, seen := dueAt[to.queueID]; !seen || at.Before(earliest) {
				dueAt[to.queueID] = at
			}
		}
	}
	for queueID, at := range dueAt {
		e.announce(queueID, at)
	}
}

// subscription is a queue that messages go to.
type subscription struct {
	queueID   string
	queueKey  int64
	filters   filters
	retention time.Duration
	delay     time.Duration
}

func (v subscription) equal(w subscription) bool {
	return v.queueID == w.queueID && v.queueKey == w.queueKey && v.retention == w.retention && v.delay == w.delay && (v.filters == nil) == (w.filters == nil) && bytes.Equal(v.filters, w.filters)
}

// subscribers are the queues of a topic, in order of their ids, or one that is named.
// They do not change: after a change of settings others take their place.
type subscribers struct {
	queues  []subscription
	compile sync.Once
	matcher *matcher
}

// match is that of the matcher of the queues, which is made for the first message.
func (v *subscribers) match(attributes []byte, met, to []int32) []int32 {
	v.compile.Do(func() {
		all := make([]filters, len(v.queues))
		for i, queue := range v.queues {
			all[i] = queue.filters
		}
		v.matcher = newMatcher(all)
	})
	return v.matcher.match(attributes, met, to)
}

const selectSubscriptionsSQL = `
SELECT s.version, t.id, q.id, q.key, q.message_filters, q.message_retention_seconds, coalesce(q.delivery_delay_seconds, 0)
FROM queued.settings s
CROSS JOIN queued.topics t
LEFT JOIN queued.queues q ON q.topic_id = t.id
WHERE t.id = ANY($1::text[])
ORDER BY t.id, q.id`

// readSubscriptions makes s remember the queues of each of the topics, in order
// of their ids, but not of unknown topics.
func (s *pinnedConn) readSubscriptions(topicIDs []string) error {
	if len(topicIDs) == 0 {
		return nil
	}
	found := make(map[string]*subscribers, len(topicIDs))
	versions, err := read(s, "subscriptions", func(row scanner) (version int64, err error) {
		var topicID string
		var queueID sql.NullString
		var queueKey, retention, delay sql.NullInt64
		var raw []byte
		if err := row.Scan(&version, &topicID, &queueID, &queueKey, &raw, &retention, &delay); err != nil {
			return 0, err
		}
		if found[topicID] == nil {
			found[topicID] = &subscribers{}
		}
		if queueID.Valid {
			found[topicID].queues = append(found[topicID].queues, subscription{
				queueID:   queueID.String,
				queueKey:  queueKey.Int64,
				filters:   parseFilters(raw),
				retention: time.Duration(retention.Int64) * time.Second,
				delay:     time.Duration(delay.Int64) * time.Second,
			})
		}
		return version, nil
	}, selectSubscriptionsSQL, textArray(topicIDs))
	if err != nil || len(versions) == 0 {
		return err
	}
	s.settings.at(versions[0])
	maps.Copy(s.settings.topics, found)
	return nil
}

const selectNamedSQL = `
SELECT s.version, q.id, q.key, q.message_retention_seconds, coalesce(q.delivery_delay_seconds, 0)
FROM queued.settings s
CROSS JOIN queued.queues q
WHERE q.id = ANY($1::text[])`

// readNamed makes s remember queues by their ids, as destinations, but not
// unknown ones.
func (s *pinnedConn) readNamed(queueIDs []string) error {
	if len(queueIDs) == 0 {
		return nil
	}
	found := make(map[string]*subscribers, len(queueIDs))
	versions, err := read(s, "named_queues", func(row scanner) (version int64, err error) {
		var v subscription
		var retention, delay int64
		err = row.Scan(&version, &v.queueID, &v.queueKey, &retention, &delay)
		v.retention, v.delay = time.Duration(retention)*time.Second, time.Duration(delay)*time.Second
		found[v.queueID] = &subscribers{queues: []subscription{v}}
		return version, err
	}, selectNamedSQL, textArray(queueIDs))
	if err != nil || len(versions) == 0 {
		return err
	}
	s.settings.at(versions[0])
	maps.Copy(s.settings.queues, found)
	return nil
}

// errStale says that settings which a statement relied on have changed, and that
// it did nothing.
var errStale = errors.New("topic and queue settings change too often")

// insertCopiesSQL inserts the copies of messages, whose payloads are sent once however
// many copies there are. LATERAL leaves the planner no choice: rows are inserted, and so
// numbered, in the order of the arrays. Arrays of what few messages have end with the last
// that has it. Rows for a queue that is deleted at the same time are never delivered, and
// the cleanup deletes them.
const insertCopiesSQL = `
    INSERT INTO queued.messages (id, queue_key, group_id, data, attributes, bytes, trace, expired_at, scheduled_at, created_at, updated_at)
    SELECT ($6::uuid[])[n], ($7::bigint[])[n], p.group_id, p.data, p.attributes, p.bytes, p.trace,
           now() + make_interval(secs => ($8::integer[])[n]),
           now() + make_interval(secs => ($9::integer[])[n]),
           now(), now()
    FROM unnest($1::json[], $2::json[], $3::integer[], $4::integer[], $5::integer[], $11::json[], $12::text[])
        AS p (data, attributes, bytes, first, last, trace, group_id)
    CROSS JOIN LATERAL generate_series(p.first, p.last) AS n
    WHERE (SELECT version FROM queued.settings) = $10`

const insertMessagesSQL = `
WITH inserted AS (` + insertCopiesSQL + `
    RETURNING seq
)
SELECT now(), array_agg(seq), (SELECT version FROM queued.settings) = $10
FROM inserted`

// insertGroupedSQL is insertMessagesSQL for messages of which some have a group. It also
// returns the queues of groups that are checked earlier for it, and in how many
// microseconds.
const insertGroupedSQL = `
WITH inserted AS (` + insertCopiesSQL + `
    RETURNING seq, queue_key, group_id, scheduled_at AS due_at
), woken AS (
    SELECT queue_key, group_id, due_at, seq
    FROM inserted
    WHERE group_id IS NOT NULL
), groups AS (` + wakeGroupsSQL + `
)
SELECT now(), array_agg(seq), (SELECT version FROM queued.settings) = $10,
       (SELECT array_agg(queue_key) FROM groups),
       (SELECT array_agg((extract(epoch FROM ready_at - now()) * 1000000)::bigint) FROM groups)
FROM inserted`

// outgoing is a message to be published and the queues that get it.
type outgoing struct {
	data       []byte
	attributes []byte // nil if there are none
	group      string // empty if it has none
	trace      trace
	to         []subscription
}

// insert stores all copies of all messages in one commit, and returns for each
// message its copies in the order of its queues: an empty slice, not nil, if it
// goes to none. Where groups are ready sooner than they were, it says when, by the
// key of their messages. It returns errStale if they go by settings that have changed.
func (s *pinnedConn) insert(messages []outgoing) ([][]message, map[int64]time.Time, error) {
	var payloads, attributes jsonArray
	var sizes, firsts, lasts, retentions, delays intArray
	var ids idArray
	var keys intArray
	var groups groupArray
	var traces jsonArray
	inserted := make([][]message, len(messages))
	n := 0
	for i, m := range messages {
		inserted[i] = make([]message, len(m.to))
		if len(m.to) == 0 {
			continue
		}
		traces.set(len(payloads), m.trace.json())
		groups.set(len(payloads), m.group)
		payloads, attributes = append(payloads, m.data), append(attributes, m.attributes)
		sizes = append(sizes, int64(len(m.data)+len(m.attributes)))
		firsts, lasts = append(firsts, int64(n+1)), append(lasts, int64(n+len(m.to)))
		n += len(m.to)
		for j, to := range m.to {
			inserted[i][j] = message{ID: newID(), QueueID: to.queueID, Data: m.data, Attributes: m.attributes, Group: m.group, trace: m.trace, queueKey: to.queueKey}
			ids = append(ids, inserted[i][j].ID)
			keys = append(keys, to.queueKey)
			retentions = append(retentions, int64(to.retention/time.Second))
			delays = append(delays, int64(to.delay/time.Second))
		}
	}
	type outcome struct {
		createdAt timestamp // the same for all: they share a statement
		seqs      pq.Int64Array
		current   bool
		readyKeys pq.Int64Array // queues of groups that are checked earlier
		readyIn   pq.Int64Array // for each, in how many microseconds
	}
	name, statement := "insert", insertMessagesSQL
	args := []any{payloads, attributes, sizes, firsts, lasts, ids, keys, retentions, delays, s.settings.version, traces, groups}
	if len(groups) > 0 {
		name, statement = "insert_grouped", insertGroupedSQL
	}
	outcomes, err := read(s, name, func(row scanner) (o outcome, err error) {
		columns := []any{&o.createdAt, &o.seqs, &o.current}
		if len(groups) > 0 {
			columns = append(columns, &o.readyKeys, &o.readyIn)
		}
		err = row.Scan(columns...)
		return o, err
	}, statement, args...)
	if err != nil {
		return nil, nil, err
	}
	if !outcomes[0].current {
		return nil, nil, errStale
	}
	seqs := outcomes[0].seqs
	slices.Sort(seqs) // the rows are numbered in their order, and aggregated in any
	if len(seqs) != n {
		return nil, nil, fmt.Errorf("insert: %d of %d rows", len(seqs), n)
	}
	createdAt := outcomes[0].createdAt
	for i, m := range messages {
		for j, to := range m.to {
			v := &inserted[i][j]
			v.seq, seqs = seqs[0], seqs[1:]
			v.CreatedAt, v.UpdatedAt = createdAt, createdAt
			v.ScheduledAt = timestamp{createdAt.Add(to.delay)}
			v.ExpiredAt = timestamp{createdAt.Add(to.retention)}
		}
	}
	readyAt := make(map[int64]time.Time)
	for i, key := range outcomes[0].readyKeys {
		at := createdAt.Add(time.Duration(outcomes[0].readyIn[i]) * time.Microsecond)
		if earliest, seen := readyAt[key]; !seen || at.Before(earliest) {
			readyAt[key] = at
		}
	}
	return inserted, readyAt, nil
}

// draft reads a message that is to be published.
func (f *form) draft(l *limits) draft {
	m := draft{data: f.object("data", true), attributes: f.attributes("attributes"), group: f.group("group")}
	if int64(len(m.data)+len(m.attributes)) > l.maxBody {
		f.addMistake(fmt.Sprintf("ensure data and attributes have at most %d bytes", l.maxBody), "value_error.size", "data")
	}
	if n := f.integer("delay_seconds", bounds{0, l.deliveryDelay.max}, false); n != nil {
		delay := time.Duration(*n) * time.Second
		m.delay = &delay
	}
	return m
}

// maxGroup is the longest id of a group, in bytes.
const maxGroup = 256

// group reads the id of a group; empty if it is null or missing.
func (f *form) group(name string) string {
	raw := f.value(name, false)
	if raw == nil {
		return ""
	}
	if raw[0] != '"' {
		f.addMistake("str type expected", "type_error.str", name)
		return ""
	}
	id := rawjson.Unquote(raw)
	if msg, kind := groupMistake(id); msg != "" {
		f.addMistake(msg, kind, name)
		return ""
	}
	if msg := pathMistake(id); msg != "" {
		f.addMistake(msg, "value_error", name)
		return ""
	}
	return id
}

// groupMistake says what is wrong with the id of a group, and of what type that is.
func groupMistake(id string) (msg, kind string) {
	switch {
	case id == "":
		return "ensure this value has at least 1 characters", "value_error.any_str.min_length"
	case len(id) > maxGroup:
		return fmt.Sprintf("ensure this value has at most %d bytes", maxGroup), "value_error.any_str.max_length"
	case !utf8.ValidString(id) || strings.ContainsRune(id, 0):
		return "the text must be UTF-8 without \\u0000", "value_error.unicode"
	}
	return "", ""
}

// attributes reads an object of strings, as sent but for what is not a string and
// becomes one; nil if it is null or missing.
func (f *form) attributes(name string) []byte {
	raw := f.object(name, false)
	if raw == nil {
		return nil
	}
	plain := true
	rawjson.WalkObject(raw, func(key string, value []byte) {
		f.checkText(value, name, key)
		plain = plain && value[0] == '"'
	})
	if plain {
		return raw
	}
	return quoteScalars(raw)
}
