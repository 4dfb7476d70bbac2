package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// Errors of the store and of the engine that callers distinguish.
var (
	errNotFound        = errors.New("not found")
	errTopicNotFound   = fmt.Errorf("topic %w", errNotFound)
	errQueueNotFound   = fmt.Errorf("queue %w", errNotFound)
	errMessageNotFound = fmt.Errorf("message %w", errNotFound)
	errGroupNotFound   = fmt.Errorf("group %w", errNotFound)

	errExists      = errors.New("already exists")
	errTopicExists = fmt.Errorf("topic %w", errExists)
	errQueueExists = fmt.Errorf("queue %w", errExists)

	// errUnavailable means that the database cannot be reached or cannot serve requests, or
	// that the outcome of a statement is unknown.
	errUnavailable = errors.New("database unavailable")
)

// topic is a destination of publishes.
type topic struct {
	ID        string    `json:"id"`
	CreatedAt timestamp `json:"created_at"`
}

// queue is a source of receives.
type queue struct {
	ID string `json:"id"`
	queueSettings
	CreatedAt timestamp `json:"created_at"`
	UpdatedAt timestamp `json:"updated_at"`

	key     int64 // these two are not set in lists
	version int64 // of the settings, when it was read
}

// queueStats counts the messages of a queue that could be received now.
type queueStats struct {
	NumUndeliveredMessages         int64 `json:"num_undelivered_messages"`
	OldestUnackedMessageAgeSeconds int64 `json:"oldest_unacked_message_age_seconds"`
}

// queueDetails has the queueStats, and counts of all messages in the queue and in its dead
// queue.
type queueDetails struct {
	queueStats
	Messages          messageCounts `json:"messages"`
	DeadQueueMessages *int64        `json:"dead_queue_messages"`
	Paused            bool          `json:"paused,omitempty"`
}

// messageCounts counts messages by state.
type messageCounts struct {
	Ready     int64 `json:"ready"`
	Delayed   int64 `json:"delayed"`
	InFlight  int64 `json:"in_flight"`
	Exhausted int64 `json:"exhausted"`
}

// total returns the number of messages in any state.
func (v *messageCounts) total() int64 { return v.Ready + v.Delayed + v.InFlight + v.Exhausted }

// countStatesSQL are the columns of messageCounts for rows with a state.
const countStatesSQL = `count(*) FILTER (WHERE state = 'ready') AS ready,
       count(*) FILTER (WHERE state = 'delayed') AS delayed,
       count(*) FILTER (WHERE state = 'in_flight') AS in_flight,
       count(*) FILTER (WHERE state = 'exhausted') AS exhausted`

// store executes the operations that are not frequent, such as creating a queue, on any
// connection of a pool. The engine executes the frequent ones.
type store struct {
	db      *sql.DB
	metrics *metrics
	homes   *homes
	recent  recentQueues
}

// on returns the database for one statement. name labels its metrics.
func (s *store) on(name string) querier { return s.metrics.timed(name, s.db) }

// querier is a *sql.DB, a *sql.Tx or a *sql.Conn.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

const selectUsableSQL = `
SELECT current_setting('transaction_read_only') = 'off', EXISTS (SELECT FROM queued.settings)`

// ping returns an error unless the database responds, has the schema, and can be written. A
// standby cannot be written.
func (s *store) ping(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return asUnavailable(err)
	}
	var writable, settings bool
	err := s.on("ping").QueryRowContext(ctx, selectUsableSQL).Scan(&writable, &settings)
	switch {
	case err != nil:
		return asUnavailable(err)
	case !settings:
		return asUnavailable(fmt.Errorf("%w: queued.settings is empty; restore its row or run INSERT INTO queued.settings (version) VALUES (1)", errSchema))
	case !writable:
		return fmt.Errorf("%w: read-only", errUnavailable)
	}
	return nil
}

const selectUndurableSQL = `
SELECT name
FROM unnest('{fsync,full_page_writes,synchronous_commit}'::text[]) AS name
WHERE current_setting(name) = 'off'`

// undurable returns the settings of PostgreSQL that are off although a crash can then lose
// committed messages.
func (s *store) undurable(ctx context.Context) ([]string, error) {
	return collect(ctx, s.on("check_durability"), func(row scanner) (name string, err error) {
		err = row.Scan(&name)
		return name, err
	}, selectUndurableSQL)
}

