package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/lib/pq"
)

// publication is a request to publish to a topic or to a queue: one of the two is set. The
// batcher sets its results.
type publication struct {
	topicID  string
	queueID  string
	trace    trace // of all its messages
	messages []draft
	acks     []ackItem // messages to ack in the same commit
	version  int64     // of the settings of the queue that the request was checked against; 0 for none

	address address // by the queues that the topic had when it was last read

	stored []message // in the order sent, copies of a message by queue id; nil before they are stored
	err    error
}

// maxCopies is the maximum number of message copies of a request.
const maxCopies = 100_000

var errTooManyCopies = fmt.Errorf("too many message copies: a request may create at most %d", maxCopies)

// directory caches the queues of topics. Requests match their messages with the filters of
// these queues before they enter the batcher, so that a large filter or batch costs time
// of its own request only. The cache may be out of date; the batch checks that.
type directory struct {
	mu      sync.Mutex
	byTopic map[string]*subscribers
}

// of returns the queues of a topic, or nil if they are not cached.
func (d *directory) of(topicID string) *subscribers {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byTopic[topicID]
}

// share caches the queues of a topic that were just read. If they are equal to the cached
// ones, it returns those instead, so that equal queues have the same address.
func (d *directory) share(topicID string, read *subscribers) *subscribers {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.byTopic[topicID]
	if known == read || known != nil && reflect.DeepEqual(known.queues, read.queues) {
		return known
	}
	if d.byTopic == nil || len(d.byTopic) >= settingsKept {
		d.byTopic = make(map[string]*subscribers)
	}
	d.byTopic[topicID] = read
	return read
}

// publish stores a copy of each message for each queue of the topic whose filters match, or
// for the queue, all in one commit. It wakes the receivers.
func (e *engine) publish(ctx context.Context, p *publication) ([]message, error) {
	size, deduplicates := 0, false
	for _, m := range p.messages {
		size += len(m.data) + len(m.attributes) + len(m.sqs)
		deduplicates = deduplicates || m.deduplicationID != ""
	}
	for range settingsAttempts {
		if to := e.directory.of(p.topicID); to != nil && to != p.address.to {
			if err := p.match(ctx, to); err != nil {
				return nil, err
			}
		}
		n, err := e.nodeForPublication(p)
		if err != nil {
			return nil, err
		}
		publications := n.publications
		if deduplicates {
			publications = n.deduplicated
		}
		err = publications.do(ctx, p, len(p.messages)+len(p.acks), size)
		if err != nil && (ctx.Err() != nil || p.stored == nil) {
			return nil, n.explain(err)
		}
		if p.stored != nil || p.err != nil {
			return p.stored, p.err
		}
		// The queues of the topic were not known, or have changed.
	}
	return nil, asUnavailable(errStale)
}

// runPublications stores the copies of a batch of publications, in one statement or, if
// there are many copies, in several. Each publication is stored in one statement. It skips
// publications that an earlier run of the batch has stored, and publications that were
// matched with other queues than the topic has now.
func (e *engine) runPublications(s *pinnedConn, batch []*publication) error {
	return s.untilCurrent(func() error { return e.insertPublications(s, batch) })
}

// insertPublications is runPublications with the settings that s has cached. It returns
// errStale if they have changed.
func (e *engine) insertPublications(s *pinnedConn, batch []*publication) error {
	if err := s.readDestinations(batch); err != nil {
		return err
	}
	var matched, acking, jobs []*publication
	refused := false // whether a publication was refused because a queue is full
	insert := func(part []*publication) error {
		var messages []outgoing
		for _, p := range part {
			messages = p.appendOutgoing(messages)
		}
		began := time.Now()
		stored, readyAt, err := s.insert(messages)
		if errors.Is(err, errStale) {
			return err
		}
		// After an error the outcome may be unknown, and the messages may be stored.
		e.wakePublished(messages, stored, readyAt)
		if time.Since(began) > slowPublish {
			// The rows are due since the start of the statement, so claims of other servers
			// may already scan from a later time. They are notified before the publisher
			// gets its response. Otherwise its next message could be received first.
			e.notifyNow(s)
		}
		if err != nil {
			return err
		}
		e.finishPublications(part, stored)
		return nil
	}
	for _, p := range batch {
		if p.stored != nil {
			continue
		}
		p.err = e.readdress(s, p)
		refused = refused || isFull(p.err)
		if p.err != nil || p.address.to == nil {
			continue
		}
		switch {
		case p.messages[0].job != nil:
			jobs = append(jobs, p)
		case len(p.acks) > 0:
			acking = append(acking, p)
		default:
			matched = append(matched, p)
		}
	}
	for _, part := range s.divide(matched) {
		if err := insert(part); err != nil {
			return err
		}
	}
	if err := e.publishAndAck(s, acking); err != nil {
		return err
	}
	if err := e.storeJobs(s, jobs); err != nil || !refused {
		return err
	}
	return s.checkCurrent()
}

