package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// A queue has a home (schema.sql), by which the large tables can be distributed. A statement
// that finds rows of these tables names their home, as a rule in its first parameter.
// Statements that insert rows, and functions of the database, take it from the queue, mostly
// from its key (key >> 48). statement_rules_test.go lists the exceptions. Work on several homes
// takes a statement for each. Without Citus all homes are 0.

// homeOf returns the home of a queue.
func homeOf(queueKey int64) int64 { return queueKey >> 48 }

// firstKey is less than the keys of all queues of a home, and greater than those of the homes
// before.
func firstKey(home int64) int64 { return home << 48 }

// ofMessage returns the home of a message.
func ofMessage(m message) int64 { return homeOf(m.queueKey) }

// homes are the homes that a database has. A nil one has home 0 only.
type homes struct {
	list atomic.Pointer[[]int64]

	mu      sync.Mutex
	byQueue map[string]int64 // homes that queues had when they were last read, by id

	engine *engine // knows the nodes of the homes; nil without one

	// failed has the time of the last failure, by name, of nodes that only the main node
	// connects to: the server does not check them.
	failed sync.Map
}

// failedFor is the time for which a failed node counts as unavailable.
const failedFor = time.Minute

func (h *homes) areSeveral() bool { return h != nil && h.list.Load() != nil }

// set sets the homes for new queues.
func (h *homes) set(all []int64) { h.list.Store(&all) }

// learn records the home of a queue if there are several.
func (h *homes) learn(queueID string, queueKey int64) {
	if !h.areSeveral() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byQueue == nil || len(h.byQueue) >= settingsKept {
		h.byQueue = make(map[string]int64)
	}
	h.byQueue[queueID] = homeOf(queueKey)
}

// last returns the home that a queue had when it was last read.
func (h *homes) last(queueID string) (home int64, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	home, known = h.byQueue[queueID]
	return home, known
}

// unavailable returns errNodeUnavailable if the node of a home does not respond, as far as is
// known. Statements about the home would wait for the node, and then fail.
func (h *homes) unavailable(home int64) error {
	if h == nil || h.engine == nil {
		return nil
	}
	if n := h.engine.nodeOf(home); n != h.engine.main && n.isSilent() {
		return n.explain(errUnavailable)
	}
	if name := h.engine.throughMain(home); h.hasFailed(name) {
		return fmt.Errorf("%w: %s: %w", errNodeUnavailable, name, errUnavailable)
	}
	return nil
}

// hasFailed reports whether a node that only the main node connects to has failed recently.
func (h *homes) hasFailed(name string) bool {
	at, has := h.failed.Load(name)
	return has && time.Since(at.(time.Time)) < failedFor
}

// fails records the error of a statement about a home, for unavailable.
func (h *homes) fails(home int64, err error) {
	if h == nil || h.engine == nil || pq.As(err, pqerror.ConnectionFailure, pqerror.QueryCanceled) == nil {
		return
	}
	if name := h.engine.throughMain(home); name != "" {
		h.failed.Store(name, time.Now())
	}
}

// needAllNodes returns errNeedsAllNodes if a node does not respond, as far as is known.
func (h *homes) needAllNodes() error {
	if h == nil || h.engine == nil {
		return nil
	}
	silent := h.engine.nodeIsSilent()
	if v := h.engine.placements.Load(); v != nil {
		for name := range v.unreachable {
			silent = silent || h.hasFailed(name)
		}
	}
	if silent {
		return errNeedsAllNodes
	}
	return nil
}

// allRespond reports whether all nodes respond, as far as is known. A statement about all homes
// would wait for those that do not.
func (h *homes) allRespond() bool {
	return h.needAllNodes() == nil && (h == nil || h.engine == nil || !h.engine.main.isSilent())
}

// each calls work for each of these homes. It skips homes whose node does not respond, and an
// error ends only the work of its home, unless the database itself is lost.
func (h *homes) each(all []int64, work func(home int64) error) error {
	var errs errorList
	for _, home := range all {
		err := h.unavailable(home)
		if err == nil {
			err = work(home)
			h.fails(home, err)
		}
		if errs = errs.with(err); h.isLost(err) {
			break
		}
	}
	return errs.err()
}