// databaseVersion returns the version of PostgreSQL.
func (s *store) databaseVersion(ctx context.Context) (version string, err error) {
	err = s.on("database_version").QueryRowContext(ctx, "SELECT current_setting('server_version')").Scan(&version)
	return version, asUnavailable(err)
}

// asUnavailable wraps an error in errUnavailable, unless the request may be its cause.
func asUnavailable(err error) error {
	if err == nil || errors.Is(err, errUnavailable) || errors.Is(err, sql.ErrNoRows) ||
		errors.Is(err, context.Canceled) || blamesOne(err) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnavailable, err)
}

const insertTopicSQL = `
INSERT INTO queued.topics (id)
VALUES ($1)
RETURNING id, created_at`

func (s *store) createTopic(ctx context.Context, id string) (topic, error) {
	if err := s.homes.needAllNodes(); err != nil {
		return topic{}, err
	}
	t, err := once(ctx, s, "insert_topic", scanTopic, insertTopicSQL, id)
	if pq.As(err, pqerror.UniqueViolation) != nil {
		return topic{}, errTopicExists
	}
	return t, asUnavailable(asNeedsAllNodes(err))
}

const selectTopicSQL = `
SELECT id, created_at
FROM queued.topics
WHERE id = $1`

func (s *store) topic(ctx context.Context, id string) (topic, error) {
	t, err := scanTopic(s.on("topic").QueryRowContext(ctx, selectTopicSQL, id))
	if errors.Is(err, sql.ErrNoRows) {
		return topic{}, errTopicNotFound
	}
	return t, asUnavailable(err)
}

// visibleIDsSQL are the ids that match names.
const visibleIDsSQL = `
WHERE $3
    OR id = ANY($4::text[])
    OR EXISTS (SELECT FROM unnest($5::text[]) AS prefix WHERE starts_with(id, prefix))`

const selectTopicsSQL = `
SELECT id, created_at
FROM queued.topics` + visibleIDsSQL + `
ORDER BY id
LIMIT $2 OFFSET $1`

func (s *store) topics(ctx context.Context, visible *names, offset, limit int) ([]topic, error) {
	return collect(ctx, s.on("topics"), scanTopic, selectTopicsSQL, offset, limit, visible.all, textArray(visible.exact), textArray(visible.prefixes))
}

// transaction runs change in a transaction of its own. If it returns an error, nothing was
// changed, except that the outcome may be unknown after errUnavailable.
func (s *store) transaction(ctx context.Context, change func(tx *sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return asUnavailable(err)
	}
	defer tx.Rollback()
	if err := change(tx); errors.Is(err, errNotFound) || errors.Is(err, errExists) {
		return err
	} else if err != nil {
		return asUnavailable(err)
	}
	return asUnavailable(tx.Commit())
}

// in returns a transaction for one statement. name labels its metrics.
func (s *store) in(tx *sql.Tx, name string) querier { return s.metrics.timed(name, tx) }

const (
	lockSettingsSQL = `
SELECT version
FROM queued.settings
FOR UPDATE`

	// The version follows the clock, so that a database that was restored or created again
	// never has a version that a server has cached.
	settingsChangedSQL = `
UPDATE queued.settings
SET version = greatest(version + 1, (extract(epoch FROM now()) * 1000000)::bigint)
RETURNING version`
)

// changeSettings runs a change of topics and queues. change reports whether it has changed
// anything that servers cache (pinned.go); if so, the new version clears all caches. Changes
// run one after another, and each sees the effect of the previous one.
func (s *store) changeSettings(ctx context.Context, change func(tx *sql.Tx) (changed bool, err error)) error {
	defer s.recent.clear()
	if err := s.homes.needAllNodes(); err != nil {
		return err
	}
	err := s.transaction(ctx, func(tx *sql.Tx) error {
		if _, err := s.in(tx, "lock_settings").ExecContext(ctx, lockSettingsSQL); err != nil {
			return err
		}
		changed, err := change(tx)
		if err == nil && changed {
			_, err = s.in(tx, "settings_changed").ExecContext(ctx, settingsChangedSQL)
		}
		return err
	})
	return asNeedsAllNodes(err)
}

const deleteTopicSQL = `
DELETE FROM queued.topics
WHERE id = $1
RETURNING id`

// deleteTopic deletes a topic. Its queues stay, without a topic.
func (s *store) deleteTopic(ctx context.Context, id string) error {
	return s.deleteOne(ctx, "delete_topic", errTopicNotFound, deleteTopicSQL, id)
}

