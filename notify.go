package main

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

// notifyChannel is the LISTEN/NOTIFY channel of all servers on one database.
const notifyChannel = "queued"

// Bounds of NOTIFY and LISTEN.
const (
	// A commit with NOTIFY takes a lock on the whole cluster. So one notification
	// covers many queues, and there is at most one per interval. A slow publish sends one
	// more, in a transaction of its own (sendNow).
	notifyInterval = 10 * time.Millisecond
	notifyPayload  = 7000 // bytes; PostgreSQL takes less than 8000

	// The connection of an idle listener has no traffic, so a ping checks whether it is
	// alive.
	pingInterval  = 10 * time.Second
	listenTimeout = 25 * time.Second
)

// notifier sends notifications about due messages to the other servers of the
// database, and receives theirs. Delivery is not guaranteed: when a server dies
// before it notifies, or loses its connection, the full sweeps of the others find
// the messages.
type notifier struct {
	origin string // of this server; marks our own notifications, which are ignored
	log    *slog.Logger
	s      *pinnedConn

	mu      sync.Mutex
	pending map[string]time.Time // queue id to the earliest due time; zero is now
	bell    chan struct{}        // capacity 1; signals that something is pending

	sending sync.Mutex // held while pending notifications are sent

	connected atomic.Bool // the listener is connected
}

func newNotifier(s *pinnedConn, origin string, log *slog.Logger) *notifier {
	return &notifier{
		origin:  origin,
		log:     log,
		s:       s,
		pending: make(map[string]time.Time),
		bell:    make(chan struct{}, 1),
	}
}

// add queues a notification that a message or group of the queue is due at dueAt.
func (n *notifier) add(queueID string, dueAt time.Time) {
	n.mu.Lock()
	if earliest, is := n.pending[queueID]; !is || dueAt.Before(earliest) {
		n.pending[queueID] = dueAt
	}
	n.mu.Unlock()
	select {
	case n.bell <- struct{}{}:
	default:
	}
}

// send sends notifications until ctx is done, and the pending ones after that.
func (n *notifier) send(ctx context.Context) {
	defer n.s.end()
	for ctx.Err() == nil {
		select {
		case <-n.bell:
		case <-ctx.Done():
		}
		n.s.exclusive(func() { n.sendNow(n.s) })
		select {
		case <-time.After(notifyInterval):
		case <-ctx.Done():
		}
	}
	n.s.exclusive(func() { n.sendNow(n.s) })
}

const sendNotificationsSQL = `
SELECT pg_notify('` + notifyChannel + `', payload)
FROM unnest($1::text[]) AS payload`

// sendNow sends the pending notifications on a connection that the caller has exclusive
// use of. When it returns, all notifications that were pending before have been sent,
// or could not be sent. A publish that took longer than slowPublish calls it.
func (n *notifier) sendNow(s *pinnedConn) {
	n.sending.Lock()
	defer n.sending.Unlock()
	n.mu.Lock()
	pending := n.pending
	n.pending = make(map[string]time.Time)
	n.mu.Unlock()
	if len(pending) == 0 {
		return
	}
	payloads := textArray(n.payloads(pending))
	err := notify(s, payloads)
	if err != nil { // the connection may have been lost; a repeated notification does no harm
		err = notify(s, payloads)
	}
	if err != nil {
		n.log.Debug("notify failed", "error", err)
	}
}

func notify(s *pinnedConn, payloads textArray) error {
	_, err := read(s, "notify", func(row scanner) (any, error) {
		return nil, row.Scan(new(any)) // of type void
	}, sendNotificationsSQL, payloads)
	return err
}

// payloads encodes notifications: the origin, followed by pairs of a queue id and a
// due time in microseconds since the Unix epoch, separated by spaces, in as many
// payloads as needed.
func (n *notifier) payloads(pending map[string]time.Time) []string {
	var all []string
	b := []byte(n.origin)
	for queueID, dueAt := range pending {
		if len(b) > notifyPayload {
			all = append(all, string(b))
			b = []byte(n.origin)
		}
		b = append(b, ' ')
		b = append(b, queueID...)
		b = append(b, ' ')
		if dueAt.IsZero() {
			b = append(b, '0')
		} else {
			b = strconv.AppendInt(b, dueAt.UnixMicro(), 10)
		}
	}
	return append(all, string(b))
}

// hear calls wake for each queue in a payload of another server, and wakeAll for a
// payload that it cannot decode.
func (n *notifier) hear(payload string, wake func(queueID string, dueAt time.Time), wakeAll func()) {
	fields := strings.Fields(payload)
	if len(fields) > 0 && fields[0] == n.origin {
		return
	}
	if len(fields)%2 != 1 {
		wakeAll()
		return
	}
	for i := 1; i < len(fields); i += 2 {
		micros, err := strconv.ParseInt(fields[i+1], 10, 64)
		if err != nil || micros == 0 {
			wake(fields[i], time.Time{})
			continue
		}
		wake(fields[i], time.UnixMicro(micros))
	}
}

// listening reports whether the listener is connected.
func (n *notifier) listening() bool { return n.connected.Load() }

// listen receives notifications until ctx is done. It reconnects by itself, and then
// calls wakeAll for the notifications that it may have missed.
func (n *notifier) listen(ctx context.Context, d *database, wake func(queueID string, dueAt time.Time), wakeAll func()) {
	way := &listenAttempt{}
	l := pq.NewDialListener(dialer{database: d, timeout: listenTimeout, listener: way}, d.dsn, 100*time.Millisecond, time.Second, func(event pq.ListenerEventType, err error) {
		switch event {
		case pq.ListenerEventConnected, pq.ListenerEventConnectionAttemptFailed:
			way.leave(d, err)
		case pq.ListenerEventDisconnected:
			n.connected.Store(false)
			n.log.Warn("notification connection lost", "error", err)
		case pq.ListenerEventReconnected:
			way.leave(d, nil)
			n.connected.Store(true)
			n.log.Info("notification connection restored")
		}
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		// Blocks until there is a connection, or until Close.
		if err := l.Listen(notifyChannel); err == nil {
			n.connected.Store(true)
			wakeAll()
		}
	})
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case v := <-l.Notify:
			if v == nil { // after a reconnect
				wakeAll()
			} else {
				n.hear(v.Extra, wake, wakeAll)
			}
		case <-ping.C:
			wg.Go(func() { l.Ping() }) // the read deadline closes a dead connection
		}
	}
	l.Close()
	for range l.Notify { // closed when the listener has ended
	}
	wg.Wait()
}