// errorList are errors of several homes, each text once: homes of a node have the same.
type errorList []error

// with adds an error or those of a list.
func (l errorList) with(err error) errorList {
	if list, is := err.(errorList); is {
		for _, err := range list {
			l = l.with(err)
		}
		return l
	}
	if err == nil || slices.ContainsFunc(l, func(other error) bool { return other.Error() == err.Error() }) {
		return l
	}
	return append(l, err)
}

// err returns the list as an error, nil if it is empty.
func (l errorList) err() error {
	if len(l) == 0 {
		return nil
	}
	return l
}

func (l errorList) Error() string   { return errors.Join(l...).Error() }
func (l errorList) Unwrap() []error { return l }

// isLost reports whether an error means that the database is unavailable, and not only some
// of its homes.
func (h *homes) isLost(err error) bool {
	if rejected(err) || !errors.Is(asUnavailable(err), errUnavailable) {
		return errors.Is(err, context.Canceled)
	}
	ofNode := pq.As(err) != nil || errors.Is(err, errNodeUnavailable) || errors.Is(err, errNeedsAllNodes)
	return !ofNode || !h.areSeveral()
}

// endsAll reports whether an error ends the work in all homes, and not only that in one.
func (h *homes) endsAll(err error) bool {
	return err != nil && (!h.areSeveral() || h.isLost(err))
}

const selectNextHomeSQL = `
SELECT h.home
FROM unnest($1::bigint[]) AS h (home)
LEFT JOIN queued.queues q ON q.home = h.home
GROUP BY h.home
ORDER BY count(q.id), h.home
LIMIT 1`

// next returns the home for a new queue: one with the fewest queues.
func (h *homes) next(ctx context.Context, db querier) (home int64, err error) {
	if h.areSeveral() {
		err = db.QueryRowContext(ctx, selectNextHomeSQL, intArray(*h.list.Load())).Scan(&home)
	}
	return home, err
}

// ofID returns the home that the queue of a message had when the message was published.
func (h *homes) ofID(id string) int64 {
	if !h.areSeveral() {
		return 0
	}
	return homeInID(id)
}

// newID returns the id of a new message in a queue.
func (h *homes) newID(queueKey int64) string {
	if !h.areSeveral() {
		return newID()
	}
	return newIDIn(homeOf(queueKey))
}

// homesOfMessages returns a function with the homes that messages have now. The home of an
// unknown message is that of its id. It returns errNodeUnavailable if an unknown message may be
// on a node that does not respond.
func (s *store) homesOfMessages(ctx context.Context, ids []string) (func(id string) int64, error) {
	if !s.homes.areSeveral() {
		return s.homes.ofID, nil
	}
	all := make(locations)
	var err error
	if s.homes.allRespond() {
		_, err = collect(ctx, s.on("locations"), all.scan, selectLocationsSQL, idArray(ids))
	} else if err = s.locateInEach(ctx, ids, all); all.hasAll(ids) {
		err = nil
	}
	return func(id string) int64 {
		if at, found := all[id]; found {
			return at.home
		}
		return s.homes.ofID(id)
	}, err
}

// locateInEach searches messages in one home after the other.
func (s *store) locateInEach(ctx context.Context, ids []string, found locations) error {
	homes, err := s.homes.inUse(ctx, s.on("homes"))
	if err != nil {
		return err
	}
	return s.homes.each(homes, func(home int64) error {
		_, err := collect(ctx, s.on("locations_in_home"), found.scan, selectLocationsInHomeSQL, home, idArray(ids))
		return err
	})
}