func scanTopic(row scanner) (t topic, err error) {
	err = row.Scan(&t.ID, &t.CreatedAt)
	return t, err
}

// The columns of a queue, in the order of scanQueue.
const queueColumnsSQL = `id, topic_id, dead_queue_id, ack_deadline_seconds, message_retention_seconds,
       message_filters, message_max_deliveries, delivery_delay_seconds,
       delivery_interval_ms, ordered, consumed_retention_seconds,
       deduplication_window_seconds, max_messages, retry_backoff_seconds, paused, created_at, updated_at`

func scanQueue(row scanner) (q queue, err error) {
	err = row.Scan(&q.ID, &q.TopicID, &q.DeadQueueID, &q.AckDeadlineSeconds, &q.MessageRetentionSeconds,
		(*[]byte)(&q.MessageFilters), &q.MessageMaxDeliveries, &q.DeliveryDelaySeconds,
		&q.DeliveryIntervalMS, &q.Ordered, &q.ConsumedRetentionSeconds, &q.DeduplicationWindow, &q.MaxMessages, &q.RetryBackoff, &q.Paused, &q.CreatedAt, &q.UpdatedAt)
	if len(q.RetryBackoff) == 0 {
		q.RetryBackoff = nil // the queue had a backoff before
	}
	return q, err
}

// The statement also returns which of the references is missing, because an existing id must
// not be reported before a missing reference.
const insertQueueSQL = `
WITH refs AS MATERIALIZED (
    SELECT $2::text IS NULL OR EXISTS (SELECT FROM queued.topics WHERE id = $2) AS topic_found,
           $3::text IS NULL OR EXISTS (SELECT FROM queued.queues WHERE id = $3) AS dead_queue_found
), added AS (
    INSERT INTO queued.queues (key, id, topic_id, dead_queue_id, ack_deadline_seconds, message_retention_seconds,
                               message_filters, message_max_deliveries, delivery_delay_seconds,
                               delivery_interval_ms, ordered, consumed_retention_seconds,
                               deduplication_window_seconds, max_messages, retry_backoff_seconds, paused, sqs)
    OVERRIDING SYSTEM VALUE
    SELECT ($17::bigint << 48) + nextval('queued.queues_key_seq'), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16
    FROM refs
    WHERE topic_found AND dead_queue_found
    RETURNING key
)
SELECT topic_found, dead_queue_found, (SELECT count(*) FROM added JOIN queued.deleted_queues USING (key)) > 0
FROM refs`

// createQueue creates a queue. It returns errTopicNotFound or errQueueNotFound if its topic
// or its dead queue is unknown, and errQueueExists if the id exists.
func (s *store) createQueue(ctx context.Context, id string, settings queueSettings) (q queue, err error) {
	create := func() error {
		return s.changeSettings(ctx, func(tx *sql.Tx) (changed bool, err error) {
			home, err := s.homes.next(ctx, s.in(tx, "next_home"))
			if err != nil {
				return false, err
			}
			if err := s.putQueue(ctx, tx, "insert_queue", insertQueueSQL, id, settings, home); err != nil {
				return false, err
			}
			q, err = s.queueIn(ctx, tx, id)
			return settings.TopicID != nil, err // no server has cached a queue that did not exist
		})
	}
	if err = create(); errors.Is(err, errKeyTaken) {
		if err = s.raiseSequences(ctx); err == nil {
			err = create()
		}
	}
	return q, err
}

const updateQueueSQL = `
WITH refs AS MATERIALIZED (
    SELECT $2::text IS NULL OR EXISTS (SELECT FROM queued.topics WHERE id = $2) AS topic_found,
           $3::text IS NULL OR EXISTS (SELECT FROM queued.queues WHERE id = $3) AS dead_queue_found
), updated AS (
    UPDATE queued.queues
    SET topic_id = $2, dead_queue_id = $3, ack_deadline_seconds = $4, message_retention_seconds = $5,
        message_filters = $6, message_max_deliveries = $7, delivery_delay_seconds = $8,
        delivery_interval_ms = $9, ordered = $10, consumed_retention_seconds = $11,
        deduplication_window_seconds = $12, max_messages = $13, full_until = CASE WHEN max_messages = $13 THEN full_until END,
        retry_backoff_seconds = coalesce($14::integer[], CASE WHEN retry_backoff_seconds IS NOT NULL THEN '{}'::integer[] END), paused = $15, sqs = $16, updated_at = now(),
        groups_changed_in = CASE WHEN $17 THEN (SELECT version FROM queued.settings) + 1 ELSE groups_changed_in END
    FROM refs
    WHERE queues.id = $1 AND topic_found AND dead_queue_found
)
SELECT topic_found, dead_queue_found, false
FROM refs`