// divide returns publications in parts that share a statement each: up to publishRows copies,
// and of one home, or of several homes each.
func (s *pinnedConn) divide(all []*publication) (parts [][]*publication) {
	home := func(*publication) int64 { return 0 }
	if s.homes.areSeveral() {
		home = (*publication).home
	}
	for _, together := range byHome(all, home) {
		for len(together) > 0 {
			n, copies := 1, together[0].address.copies
			for n < len(together) && copies+together[n].address.copies <= publishRows {
				copies += together[n].address.copies
				n++
			}
			parts, together = append(parts, together[:n]), together[n:]
		}
	}
	return parts
}

// home returns the home of a publication, or -1 if it has several.
func (p *publication) home() int64 {
	home, known := int64(0), false
	for _, places := range p.address.queues {
		for _, place := range places {
			at := homeOf(p.address.to.queues[place].queueKey)
			if known && at != home {
				return -1
			}
			home, known = at, true
		}
	}
	return home
}

// finishPublications sets the stored copies of each publication, and counts them.
func (e *engine) finishPublications(all []*publication, stored [][]message) {
	counts := make(map[string]int, 1)
	var duplicates map[string]int
	for _, p := range all {
		if p.address.retention > 0 {
			e.expiries.add(p.address.retention)
		}
		p.stored, p.err = slices.Concat(stored[:len(p.messages)]...), nil // an earlier run may not have found the topic
		if p.stored == nil {
			p.stored = []message{}
		}
		for _, m := range p.stored {
			if !m.duplicate {
				counts[m.QueueID]++
				continue
			}
			if duplicates == nil {
				duplicates = make(map[string]int)
			}
			duplicates[m.QueueID]++
		}
		stored = stored[len(p.messages):]
	}
	for queueID, n := range counts {
		e.metrics.add(messagesPublished, queueID, n)
	}
	for queueID, n := range duplicates {
		e.metrics.add(messagesDuplicate, queueID, n)
	}
}

// readDestinations reads the topics and queues of a batch that s has not cached.
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
		// Another connection, maybe to another node, may know newer settings. If both only
		// compared their queues, the publication would go back and forth between them.
		if slices.ContainsFunc(batch, func(p *publication) bool {
			_, known := s.settings.topics[p.topicID]
			return p.version > s.settings.version || known && p.address.to != nil && p.address.to.version > s.settings.version
		}) {
			return errStale
		}
		if s.settings.resets == resets { // otherwise entries that were cached have been cleared
			return nil
		}
	}
	return errStale
}

// address has the queues of each message of a publication.
type address struct {
	to     *subscribers // nil if the queues are not known yet
	queues [][]int32    // for each message, indexes into the queues
	copies int

	scheduled bool          // a message has a due time
	retention time.Duration // the shortest retention of a message of its own; 0 if none has one

	err error // why it cannot be published to these queues
}