// inHomesOfItems is inHomes for sorted items, of which some may have moved. These are looked
// up if the statement has not found all messages. named returns the ids of the messages in a
// row of the result. It also returns the ids of messages that may be moving.
func inHomesOfItems[R any](s *pinnedConn, items []ackItem, run func(home int64, items []ackItem) ([]R, error), named func(R) []string) (all []R, moving []string, err error) {
	all, err = inHomes(s, items, s.homes.ofItem, run)
	if err != nil || !s.homes.areSeveral() {
		return all, nil, err
	}
	done := make(map[string]bool)
	for _, row := range all {
		for _, id := range named(row) {
			done[id] = true
		}
	}
	missing := slices.DeleteFunc(idsWithoutReceipt(items), func(id string) bool { return done[id] })
	moved, sure, err := s.locate(missing)
	if err == nil {
		if !sure {
			moving = slices.DeleteFunc(missing, func(id string) bool { _, found := moved[id]; return found })
		}
		var again []ackItem
		for _, v := range items {
			if at, found := moved[v.id]; found && at.home != s.homes.ofID(v.id) && v.receipt.attempts == 0 {
				again = append(again, v)
			}
		}
		var rows []R
		rows, err = inHomes(s, again, func(v ackItem) int64 { return moved[v.id].home }, run)
		all = append(all, rows...)
	}
	if err != nil && !s.begun {
		// The first part is committed, and must not run again.
		err = fmt.Errorf("%w: unknown what became of messages that have moved: %v", errUnavailable, err)
	}
	return all, moving, err
}

// idsWithoutReceipt returns the ids of sorted items without a receipt, each once. A receipt
// is of one queue, and ends when its message moves.
func idsWithoutReceipt(items []ackItem) (ids []string) {
	for _, v := range items {
		if v.receipt.attempts == 0 && (len(ids) == 0 || ids[len(ids)-1] != v.id) {
			ids = append(ids, v.id)
		}
	}
	return ids
}

// ofItem returns the home of the message that an ack, nack or extension names.
func (h *homes) ofItem(v ackItem) int64 {
	if v.receipt.attempts > 0 {
		return homeOf(v.receipt.queueKey)
	}
	return h.ofID(v.id)
}

const selectHomesSQL = `
SELECT home
FROM queued.queues
UNION
SELECT home
FROM queued.deleted_queues
ORDER BY home`

// inUse returns the homes of all queues and deleted queues, in order.
func (h *homes) inUse(ctx context.Context, db querier) ([]int64, error) {
	if !h.areSeveral() {
		return []int64{0}, nil
	}
	return collect(ctx, db, scanKey, selectHomesSQL)
}

const selectPagesSQL = `
SELECT pg_relation_size('queued.messages') / current_setting('block_size')::bigint`

// A distributed table has no size, but its shards have. The node of the home computes it.
const selectShardPagesSQL = `
SELECT pg_relation_size(tableoid) / current_setting('block_size')::bigint
FROM queued.messages
WHERE home = $1
    AND ctid >= '(0,0)'::tid
LIMIT 1`

// pages returns the number of pages of the table of messages in a home, 8 kB each, 0 if it has
// no message.
func (h *homes) pages(ctx context.Context, db querier, home int64) (n int64, err error) {
	if !h.areSeveral() {
		err = db.QueryRowContext(ctx, selectPagesSQL).Scan(&n)
		return n, asUnavailable(err)
	}
	err = db.QueryRowContext(ctx, selectShardPagesSQL, home).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return n, asUnavailable(err)
}

const selectHomesOfSQL = `
SELECT id, home
FROM queued.queues
WHERE id = ANY($1::text[])`

// ofQueues returns a function with the homes of queues. The home of an unknown queue is 0.
func (h *homes) ofQueues(s *pinnedConn, ids []string) (func(id string) int64, error) {
	if !h.areSeveral() {
		return func(string) int64 { return 0 }, nil
	}
	all := make(map[string]int64, len(ids))
	_, err := read(s, "homes", func(row scanner) (any, error) {
		var id string
		var home int64
		err := row.Scan(&id, &home)
		all[id] = home
		return nil, err
	}, selectHomesOfSQL, textArray(ids))
	return func(id string) int64 { return all[id] }, err
}