// updateQueue replaces the settings of a queue, except for those that are left out and those
// that only SQS's API has. It returns errQueueNotFound and errTopicNotFound like createQueue.
func (s *store) updateQueue(ctx context.Context, id string, settings queueSettings) (queue, error) {
	return s.changeQueue(ctx, id, func(q queue) (queueSettings, error) {
		settings.ownSettings, settings.SQS = settings.over(q.ownSettings), q.SQS
		return settings, nil
	})
}

// changeQueue replaces the settings of a queue by those that change returns for the queue as
// it is. If change returns an error, so does changeQueue, and nothing is changed.
func (s *store) changeQueue(ctx context.Context, id string, change func(q queue) (queueSettings, error)) (q queue, err error) {
	regrouped := false
	var refused error
	err = s.changeSettings(ctx, func(tx *sql.Tx) (changed bool, err error) {
		before, err := s.queueIn(ctx, tx, id)
		if err != nil {
			return false, err
		}
		var settings queueSettings
		if settings, refused = change(before); refused != nil {
			return false, nil
		}
		regrouped = !reflect.DeepEqual(settings.ofGroups(), before.ofGroups())
		if err := s.putQueue(ctx, tx, "update_queue", updateQueueSQL, id, settings, regrouped); err != nil {
			return false, err
		}
		q, err = s.queueIn(ctx, tx, id)
		return !reflect.DeepEqual(settings, before.queueSettings), err
	})
	if err == nil && regrouped {
		// The settings are committed. If this fails, the cleanup does it.
		s.recheckChangedGroups(ctx, homeOf(q.key), id, func(string) {})
	}
	return q, cmp.Or(err, refused)
}

const setPausedSQL = `
UPDATE queued.queues
SET paused = $2, updated_at = now()
WHERE id = $1
    AND paused <> $2`

// setPaused stops or continues the delivery of messages of a queue. The new version of the
// settings stops the claims of all servers, because each compares it with its own.
func (s *store) setPaused(ctx context.Context, id string, paused bool) error {
	return s.changeSettings(ctx, func(tx *sql.Tx) (changed bool, err error) {
		if _, err := s.queueIn(ctx, tx, id); err != nil {
			return false, err
		}
		result, err := s.in(tx, "set_paused").ExecContext(ctx, setPausedSQL, id, paused)
		if err != nil {
			return false, err
		}
		n, err := result.RowsAffected()
		return n > 0, err
	})
}

func (s *store) putQueue(ctx context.Context, tx *sql.Tx, name, statement, id string, v queueSettings, more ...any) error {
	var topicFound, deadQueueFound, keyTaken bool
	err := s.in(tx, name).QueryRowContext(ctx, statement, append([]any{id, v.TopicID, v.DeadQueueID, v.AckDeadlineSeconds,
		v.MessageRetentionSeconds, v.MessageFilters, v.MessageMaxDeliveries, v.DeliveryDelaySeconds,
		v.DeliveryIntervalMS, v.Ordered, v.ConsumedRetentionSeconds, v.DeduplicationWindow, v.MaxMessages, v.RetryBackoff, v.Paused, v.SQS}, more...)...).Scan(&topicFound, &deadQueueFound, &keyTaken)
	switch e := pq.As(err); {
	case e != nil && e.Code == pqerror.UniqueViolation && e.Constraint == "queues_key_key":
		return errKeyTaken
	case e != nil && e.Code == pqerror.UniqueViolation:
		return errQueueExists
	case e != nil && e.Code == pqerror.ForeignKeyViolation && strings.Contains(e.Constraint, "topic_id"):
		return errTopicNotFound // the topic was deleted at the same time
	case e != nil && e.Code == pqerror.ForeignKeyViolation:
		return errQueueNotFound
	case err != nil:
		return err
	case !topicFound:
		return errTopicNotFound
	case !deadQueueFound:
		return errQueueNotFound
	case keyTaken:
		return errKeyTaken
	}
	return nil
}