// match sets the address of a publication: for each message, the queues whose filters
// match. It returns the error of ctx if ctx ends.
func (p *publication) match(ctx context.Context, to *subscribers) error {
	v := address{to: to, queues: make([][]int32, len(p.messages))}
	var all []int32
	met := make([]int32, len(to.queues))
	for i, m := range p.messages {
		if err := ctx.Err(); err != nil {
			return err
		}
		v.scheduled = v.scheduled || !m.scheduledAt.IsZero()
		if m.retention > 0 && (v.retention == 0 || m.retention < v.retention) {
			v.retention = m.retention
		}
		first := len(all)
		all = to.match(m.attributes, met, all)
		for _, place := range all[first:] {
			if v.err == nil {
				v.err = m.neverDue(i, to.queues[place], time.Time{})
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

// readdress checks the address of a publication against the settings. If the queues of its
// topic have changed, it clears the address, and the request has to match again. It returns
// the error if the publication is impossible.
func (e *engine) readdress(s *pinnedConn, p *publication) error {
	v := &s.settings
	if p.queueID != "" {
		to, found := v.queues[p.queueID]
		if !found {
			return errQueueNotFound
		}
		if p.version != 0 && p.version != v.version {
			return errSettingsChanged
		}
		if err := p.match(context.Background(), to); err != nil { // quick, because there are no filters
			return err
		}
		e.homes.learn(p.queueID, to.queues[0].queueKey)
		return e.checkAddress(s, p)
	}
	to, found := v.topics[p.topicID]
	if !found {
		return errTopicNotFound
	}
	to = e.directory.share(p.topicID, to)
	v.topics[p.topicID] = to
	if p.address.to != to {
		p.address = address{}
		for _, queue := range to.queues {
			e.homes.learn(queue.queueID, queue.queueKey)
		}
	}
	return e.checkAddress(s, p)
}

// checkAddress returns why a publication is impossible: the error of its address, errQueueFull
// if one of its queues is full, or errNeverDue if a message is scheduled for a time after its
// expiry.
func (e *engine) checkAddress(s *pinnedConn, p *publication) error {
	if p.address.err != nil {
		return p.address.err
	}
	if p.address.to != nil && p.address.to.bounded {
		if err := e.checkCapacity(p); err != nil {
			return err
		}
	}
	if !p.address.scheduled {
		return nil
	}
	now, err := read(s, "now", func(row scanner) (now time.Time, err error) {
		err = row.Scan(&now)
		return now, err
	}, "SELECT now()")
	if err != nil {
		return asUnavailable(err)
	}
	for i, m := range p.messages {
		for _, place := range p.address.queues[i] {
			if err := m.neverDue(i, p.address.to.queues[place], now[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

// appendOutgoing appends the messages of a publication, each with its queues.
func (p *publication) appendOutgoing(messages []outgoing) []outgoing {
	all := p.address.to.queues
	for i, m := range p.messages {
		to := all
		if places := p.address.queues[i]; m.hasTimes() || len(places) < len(all) {
			to = make([]subscription, len(places))
			for j, place := range places {
				to[j] = m.in(all[place])
			}
		}
		messages = append(messages, outgoing{data: m.data, attributes: m.attributes, sqs: m.sqs, group: m.group, trace: p.trace, to: to, deduplicationID: m.deduplicationID})
	}
	return messages
}

// wakePublished wakes the receivers of the queues of messages. A message with a group wakes
// them only if its group is ready sooner than before. If stored is nil, the outcome is
// unknown, and the messages count as due now.
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

// subscription is a queue as a destination of messages.
type subscription struct {
	queueID   string
	queueKey  int64
	filters   filters
	retention time.Duration
	delay     time.Duration
	max       int64 // queues.max_messages; 0 for no limit
	fifo      bool  // it is a FIFO queue of SQS's API

	scheduledAt time.Time // of a message, in place of the delay; zero if it has none
}

// dueAt returns the due time of a message that was created at that time.
func (v *subscription) dueAt(createdAt time.Time) time.Time {
	switch {
	case v.scheduledAt.IsZero():
		return createdAt.Add(v.delay)
	case v.scheduledAt.Before(createdAt):
		return createdAt
	}
	return v.scheduledAt
}

// subscribers are the queues of a topic, in order of their ids, or the one queue of a
// publish to a queue. They are immutable: a change of settings replaces them.
type subscribers struct {
	queues  []subscription
	bounded bool  // a queue has a maximum number of messages
	version int64 // of the settings, when they were read; 0 for one queue
	compile sync.Once
	matcher *matcher
}

// match calls the matcher of the queues, which is created for the first message.
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
SELECT s.version, t.id, q.id, q.key, q.message_filters, q.message_retention_seconds, coalesce(q.delivery_delay_seconds, 0), coalesce(q.max_messages, 0),
       coalesce(q.ordered, false)
FROM queued.settings s
CROSS JOIN queued.topics t
LEFT JOIN queued.queues q ON q.topic_id = t.id
WHERE t.id = ANY($1::text[])
ORDER BY t.id, q.id`

// readSubscriptions caches the queues of topics in s, in order of their ids. Unknown topics
// are not cached.
func (s *pinnedConn) readSubscriptions(topicIDs []string) error {
	if len(topicIDs) == 0 {
		return nil
	}
	found := make(map[string]*subscribers, len(topicIDs))
	versions, err := read(s, "subscriptions", func(row scanner) (version int64, err error) {
		var topicID string
		var queueID sql.NullString
		var queueKey, retention, delay, most sql.NullInt64
		var raw []byte
		var ordered bool
		if err := row.Scan(&version, &topicID, &queueID, &queueKey, &raw, &retention, &delay, &most, &ordered); err != nil {
			return 0, err
		}
		if found[topicID] == nil {
			found[topicID] = &subscribers{version: version}
		}
		if queueID.Valid {
			found[topicID].queues = append(found[topicID].queues, subscription{
				queueID:   queueID.String,
				queueKey:  queueKey.Int64,
				filters:   parseFilters(raw),
				retention: time.Duration(retention.Int64) * time.Second,
				delay:     time.Duration(delay.Int64) * time.Second,
				max:       most.Int64,
				fifo:      isFIFO(queueID.String, ordered),
			})
			found[topicID].bounded = found[topicID].bounded || most.Int64 > 0
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
SELECT s.version, q.id, q.key, q.message_retention_seconds, coalesce(q.delivery_delay_seconds, 0), coalesce(q.max_messages, 0),
       coalesce(q.ordered, false)
FROM queued.settings s
LEFT JOIN queued.queues q ON q.id = ANY($1::text[])`

// readNamed caches queues in s, by their ids, as destinations. Unknown queues are not
// cached, but the version at which they are unknown is.
func (s *pinnedConn) readNamed(queueIDs []string) error {
	if len(queueIDs) == 0 {
		return nil
	}
	found := make(map[string]*subscribers, len(queueIDs))
	versions, err := read(s, "named_queues", func(row scanner) (version int64, err error) {
		var id sql.NullString // null if no queue was found
		var key, retention, delay, most sql.NullInt64
		var ordered bool
		err = row.Scan(&version, &id, &key, &retention, &delay, &most, &ordered)
		if id.Valid {
			found[id.String] = &subscribers{bounded: most.Int64 > 0, queues: []subscription{{
				queueID:   id.String,
				queueKey:  key.Int64,
				retention: time.Duration(retention.Int64) * time.Second,
				delay:     time.Duration(delay.Int64) * time.Second,
				max:       most.Int64,
				fifo:      isFIFO(id.String, ordered),
			}}}
		}
		return version, err
	}, selectNamedSQL, textArray(queueIDs))
	if err != nil || len(versions) == 0 {
		return err
	}
	s.settings.at(versions[0])
	maps.Copy(s.settings.queues, found)
	return nil
}

// errStale is the error of a statement whose cached settings have changed. The statement
// had no effect.
var errStale = errors.New("topic and queue settings change too often")

// errSettingsChanged is the error of a publication that was checked against settings that
// have changed since. Nothing was stored.
var errSettingsChanged = errors.New("settings of topics or queues have changed")

// insertCopiesSQL inserts the copies of messages. Each payload is sent once, for any number
// of copies. With LATERAL, rows are inserted, and therefore numbered, in the order of the
// arrays. The arrays of traces and groups may be shorter, and end with the last message that
// has one. Rows for a queue that is deleted at the same time are never delivered; the
// cleanup deletes them.
const insertCopiesSQL = copyColumnsSQL + selectCopiesSQL + dueAfterDelaySQL + fromPayloadsSQL + payloadColumnsSQL + whileCurrentSQL

// The parts of insertCopiesSQL. insertUncommonSQL has more between them.
const (
	copyColumnsSQL = `
    INSERT INTO queued.messages (home, id, queue_key, group_id, data, attributes, bytes, trace, expired_at, created_at, updated_at, scheduled_at`

	selectCopiesSQL = `)
    SELECT ($7::bigint[])[n] >> 48, ($6::uuid[])[n], ($7::bigint[])[n], p.group_id, p.data, p.attributes, p.bytes, p.trace,
           now() + make_interval(secs => ($8::integer[])[n]), now(), now(),
           `

	dueAfterDelaySQL = `now() + make_interval(secs => ($9::integer[])[n])`

	fromPayloadsSQL = `
    FROM unnest($1::json[], $2::json[], $3::integer[], $4::integer[], $5::integer[], $11::json[], $12::text[]`

	payloadColumnsSQL = `)
        AS p (data, attributes, bytes, first, last, trace, group_id`

	whileCurrentSQL = `)
    CROSS JOIN LATERAL generate_series(p.first, p.last) AS n
    WHERE (SELECT version FROM queued.settings) = $10`
)

const insertMessagesSQL = `
WITH inserted AS (` + insertCopiesSQL + `
    RETURNING seq
)
SELECT now(), array_agg(seq), (SELECT version FROM queued.settings) = $10
FROM inserted`

// insertGroupedSQL is insertMessagesSQL for messages of which some have a group. It also
// returns the queues of groups that will be checked earlier, and for each the number of
// microseconds until then.
const insertGroupedSQL = `
WITH inserted AS (` + insertCopiesSQL + afterCopiesSQL

// insertUncommonSQL is insertGroupedSQL for messages of which some have a due time ($13), or
// what only SQS's API has ($14). These arrays may be shorter, like that of groups.
const insertUncommonSQL = `
WITH inserted AS (` + copyColumnsSQL + `, sqs` + selectCopiesSQL +
	`CASE WHEN ($13::timestamptz[])[n] IS NULL THEN ` + dueAfterDelaySQL + ` ELSE greatest(now(), ($13::timestamptz[])[n]) END, p.sqs` +
	fromPayloadsSQL + `, $14::json[]` + payloadColumnsSQL + `, sqs` + whileCurrentSQL + afterCopiesSQL

const afterCopiesSQL = `
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

// outgoing is a message to publish, with its queues.
type outgoing struct {
	data       []byte
	attributes []byte // nil if there are none
	sqs        []byte // nil if there is nothing that only SQS's API has
	group      string // empty if it has none
	trace      trace
	to         []subscription
	ids        []string // of the copies; nil to generate them

	deduplicationID string // empty if it has none
}

// insert stores all copies of all messages in one commit. It returns the copies of each
// message in the order of its queues; the slice is empty, and not nil, if there are none. It
// also returns, by key of the queue, the time at which a group is ready if that is sooner
// than before. It returns errStale if the cached settings have changed.
func (s *pinnedConn) insert(messages []outgoing) ([][]message, map[int64]time.Time, error) {
	homes := []int64{0}
	if s.homes.areSeveral() {
		homes = homesOf(messages)
	}
	_, groups := groupsToLock(messages)
	if len(homes) == 1 && len(groups) == 0 {
		return s.insertIn(homes[0], messages)
	}
	var stored [][]message
	var readyAt map[int64]time.Time
	insert := func() (err error) {
		if err := s.lockGroups(groups); err != nil {
			return err
		}
		if len(homes) == 1 {
			stored, readyAt, err = s.insertIn(homes[0], messages)
		} else {
			stored, readyAt, err = s.insertInEach(homes, messages)
		}
		return err
	}
	if s.begun {
		err := insert()
		return stored, readyAt, err
	}
	err := s.transaction(insert)
	if err != nil {
		stored, readyAt = nil, nil
	}
	return stored, readyAt, err
}

// insertInEach is insert for copies of several homes.
func (s *pinnedConn) insertInEach(homes []int64, messages []outgoing) ([][]message, map[int64]time.Time, error) {
	stored, readyAt := make([][]message, len(messages)), make(map[int64]time.Time)
	for i, m := range messages {
		stored[i] = make([]message, len(m.to))
	}
	for _, home := range homes {
		all, ready, err := s.insertIn(home, onlyIn(home, messages))
		if err != nil {
			return nil, nil, err
		}
		maps.Copy(readyAt, ready)
		for i, m := range messages {
			for j, to := range m.to {
				if homeOf(to.queueKey) == home {
					stored[i][j], all[i] = all[i][0], all[i][1:]
				}
			}
		}
	}
	return stored, readyAt, nil
}

// homesOf returns the homes of all copies of messages, in order, and at least one.
func homesOf(messages []outgoing) (all []int64) {
	for _, m := range messages {
		for _, to := range m.to {
			all = append(all, homeOf(to.queueKey))
		}
	}
	if all == nil {
		return []int64{0}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// onlyIn returns messages without the copies of other homes.
func onlyIn(home int64, messages []outgoing) []outgoing {
	all := slices.Clone(messages)
	for i, m := range messages {
		all[i].to, all[i].ids = nil, nil
		for j, to := range m.to {
			if homeOf(to.queueKey) != home {
				continue
			}
			all[i].to = append(all[i].to, to)
			if m.ids != nil {
				all[i].ids = append(all[i].ids, m.ids[j])
			}
		}
	}
	return all
}

// insertIn is insert for copies of one home.
func (s *pinnedConn) insertIn(home int64, messages []outgoing) ([][]message, map[int64]time.Time, error) {
	var payloads, attributes jsonArray
	var sizes, firsts, lasts, retentions, delays intArray
	var ids idArray
	var keys intArray
	var groups quotedArray
	var traces, sqs jsonArray
	var times timeArray
	inserted := make([][]message, len(messages))
	n := 0
	for i, m := range messages {
		inserted[i] = make([]message, len(m.to))
		if len(m.to) == 0 {
			continue
		}
		traces.set(len(payloads), m.trace.json())
		groups.set(len(payloads), m.group)
		sqs.set(len(payloads), m.sqs)
		payloads, attributes = append(payloads, m.data), append(attributes, m.attributes)
		sizes = append(sizes, int64(len(m.data)+len(m.attributes)+len(m.sqs)))
		firsts, lasts = append(firsts, int64(n+1)), append(lasts, int64(n+len(m.to)))
		n += len(m.to)
		for j, to := range m.to {
			var id string
			if m.ids != nil {
				id = m.ids[j]
			} else {
				id = s.homes.newID(to.queueKey)
			}
			inserted[i][j] = message{ID: id, QueueID: to.queueID, Data: m.data, Attributes: m.attributes, Group: m.group, trace: m.trace, queueKey: to.queueKey}
			ids = append(ids, inserted[i][j].ID)
			keys = append(keys, to.queueKey)
			retentions = append(retentions, int64(to.retention/time.Second))
			delays = append(delays, int64(to.delay/time.Second))
			if !to.scheduledAt.IsZero() {
				times = append(append(times, make(timeArray, n-len(m.to)+j-len(times))...), to.scheduledAt)
			}
		}
	}
	type outcome struct {
		createdAt timestamp // the same for all, because they share a statement
		seqs      pq.Int64Array
		current   bool
		readyKeys pq.Int64Array // queues of groups that are checked earlier
		readyIn   pq.Int64Array // for each, the number of microseconds until then
	}
	name, statement := "insert", insertMessagesSQL
	args := []any{payloads, attributes, sizes, firsts, lasts, ids, keys, retentions, delays, s.settings.version, traces, groups}
	if len(groups) > 0 {
		name, statement = "insert_grouped", insertGroupedSQL
	}
	if len(times) > 0 || len(sqs) > 0 {
		name, statement, args = "insert_uncommon", insertUncommonSQL, append(args, times, sqs)
	}
	outcomes, err := readInHome(s, home, name, func(row scanner) (o outcome, err error) {
		columns := []any{&o.createdAt, &o.seqs, &o.current}
		if statement != insertMessagesSQL {
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
	slices.Sort(seqs) // the rows are numbered in order, but array_agg returns them in any order
	if len(seqs) != n {
		return nil, nil, fmt.Errorf("insert: %d of %d rows", len(seqs), n)
	}
	createdAt := outcomes[0].createdAt
	for i, m := range messages {
		for j, to := range m.to {
			v := &inserted[i][j]
			v.seq, seqs = seqs[0], seqs[1:]
			v.CreatedAt, v.UpdatedAt = createdAt, createdAt
			v.ScheduledAt = timestamp{to.dueAt(createdAt.Time)}
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
