package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/lib/pq"

	"queued/internal/rawjson"
)

// A message may have a deduplication id, its own or one derived from the Idempotency-Key of
// its request. A queue that got a message with the same id within its deduplication window
// does not store another one. A publish inserts the ids into queued.deduplications, and
// then the messages of the ids that were not there, in one transaction. Publishes without
// ids have nothing to do with this: these have a batcher of their own.

// deduplicationKey identifies a copy of a message with a deduplication id.
type deduplicationKey struct {
	queueKey int64
	id       string
}

func (k deduplicationKey) home() int64 { return homeOf(k.queueKey) }

func (k deduplicationKey) compare(l deduplicationKey) int {
	return cmp.Or(cmp.Compare(k.queueKey, l.queueKey), cmp.Compare(k.id, l.id))
}

// firstCopy is the copy that was published first with a deduplication id. The others are
// its duplicates.
type firstCopy struct {
	messageID string
	createdAt timestamp
	seq       int64 // 0 if it is not in the queue any more
	earlier   bool  // it was stored before this transaction
}

// Time that a publish waits for an id that another transaction has inserted and not yet
// committed. In its batch it delays others for that time, so an id that was held once is
// tried apart from the others for a while.
const (
	heldTimeout = 250 * time.Millisecond
	tryTimeout  = time.Millisecond
	heldFor     = 5 * time.Second
	maxHeld     = 10_000 // ids that are remembered
)

// errHeld is the error of a publish with an id that another transaction has inserted and
// not yet committed.
var errHeld = errors.New("a publish with the same deduplication id is not committed yet")

// errIDsLocked is the error of a publish that has waited for lockTimeout, which is longer than it
// waits for an id: something has locked the table of the ids, or their home is moving. Only ids
// on other nodes are waited for as long.
var errIDsLocked = fmt.Errorf("%w: deduplication ids are locked", errUnavailable)

// heldIDs are the ids that were held recently.
type heldIDs struct {
	mu    sync.Mutex
	until map[deduplicationKey]time.Time
}

// any reports whether one of the ids was held recently.
func (h *heldIDs) any(keys []deduplicationKey) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.until) > 0 && slices.ContainsFunc(keys, func(key deduplicationKey) bool { return time.Now().Before(h.until[key]) })
}

// set records that one of the ids is held, or that none is.
func (h *heldIDs) set(keys []deduplicationKey, held bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, key := range keys {
		if held {
			if len(h.until) >= maxHeld {
				h.until = nil
			}
			if h.until == nil {
				h.until = make(map[deduplicationKey]time.Time)
			}
			h.until[key] = time.Now().Add(heldFor)
		} else {
			delete(h.until, key)
		}
	}
}

// runDeduplicated is runPublications for publications with deduplication ids. Only the
// publications with a held id wait for it, and fail with errHeld.
func (e *engine) runDeduplicated(s *pinnedConn, batch []*publication) error {
	return s.untilCurrent(func() error { return e.publishDeduplicated(s, batch) })
}