const selectQueueSQL = `
SELECT ` + queueColumnsSQL + `, sqs, key, (SELECT version FROM queued.settings)
FROM queued.queues
WHERE id = $1`

func (s *store) queue(ctx context.Context, id string) (queue, error) {
	q, err := queueOn(ctx, s.on("queue"), id)
	return q, asUnavailable(err)
}

// queueIn is like queue, in a transaction.
func (s *store) queueIn(ctx context.Context, tx *sql.Tx, id string) (queue, error) {
	return queueOn(ctx, s.in(tx, "queue"), id)
}

func queueOn(ctx context.Context, db querier, id string) (queue, error) {
	var sqs sqsSettings
	var key, version int64
	q, err := scanQueue(alongside{db.QueryRowContext(ctx, selectQueueSQL, id), []any{&sqs, &key, &version}})
	q.SQS, q.key, q.version = sqs, key, version
	if errors.Is(err, sql.ErrNoRows) {
		err = errQueueNotFound
	}
	return q, err
}

const selectQueueIDsSQL = `
SELECT id
FROM queued.queues` + visibleIDsSQL + `
ORDER BY id
LIMIT $2 OFFSET $1`

// queueIDs returns the first of the visible queues, in order.
func (s *store) queueIDs(ctx context.Context, visible *names, limit int) ([]string, error) {
	return collect(ctx, s.on("queue_ids"), scanText, selectQueueIDsSQL, 0, limit, visible.all, textArray(visible.exact), textArray(visible.prefixes))
}

// listSize is the maximum number of bytes of a page of a list, both from PostgreSQL and to
// the client, unless the first item has more.
const listSize = 8 << 20

// queueSize is the maximum number of bytes of a queue in a list, without its filters.
const queueSize = 1200

// The size of the filters costs more than everything else, so it is computed once.
const selectQueuesSQL = `
WITH page AS MATERIALIZED (
    SELECT ` + queueColumnsSQL + `, $7 + coalesce(octet_length(message_filters::text), 0) AS size
    FROM (
        SELECT ` + queueColumnsSQL + `
        FROM queued.queues` + visibleIDsSQL + `
        ORDER BY id
        LIMIT $2 OFFSET $1
    ) AS queues
), sized AS (
    SELECT ` + queueColumnsSQL + `, count(*) OVER () AS found, size, sum(size) OVER (ORDER BY id) AS total
    FROM page
)
SELECT ` + queueColumnsSQL + `, found
FROM sized
WHERE total <= $6
    OR total = size
ORDER BY id`

// queues returns a page of the visible queues, in order. more is true if the page has fewer
// queues than the limit allows because of listSize.
func (s *store) queues(ctx context.Context, visible *names, offset, limit int) (all []queue, more bool, err error) {
	found := 0
	all, err = collect(ctx, s.on("queues"), func(row scanner) (queue, error) {
		return scanQueue(alongside{row, []any{&found}})
	}, selectQueuesSQL, offset, limit, visible.all, textArray(visible.exact), textArray(visible.prefixes), listSize, queueSize)
	return all, len(all) < found, err
}

// alongside is a row with more columns at the end.
type alongside struct {
	scanner
	last []any
}

func (a alongside) Scan(columns ...any) error { return a.scanner.Scan(append(columns, a.last...)...) }

const deleteQueueSQL = `
WITH deleted AS (
    DELETE FROM queued.queues
    WHERE id = $1
    RETURNING key
)
INSERT INTO queued.deleted_queues (key)
SELECT key
FROM deleted
RETURNING key`

// deleteQueue deletes a queue. Its messages are unreachable at once, and the cleanup deletes
// them.
func (s *store) deleteQueue(ctx context.Context, id string) error {
	return s.deleteOne(ctx, "delete_queue", errQueueNotFound, deleteQueueSQL, id)
}

const selectStatsSQL = `
SELECT count(m.id), coalesce(floor(extract(epoch FROM now() - min(m.created_at))), 0)::bigint
FROM queued.queues q
LEFT JOIN queued.live_messages m
    ON m.queue_key = q.key
    AND m.home = $1
    AND (m.group_id IS NULL) = ANY ('{true,false}') -- both values, so that the index skips messages that are not due
    AND m.scheduled_at <= now()
    AND m.state = 'ready'
WHERE q.id = $2
GROUP BY q.id`