// inHomesOfQueues runs a statement for the queues of each home and returns all rows; idOf
// returns the queue of a row. It looks up the homes of queues that it does not find where they
// were last.
func inHomesOfQueues[R any](s *pinnedConn, ids []string, idOf func(R) string, run func(home int64, places []int) ([]R, error)) ([]R, error) {
	if !s.homes.areSeveral() {
		return run(0, places(ids))
	}
	missing := make(map[string]bool)
	var known []int
	last := make([]int64, len(ids))
	for i, id := range ids {
		missing[id] = true
		if home, is := s.homes.last(id); is {
			last[i], known = home, append(known, i)
		}
	}
	all, err := inHomes(s, known, func(i int) int64 { return last[i] }, run)
	if err != nil {
		return nil, err
	}
	for _, row := range all {
		delete(missing, idOf(row))
	}
	if len(missing) == 0 {
		return all, nil
	}
	home, err := s.homes.ofQueues(s, slices.Collect(maps.Keys(missing)))
	if err != nil {
		return nil, err
	}
	again := slices.DeleteFunc(places(ids), func(i int) bool { return !missing[ids[i]] })
	more, err := inHomes(s, again, func(i int) int64 { return home(ids[i]) }, run)
	return append(all, more...), err
}

// homeOfQueue returns the home of a queue, or 0 if there is no queue. It returns
// errNodeUnavailable like queueAtHome.
func (s *store) homeOfQueue(ctx context.Context, queueID string) (home int64, err error) {
	if !s.homes.areSeveral() {
		return 0, nil
	}
	q, err := s.queueAtHome(ctx, queueID)
	if err != nil && !errors.Is(err, errQueueNotFound) {
		return 0, err
	}
	return homeOf(q.key), nil
}

// queueAtHome returns a queue whose messages will be read or changed. It returns
// errNodeUnavailable if their node does not respond, because a statement that waits for the
// node occupies a connection that other requests need.
func (s *store) queueAtHome(ctx context.Context, id string) (queue, error) {
	q, err := s.queue(ctx, id)
	if err == nil {
		err = s.homes.unavailable(homeOf(q.key))
	}
	return q, err
}

// inHomes runs a statement for the items of each home and returns all rows. If there are
// several homes, it does so in one transaction.
func inHomes[T, R any](s *pinnedConn, items []T, home func(T) int64, run func(home int64, items []T) ([]R, error)) (all []R, err error) {
	each := func() error {
		all = nil
		for home, part := range byHome(items, home) {
			rows, err := run(home, part)
			if err != nil {
				return err
			}
			all = append(all, rows...)
		}
		return nil
	}
	if s.begun || !inSeveral(items, home) {
		err = each()
	} else {
		err = s.transaction(each)
	}
	return all, err
}

// places returns the indexes of items.
func places[T any](items []T) []int {
	all := make([]int, len(items))
	for i := range all {
		all[i] = i
	}
	return all
}

// pick returns the items with these indexes, in their order.
func pick[T any](items []T, places []int) []T {
	all := make([]T, len(places))
	for i, place := range places {
		all[i] = items[place]
	}
	return all
}

// inSeveral reports whether items have different homes.
func inSeveral[T any](items []T, home func(T) int64) bool {
	return slices.ContainsFunc(items, func(v T) bool { return home(v) != home(items[0]) })
}

// byHome yields the items of each home, in order of the homes.
func byHome[T any](items []T, home func(T) int64) iter.Seq2[int64, []T] {
	return func(yield func(int64, []T) bool) {
		if len(items) == 0 {
			return
		}
		if !inSeveral(items, home) {
			yield(home(items[0]), items)
			return
		}
		parts := make(map[int64][]T)
		var all []int64
		for _, v := range items {
			at := home(v)
			if parts[at] == nil {
				all = append(all, at)
			}
			parts[at] = append(parts[at], v)
		}
		slices.Sort(all)
		for _, at := range all {
			if !yield(at, parts[at]) {
				return
			}
		}
	}
}