// publishDeduplicated is runDeduplicated with the settings that s has cached. It returns
// errStale if they have changed.
func (e *engine) publishDeduplicated(s *pinnedConn, batch []*publication) error {
	if err := s.readDestinations(batch); err != nil {
		return err
	}
	lockTimeouts := 0
	try := func(part []*publication, wait time.Duration) error {
		if lockTimeouts == batchLockTimeouts {
			return errIDsLocked
		}
		began := time.Now()
		err := e.publishOnce(s, part, wait)
		if errors.Is(err, errHeld) && time.Since(began) >= lockTimeout {
			lockTimeouts++
			return errIDsLocked
		}
		return err
	}
	var together, apart []*publication
	copies := 0
	refused := false // whether a publication was refused because a queue is full
	for _, p := range batch {
		if p.stored != nil {
			continue
		}
		p.err = e.readdress(s, p)
		if isFull(p.err) {
			refused = true
			again, err := s.isPublishedAgain(p)
			if err != nil {
				return err
			}
			if again {
				p.err = nil
			}
		}
		if p.err != nil || p.address.to == nil {
			continue
		}
		if e.held.any(p.deduplicationKeys()) {
			apart = append(apart, p)
			continue
		}
		if copies > 0 && copies+p.address.copies > publishRows {
			if err := try(together, heldTimeout); err != nil && !waitedForIDs(err) {
				return err
			}
			apart = append(apart, together...)
			together, copies = nil, 0
		}
		together = append(together, p)
		copies += p.address.copies
	}
	if len(together) > 0 {
		if err := try(together, heldTimeout); err != nil && !waitedForIDs(err) {
			return err
		}
	}
	failed := make(map[deduplicationKey]error) // of publications with one id
	for _, p := range slices.Concat(together, apart) {
		if p.stored != nil || p.err != nil {
			continue
		}
		keys := p.deduplicationKeys()
		if i := slices.IndexFunc(keys, func(key deduplicationKey) bool { return failed[key] != nil }); i >= 0 {
			p.err = failed[keys[i]]
			continue
		}
		err := try([]*publication{p}, tryTimeout)
		if err != nil && !waitedForIDs(err) {
			return err
		}
		if err != nil {
			p.err = err
			if len(keys) == 1 {
				failed[keys[0]] = err
			}
		}
		if !errors.Is(err, errIDsLocked) {
			e.held.set(keys, err != nil)
		}
	}
	if refused {
		return s.checkCurrent()
	}
	return nil
}

// waitedForIDs reports whether a publication, or one of its batch, has waited for its ids for
// too long.
func waitedForIDs(err error) bool { return errors.Is(err, errHeld) || errors.Is(err, errIDsLocked) }

// deduplicationKeys returns the keys of all copies with a deduplication id.
func (p *publication) deduplicationKeys() (keys []deduplicationKey) {
	for i, m := range p.messages {
		for _, place := range p.address.queues[i] {
			if m.deduplicationID != "" {
				keys = append(keys, deduplicationKey{p.address.to.queues[place].queueKey, m.deduplicationID})
			}
		}
	}
	return keys
}

// publishOnce stores publications in one transaction, except for the copies that are
// duplicates, and acks the messages that they ack. If it returns an error, none has
// happened. A publication whose messages to ack are not in flight is left without a result,
// unless it is alone.
func (e *engine) publishOnce(s *pinnedConn, batch []*publication, wait time.Duration) error {
	began := time.Now()
	var able []*publication
	var sent []outgoing // with all copies
	var fresh []outgoing
	var firsts map[deduplicationKey]*firstCopy
	var stored [][]message
	var readyAt map[int64]time.Time
	var acked []queueChange
	err := s.transaction(func() (err error) {
		able, sent, fresh = nil, nil, nil
		firsts = make(map[deduplicationKey]*firstCopy)
		var acks []ackItem
		if slices.ContainsFunc(batch, func(p *publication) bool { return len(p.acks) > 0 }) {
			leases, moving, err := s.lockLeases(batch)
			if err != nil {
				return err
			}
			for _, p := range batch {
				if failed := leases.take(p.acks); failed == nil {
					able, acks = append(able, p), append(acks, p.acks...)
				} else if len(batch) == 1 {
					return e.publishAgain(s, p, failed, moving)
				}
			}
		} else {
			able = batch
		}
		if len(able) == 0 {
			return nil
		}
		for _, p := range able {
			sent = p.appendOutgoing(sent)
			for i, m := range p.messages {
				for _, to := range sent[len(sent)-len(p.messages)+i].to {
					if key := (deduplicationKey{to.queueKey, m.deduplicationID}); m.deduplicationID != "" && firsts[key] == nil {
						firsts[key] = &firstCopy{messageID: s.homes.newID(to.queueKey)}
					}
				}
			}
		}
		if err := s.insertDeduplications(firsts, wait); err != nil {
			return err
		}
		fresh = withoutDuplicates(sent, firsts)
		grouped, groups := groupsToLock(fresh)
		if len(acks) > 0 || grouped && len(groups) == 0 {
			if _, err := read[any](s, "restore_lock_timeout", nil, restoreLockTimeoutSQL); err != nil {
				return err
			}
		}
		if len(acks) > 0 {
			if acked, _, err = s.ack(acks); err != nil { // none is moving: they are locked
				return err
			}
		}
		stored, readyAt, err = s.insert(fresh)
		return err
	})
	if err != nil && (errors.Is(err, errStale) || errors.Is(err, errHeld)) || len(able) == 0 {
		return err
	}
	if err != nil {
		// The outcome may be unknown, so the messages count as due.
		e.wakePublished(fresh, nil, nil)
		e.sweepIfUnknown(err)
		return err
	}
	e.wakePublished(fresh, stored, readyAt)
	e.finishPublications(able, withDuplicates(sent, stored, firsts))
	e.countAcks(acked)
	if time.Since(began) > slowPublish {
		e.notifyNow(s)
	}
	return nil
}