func (s *store) stats(ctx context.Context, queueID string) (queueStats, error) {
	var v queueStats
	home, err := s.homeOfQueue(ctx, queueID)
	if err != nil {
		return v, err
	}
	err = s.on("stats").QueryRowContext(ctx, selectStatsSQL, home, queueID).Scan(&v.NumUndeliveredMessages, &v.OldestUnackedMessageAgeSeconds)
	if errors.Is(err, sql.ErrNoRows) {
		return v, errQueueNotFound
	}
	return v, asUnavailable(err)
}

const selectDetailsSQL = `
WITH counted AS (
    SELECT state, count(*) AS n, min(created_at) AS oldest
    FROM queued.live_messages
    WHERE home = $1
        AND queue_id = $2
    GROUP BY state
)
SELECT coalesce((SELECT n FROM counted WHERE state = 'ready'), 0),
       coalesce((SELECT floor(extract(epoch FROM now() - oldest)) FROM counted WHERE state = 'ready'), 0)::bigint,
       coalesce((SELECT n FROM counted WHERE state = 'delayed'), 0),
       coalesce((SELECT n FROM counted WHERE state = 'in_flight'), 0),
       coalesce((SELECT n FROM counted WHERE state = 'exhausted'), 0),
       q.paused, d.key
FROM queued.queues q
LEFT JOIN queued.queues d ON d.id = q.dead_queue_id
WHERE q.id = $2`

const countQueueSQL = `
SELECT count(*)
FROM queued.live_messages
WHERE queue_key = $2
    AND home = $1`

func (s *store) details(ctx context.Context, queueID string) (queueDetails, error) {
	var v queueDetails
	home, err := s.homeOfQueue(ctx, queueID)
	if err != nil {
		return v, err
	}
	var deadQueueKey sql.NullInt64
	err = s.on("detailed_stats").QueryRowContext(ctx, selectDetailsSQL, home, queueID).Scan(&v.Messages.Ready, &v.OldestUnackedMessageAgeSeconds,
		&v.Messages.Delayed, &v.Messages.InFlight, &v.Messages.Exhausted, &v.Paused, &deadQueueKey)
	if errors.Is(err, sql.ErrNoRows) {
		return v, errQueueNotFound
	}
	v.NumUndeliveredMessages = v.Messages.Ready
	if key := deadQueueKey.Int64; err == nil && deadQueueKey.Valid && s.homes.unavailable(homeOf(key)) == nil {
		v.DeadQueueMessages = new(int64)
		err = s.on("count_queue").QueryRowContext(ctx, countQueueSQL, homeOf(key), key).Scan(v.DeadQueueMessages)
	}
	return v, asUnavailable(err)
}

// scanner is a *sql.Row or a *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

func scanText(row scanner) (text string, err error) {
	err = row.Scan(&text)
	return text, err
}

func scanKey(row scanner) (key int64, err error) {
	err = row.Scan(&key)
	return key, err
}

// collect returns all rows of a query, never nil.
func collect[T any](ctx context.Context, db querier, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, asUnavailable(err)
	}
	defer rows.Close()
	all := []T{}
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, asUnavailable(rows.Err())
}

// once runs a statement that returns one row and must not run twice. On a pool, database/sql
// repeats a statement after its connection is lost, even if the statement was sent. It
// returns sql.ErrNoRows if there is no row.
func once[T any](ctx context.Context, s *store, name string, scan func(scanner) (T, error), query string, args ...any) (v T, err error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return v, err
	}
	defer conn.Close()
	// A connection that was lost while it was idle is replaced before the statement runs.
	if conn.PingContext(ctx) != nil {
		conn.Close()
		if conn, err = s.db.Conn(ctx); err != nil {
			return v, err
		}
		defer conn.Close()
	}
	return scan(s.metrics.timed(name, conn).QueryRowContext(ctx, query, args...))
}

// deleteOne runs a statement that deletes one row and returns it. It returns missing if
// there is no such row.
func (s *store) deleteOne(ctx context.Context, name string, missing error, query string, args ...any) error {
	return s.changeSettings(ctx, func(tx *sql.Tx) (changed bool, err error) {
		var deleted any
		err = s.in(tx, name).QueryRowContext(ctx, query, args...).Scan(&deleted)
		if errors.Is(err, sql.ErrNoRows) {
			err = missing
		}
		return err == nil, err
	})
}
