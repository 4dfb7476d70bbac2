package main

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// moveTask moves the messages of a dead queue in the background, in steps: to the queue
// destination or, if that is nil, each to the queue that it came from. All servers work on
// all tasks. A step is a transaction that locks the row of its task and counts what it moves,
// so the end of a server loses and repeats nothing, and another server does the next step.
type moveTask struct {
	id          string
	destination *string
	perSecond   *int // maximum number of messages; nil: no limit
	status      string
	failure     *string // why the task failed; nil if it did not
	moved       int
	toMove      int // messages that waited when it started, at most countedToMove
	startedAt   time.Time
}

// States of a task, as SQS's API shows them.
const (
	taskRunning   = "RUNNING"
	taskCompleted = "COMPLETED"
	taskCancelled = "CANCELLED"
	taskFailed    = "FAILED"
)

// taskNoDestination is the failure of a task that has left messages because their queue does not
// exist, or because they did not come from a queue.
const taskNoDestination = "AWS.SimpleQueueService.NonExistentQueue"

const (
	keptTasks     = 10      // of each source, for which AWS keeps as many
	countedToMove = 100_000 // messages, because a count reads them all
)

var (
	errNotDeadQueue        = errors.New("the queue is not the dead queue of a queue")
	errDestinationNotFound = errors.New("destination not found")
	errTaskExists          = errors.New("a task of the queue is running")
	errTaskNotFound        = errors.New("no such task is running")
)

const insertMoveTaskSQL = `
WITH source AS MATERIALIZED (
    SELECT key,
           EXISTS (SELECT FROM queued.queues WHERE dead_queue_id = $3) AS is_dead,
           $4::text IS NULL OR EXISTS (SELECT FROM queued.queues WHERE id = $4) AS destination_found
    FROM queued.queues
    WHERE id = $3
), old AS MATERIALIZED (
    SELECT t.id
    FROM queued.move_tasks t
    JOIN source ON source.key = t.source_queue_key
    WHERE status <> '` + taskRunning + `'
    ORDER BY started_at DESC, id DESC
    OFFSET $7 - 1
), forgotten AS (
    DELETE FROM queued.move_tasks t
    USING old
    WHERE t.id = old.id
), added AS (
    INSERT INTO queued.move_tasks (id, source_queue_key, destination_queue_id, max_messages_per_second, last_seq, to_move)
    SELECT $2, key, $4, $5, $8, (
               SELECT count(*)
               FROM (
                   SELECT
                   FROM queued.live_messages m
                   WHERE m.queue_key = source.key
                       AND m.home = $1
                       AND m.state = 'ready'
                   LIMIT $6
               ) waiting
           )
    FROM source
    WHERE is_dead AND destination_found
)
SELECT is_dead, destination_found
FROM source`

// startMoveTask starts a task for the messages that wait in the queue now, and returns its
// id. It forgets the oldest tasks of the queue.
func (s *store) startMoveTask(ctx context.Context, sourceID string, destination *string, perSecond *int) (id string, err error) {
	id = newID()
	var isDead, found bool
	from, err := s.snapshot(ctx, sourceID)
	if err != nil {
		return "", err
	}
	err = s.on("insert_move_task").QueryRowContext(ctx, insertMoveTaskSQL, homeOf(from.key), id, sourceID, destination, perSecond, countedToMove, keptTasks, from.seq).Scan(&isDead, &found)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", errQueueNotFound
	case pq.As(err, pqerror.UniqueViolation) != nil:
		return "", errTaskExists
	case err != nil:
		return "", asUnavailable(err)
	case !isDead:
		return "", errNotDeadQueue
	case !found:
		return "", errDestinationNotFound
	}
	return id, nil
}

const selectMoveTasksSQL = `
SELECT t.id, t.destination_queue_id, t.max_messages_per_second, t.status, t.failure, t.moved, t.to_move, t.started_at
FROM queued.queues q
JOIN queued.move_tasks t ON t.source_queue_key = q.key
WHERE q.id = $1
ORDER BY t.started_at DESC, t.id DESC
LIMIT $2`