// insertDeduplicationsSQL returns the ids of messages that are not duplicates. It locks the
// rows of the others, so they stay as they are. The window is that of the queue now.
const insertDeduplicationsSQL = `
WITH inserted AS (
    INSERT INTO queued.deduplications AS d (home, queue_key, id, message_id, created_at, expires_at)
    SELECT $1::smallint, u.queue_key, u.id, u.message_id, now(),
           now() + make_interval(secs => coalesce(
               (SELECT q.deduplication_window_seconds FROM queued.queues q WHERE q.key = u.queue_key),
               (SELECT deduplication_window_seconds FROM queued.settings)))
    FROM unnest($2::bigint[], $3::text[], $4::uuid[]) AS u (queue_key, id, message_id)
    WHERE (SELECT set_config('lock_timeout', $5, true)) IS NOT NULL -- for the conflicts
        AND (SELECT version FROM queued.settings) = $6
    ON CONFLICT (queue_key, id) DO UPDATE
    SET message_id = excluded.message_id, created_at = excluded.created_at, expires_at = excluded.expires_at
    WHERE d.expires_at <= excluded.created_at -- which is now()
    RETURNING message_id
)
SELECT array_agg(message_id), (SELECT version FROM queued.settings) = $6
FROM inserted`

var restoreLockTimeoutSQL = fmt.Sprintf("SET LOCAL lock_timeout = %d", lockTimeout.Milliseconds())

// insertDeduplications inserts the ids of copies, in an order that all publishes have, and
// sets what is known about the first copy of each duplicate. It returns errHeld if it has
// waited for another transaction for too long, and errStale if the cached settings have
// changed.
func (s *pinnedConn) insertDeduplications(firsts map[deduplicationKey]*firstCopy, wait time.Duration) error {
	type outcome struct {
		inserted pq.StringArray
		current  bool
	}
	outcomes, err := inHomes(s, sortedKeys(firsts), deduplicationKey.home, func(home int64, part []deduplicationKey) ([]outcome, error) {
		keys, ids := deduplicationArgs(part)
		var messageIDs idArray
		for _, key := range part {
			messageIDs = append(messageIDs, firsts[key].messageID)
		}
		return readInHome(s, home, "insert_deduplications", func(row scanner) (o outcome, err error) {
			err = row.Scan(&o.inserted, &o.current)
			return o, err
		}, insertDeduplicationsSQL, home, keys, ids, messageIDs, strconv.FormatInt(wait.Milliseconds(), 10), s.settings.version)
	})
	if locked(err) {
		return errHeld
	}
	if err != nil {
		return err
	}
	inserted := make(map[string]bool, len(firsts))
	for _, o := range outcomes {
		if !o.current {
			return errStale
		}
		for _, id := range o.inserted {
			inserted[id] = true
		}
	}
	if len(inserted) == len(firsts) {
		return nil
	}
	duplicates := maps.Clone(firsts)
	maps.DeleteFunc(duplicates, func(_ deduplicationKey, first *firstCopy) bool { return inserted[first.messageID] })
	if err := s.readDeduplications(duplicates); err != nil {
		return err
	}
	for key, first := range duplicates {
		if !first.earlier {
			return fmt.Errorf("insert_deduplications: no row for %q", key.id)
		}
	}
	return nil
}

// sortedKeys returns the keys in the order in which all transactions insert them.
func sortedKeys(firsts map[deduplicationKey]*firstCopy) []deduplicationKey {
	return slices.SortedFunc(maps.Keys(firsts), deduplicationKey.compare)
}

func deduplicationArgs(all []deduplicationKey) (keys intArray, ids quotedArray) {
	for _, key := range all {
		keys, ids = append(keys, key.queueKey), append(ids, key.id)
	}
	return keys, ids
}

const selectDeduplicationsSQL = `
SELECT d.queue_key, d.id, d.message_id, d.created_at, coalesce((
    SELECT a.seq
    FROM queued.messages a
    WHERE a.id = ANY (ARRAY[d.message_id])
        AND a.home = $1
        AND a.queue_key IS NOT DISTINCT FROM d.queue_key
), 0)
FROM unnest($2::bigint[], $3::text[]) AS u (queue_key, id)
CROSS JOIN LATERAL (
    SELECT *
    FROM queued.deduplications d
    WHERE d.queue_key = u.queue_key
        AND d.home = $1
        AND d.id = u.id
        AND d.expires_at > now()
    OFFSET 0
) d`

// readDeduplications sets the first copies that were stored before.
func (s *pinnedConn) readDeduplications(firsts map[deduplicationKey]*firstCopy) error {
	_, err := inHomes(s, sortedKeys(firsts), deduplicationKey.home, func(home int64, part []deduplicationKey) ([]any, error) {
		keys, ids := deduplicationArgs(part)
		return read(s, "deduplications", func(row scanner) (any, error) {
			var key deduplicationKey
			first := firstCopy{earlier: true}
			err := row.Scan(&key.queueKey, &key.id, &first.messageID, &first.createdAt, &first.seq)
			if known := firsts[key]; known != nil {
				*known = first
			}
			return nil, err
		}, selectDeduplicationsSQL, home, keys, ids)
	})
	return err
}

// publishAgain sets the result of a publication whose messages to ack are not all in flight,
// in the leases of their tokens. If each of its messages is a duplicate, and the messages to
// ack do not exist any more, an earlier publish has stored and acked them: the result is
// that of the earlier one. Otherwise it is errNotAcked or errMoving.
func (e *engine) publishAgain(s *pinnedConn, p *publication, failed []int, moving []string) error {
	firsts := make(map[deduplicationKey]*firstCopy)
	for _, key := range p.deduplicationKeys() {
		firsts[key] = &firstCopy{}
	}
	if err := s.readDeduplications(firsts); err != nil {
		return err
	}
	maps.DeleteFunc(firsts, func(_ deduplicationKey, first *firstCopy) bool { return !first.earlier })
	sent := p.appendOutgoing(nil)
	for i, m := range p.messages {
		stored := slices.DeleteFunc(slices.Clone(sent[i].to), func(to subscription) bool {
			return firsts[deduplicationKey{to.queueKey, m.deduplicationID}] == nil
		})
		if len(failed) < len(p.acks) || m.deduplicationID == "" || len(stored) == 0 && len(sent[i].to) > 0 {
			p.err = p.notAcked(failed, moving)
			return nil
		}
		sent[i].to = stored // a queue that the topic did not have then gets no copy
	}
	var ids idArray
	for _, i := range failed {
		ids = append(ids, p.acks[i].id)
	}
	exists, sure, err := s.locate(ids)
	if err != nil {
		return err
	}
	if !sure && len(exists) < len(ids) {
		p.err = errMoving
		return nil
	}
	failed = slices.DeleteFunc(slices.Clone(failed), func(i int) bool {
		_, found := exists[p.acks[i].id]
		return !found
	})
	if len(failed) > 0 {
		p.err = errNotAcked{failed}
		return nil
	}
	e.finishPublications([]*publication{p}, withDuplicates(sent, make([][]message, len(sent)), firsts))
	return nil
}