// moveTasks returns the last tasks of a queue, the latest first.
func (s *store) moveTasks(ctx context.Context, sourceID string, limit int) ([]moveTask, error) {
	if _, err := s.queue(ctx, sourceID); err != nil {
		return nil, err
	}
	return collect(ctx, s.on("move_tasks"), func(row scanner) (t moveTask, err error) {
		err = row.Scan(&t.id, &t.destination, &t.perSecond, &t.status, &t.failure, &t.moved, &t.toMove, &t.startedAt)
		return t, err
	}, selectMoveTasksSQL, sourceID, limit)
}

const cancelMoveTaskSQL = `
UPDATE queued.move_tasks t
SET status = '` + taskCancelled + `'
FROM queued.queues q
WHERE t.id = $1
    AND q.id = $2
    AND t.source_queue_key = q.key
    AND t.status = '` + taskRunning + `'
RETURNING t.moved`

// cancelMoveTask ends a task of a queue, and returns the number of messages that it has
// moved. It waits for a step that has begun; no other one follows.
func (s *store) cancelMoveTask(ctx context.Context, id, sourceID string) (moved int, err error) {
	err = s.on("cancel_move_task").QueryRowContext(ctx, cancelMoveTaskSQL, id, sourceID).Scan(&moved)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, errTaskNotFound
	}
	return moved, asUnavailable(err)
}

// mover does the steps of move tasks. It runs on every server.
type mover struct {
	store *store
	log   *slog.Logger

	// announce wakes the receivers of a queue that messages have moved into.
	announce func(queueID string, dueAt time.Time)

	// at is where the step before ended, so that the next one does not walk over deleted
	// rows. After a step of another task it is where the first message may be.
	at struct {
		taskID string
		position
	}
}

const (
	moverRest = 5 * time.Second // between two searches for tasks that another server has started
	movePause = time.Second     // between two steps of a task with a rate, and before another try
)