// withoutDuplicates returns the messages with only the copies that are to be stored, and
// the ids of these.
func withoutDuplicates(sent []outgoing, firsts map[deduplicationKey]*firstCopy) []outgoing {
	fresh := slices.Clone(sent)
	taken := make(map[deduplicationKey]bool, len(firsts)) // by an earlier message of this transaction
	for i, m := range sent {
		if m.deduplicationID == "" {
			continue
		}
		fresh[i].to, fresh[i].ids = nil, nil
		for _, to := range m.to {
			key := deduplicationKey{to.queueKey, m.deduplicationID}
			if first := firsts[key]; !first.earlier && !taken[key] {
				taken[key] = true
				fresh[i].to, fresh[i].ids = append(fresh[i].to, to), append(fresh[i].ids, first.messageID)
			}
		}
	}
	return fresh
}

// withDuplicates returns the copies of each message: those that were stored, and for each
// duplicate the first copy as it was when it was published.
func withDuplicates(sent []outgoing, stored [][]message, firsts map[deduplicationKey]*firstCopy) [][]message {
	all := make([][]message, len(sent))
	for i, m := range sent {
		if m.deduplicationID == "" {
			all[i] = stored[i]
			continue
		}
		for _, to := range m.to {
			first := firsts[deduplicationKey{to.queueKey, m.deduplicationID}]
			if len(stored[i]) > 0 && stored[i][0].ID == first.messageID {
				first.createdAt, first.seq = stored[i][0].CreatedAt, stored[i][0].seq
				all[i], stored[i] = append(all[i], stored[i][0]), stored[i][1:]
				continue
			}
			all[i] = append(all[i], message{
				ID: first.messageID, QueueID: to.queueID, queueKey: to.queueKey, seq: first.seq, duplicate: true,
				Data: m.data, Attributes: m.attributes, Group: m.group, trace: m.trace,
				CreatedAt: first.createdAt, UpdatedAt: first.createdAt,
				ScheduledAt: timestamp{to.dueAt(first.createdAt.Time)}, ExpiredAt: timestamp{first.createdAt.Add(to.retention)},
			})
		}
	}
	return all
}

// deduplicationInGroup returns the deduplication id of a message of SQS's API whose queue
// compares the ids of a group only. No client can send such an id, because of the line feeds.
func deduplicationInGroup(group, id string) string { return "\n" + group + "\n" + id }

const forgetDeduplicationsSQL = `
WITH old AS MATERIALIZED (
    SELECT ctid AS tid, id
    FROM queued.deduplications
    WHERE queue_key = $2
        AND home = $1
        AND id > $3
        AND created_at <= $4
    ORDER BY id
    LIMIT $5
    FOR UPDATE
), removed AS (
    DELETE FROM queued.deduplications d
    USING old
    WHERE d.ctid = old.tid
        AND d.home = $1
)
SELECT id
FROM old
ORDER BY id DESC
LIMIT 1`

// forgetDeduplications deletes the deduplication ids that a queue had when it was called.
func (s *store) forgetDeduplications(ctx context.Context, queueID string) error {
	v, err := s.snapshot(ctx, queueID)
	for after := ""; err == nil; {
		err = s.on("forget_deduplications").QueryRowContext(ctx, forgetDeduplicationsSQL, homeOf(v.key), v.key, after, v.at, workBatch).Scan(&after)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return asUnavailable(err)
}

// removeDeduplicationsSQL deletes entries at the end of their window.
const removeDeduplicationsSQL = `
WITH old AS MATERIALIZED (
    SELECT ctid AS tid, expires_at
    FROM queued.deduplications
    WHERE home = $1
        AND expires_at >= $2 -- and not >, because entries may have the same time
        AND expires_at <= now()
    ORDER BY expires_at
    LIMIT $3
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM queued.deduplications d
    USING old
    WHERE d.ctid = old.tid
        AND d.home = $1
)
SELECT false, max(expires_at), 0, count(*) -- the columns of scanBatch
FROM old
HAVING count(*) > 0`

// removeDeduplications deletes deduplication ids at the end of their window.
func (c *cleanup) removeDeduplications(ctx context.Context, home int64) error {
	return c.untilDone(ctx, home, position{}, func(tx *sql.Tx, after position) (position, int, error) {
		return scanBatch(c.metrics.timed("remove_deduplications", tx).QueryRowContext(ctx, removeDeduplicationsSQL, home, after.at, cleanupBatch))
	}, func(int) {})
}

const removeDeletedDeduplicationsSQL = `
WITH old AS MATERIALIZED (
    SELECT ctid AS tid, id
    FROM queued.deduplications
    WHERE queue_key = $2
        AND home = $1
        AND id > $4
    ORDER BY id
    LIMIT $3
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM queued.deduplications d
    USING old
    WHERE d.ctid = old.tid
        AND d.home = $1
)
SELECT id, count(*) OVER ()
FROM old
ORDER BY id DESC
LIMIT 1`

// removeDeduplicationsOf deletes the deduplication ids of a deleted queue.
func (c *cleanup) removeDeduplicationsOf(ctx context.Context, key int64) error {
	after := ""
	return c.untilDone(ctx, homeOf(key), position{}, func(tx *sql.Tx, _ position) (last position, n int, err error) {
		err = c.metrics.timed("remove_deleted_deduplications", tx).QueryRowContext(ctx, removeDeletedDeduplicationsSQL, homeOf(key), key, cleanupBatch, after).Scan(&after, &n)
		return last, n, err
	}, func(int) {})
}

// Maximum lengths, in bytes.
const (
	maxDeduplicationID = 128
	maxIdempotencyKey  = 255
)

// maxDeduplicationWindow is the maximum deduplication window of a queue.
const maxDeduplicationWindow = 24 * time.Hour

// deduplicationID reads the deduplication id of a message. It returns an empty id if the
// field is null or missing.
func (f *form) deduplicationID(name string) string {
	raw := f.value(name, false)
	if raw == nil {
		return ""
	}
	if raw[0] != '"' {
		f.addMistake("str type expected", "type_error.str", name)
		return ""
	}
	id := rawjson.Unquote(raw)
	if !isVisibleASCII(id, maxDeduplicationID) {
		f.addMistake(fmt.Sprintf("ensure this value has 1 to %d printable ASCII characters without spaces", maxDeduplicationID), "value_error.str", name)
		return ""
	}
	return id
}

// useIdempotencyKey gives each message without a deduplication id one that is derived from
// the Idempotency-Key of the request, if there is one, and the position of the message. No
// client can send such an id, because of the line feed.
func useIdempotencyKey(h http.Header, drafts []draft) error {
	all, has := h["Idempotency-Key"]
	if !has {
		return nil
	}
	if len(all) != 1 || !isVisibleASCII(all[0], maxIdempotencyKey) {
		return invalid{{Loc: []any{"header", "Idempotency-Key"}, Msg: fmt.Sprintf("ensure there is one key with 1 to %d printable ASCII characters without spaces", maxIdempotencyKey), Type: "value_error.str"}}
	}
	for i := range drafts {
		if drafts[i].deduplicationID == "" {
			drafts[i].deduplicationID = all[0] + "\n" + strconv.Itoa(i)
		}
	}
	return nil
}