// run does steps until ctx is done, and looks for tasks after each value of started.
func (m *mover) run(ctx context.Context, started <-chan struct{}) {
	for {
		wait, err := m.step(ctx)
		if err != nil && ctx.Err() == nil && !errors.Is(err, errUnresponsive) { // errUnresponsive was logged already
			m.log.Warn("step of a move task failed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-started:
		case <-time.After(wait):
		}
	}
}

const (
	// It is null if no task is running; greatest would ignore the null of min.
	selectNextStepSQL = `
SELECT extract(epoch FROM min(greatest(next_step_at - now(), '0')))::double precision
FROM queued.move_tasks
WHERE status = '` + taskRunning + `'`

	// Tasks that are always due take turns.
	lockMoveTaskSQL = `
SELECT t.id, t.destination_queue_id, t.max_messages_per_second, t.started_at, t.source_queue_key, q.id, t.last_seq,
       coalesce((SELECT home FROM queued.queues d WHERE d.id = t.destination_queue_id), q.home)
FROM queued.move_tasks t
JOIN queued.queues q ON q.key = t.source_queue_key
WHERE t.status = '` + taskRunning + `'
    AND t.next_step_at <= now()
ORDER BY t.next_step_at
LIMIT 1
FOR UPDATE OF t SKIP LOCKED`

	// moveLeftSQL reports whether messages are left that have a destination, and whether any
	// are left.
	moveLeftSQL = `
SELECT EXISTS (
           SELECT` + redrivableSQL + `
               AND ` + hasDestinationSQL + `
       ),
       EXISTS (
           SELECT` + redrivableSQL + `
       )`

	updateMoveTaskSQL = `
UPDATE queued.move_tasks
SET status = $2, failure = $3, moved = moved + $4, next_step_at = now() + make_interval(secs => $5)
WHERE id = $1
    AND status = '` + taskRunning + `'`
)

// step does a step of the task whose turn it is. It returns the time until the next step of
// any task, at most moverRest, also with an error. A task with a rate moves the messages of a
// second in a step.
func (m *mover) step(ctx context.Context) (wait time.Duration, err error) {
	var next sql.NullFloat64 // null if no task is running
	if err := m.store.on("next_move_step").QueryRowContext(ctx, selectNextStepSQL).Scan(&next); err != nil {
		return moverRest, asUnavailable(err)
	}
	if !next.Valid || next.Float64 > 0 {
		if next.Valid {
			return min(time.Duration(next.Float64*float64(time.Second)), moverRest), nil
		}
		return moverRest, nil
	}
	var t moveTask
	var from snapshot
	var sourceID string
	var destinationHome int64
	var n int
	var to []string
	wait = movePause // another server does the step
	err = m.store.transaction(ctx, func(tx *sql.Tx) error {
		row := m.store.in(tx, "lock_move_task").QueryRowContext(ctx, lockMoveTaskSQL)
		err := row.Scan(&t.id, &t.destination, &t.perSecond, &t.startedAt, &from.key, &sourceID, &from.seq, &destinationHome)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, home := range []int64{homeOf(from.key), destinationHome} {
			if err := m.store.homes.unavailable(home); err != nil {
				return err
			}
		}
		from.at, t.status, wait = t.startedAt, taskRunning, 0
		limit, pause := workBatch, time.Duration(0)
		if t.perSecond != nil {
			limit, pause = min(limit, *t.perSecond), movePause
		}
		n, to, err = m.move(ctx, tx, &t, from, limit)
		if err == nil && n == 0 {
			pause, err = movePause, m.finish(ctx, tx, &t, from)
		}
		if err != nil {
			return err
		}
		_, err = m.store.in(tx, "update_move_task").ExecContext(ctx, updateMoveTaskSQL, t.id, t.status, t.failure, n, pause.Seconds())
		return err
	})
	if err != nil {
		m.at.taskID = ""
		wait = moverRest
		if t.id != "" {
			// Other tasks come first, and do not wait.
			if _, failed := m.store.on("update_move_task").ExecContext(ctx, updateMoveTaskSQL, t.id, taskRunning, nil, 0, moverRest.Seconds()); failed == nil {
				wait = 0
			}
		}
		return wait, err
	}
	if n > 0 {
		m.store.metrics.add(messagesRedriven, sourceID, n)
	}
	for _, queueID := range to {
		m.announce(queueID, time.Time{})
	}
	return wait, nil
}

// move moves at most limit messages of a task. It returns their number and their new queues.
func (m *mover) move(ctx context.Context, tx *sql.Tx, t *moveTask, from snapshot, limit int) (n int, to []string, err error) {
	if m.at.taskID != t.id {
		m.at.taskID, m.at.position = t.id, position{}
	}
	after := &m.at.position
	for {
		began := *after == position{}
		var last position
		switch last, n, to, err = m.store.redriveBatch(ctx, tx, from, *after, limit, t.destination); {
		case err == nil:
			*after = last
			return n, to, nil
		case !errors.Is(err, sql.ErrNoRows):
			return 0, nil, err
		case began:
			return 0, nil, nil
		}
		*after = position{} // messages may have been locked by others, or have moved back
	}
}

// finish sets the status of a task that has found no message to move. It keeps the status if
// others have locked messages.
func (m *mover) finish(ctx context.Context, tx *sql.Tx, t *moveTask, from snapshot) error {
	var movable, any bool
	err := m.store.in(tx, "move_left").QueryRowContext(ctx, moveLeftSQL, homeOf(from.key), from.key, from.at, from.seq, t.destination).Scan(&movable, &any)
	switch {
	case err != nil || movable:
	case any:
		failure := taskNoDestination
		t.status, t.failure = taskFailed, &failure
	default:
		t.status = taskCompleted
	}
	return err
}
