package main

import (
	"context"
	"crypto/rand"
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

// wantCounts, in place of a queue id, asks the other servers to write what their
// tallies hold. No queue can be called so.
const wantCounts = "."

// Bounds of NOTIFY and LISTEN.
const (
	// A commit that notifies takes a lock that all of them share, so there is
	// one for many queues, at most one in this time, and none in a publish.
	notifyInterval = 10 * time.Millisecond
	notifyPayload  = 7000 // bytes; PostgreSQL takes less than 8000
	notifyTimeout  = 100 * time.Millisecond

	// A listener says nothing for as long as nothing happens; the ping shows
	// that its connection is alive.
	pingInterval  = 10 * time.Second
	listenTimeout = 25 * time.Second
)

// notifier tells other servers on the database what this one announces, and
// hears what they do. It is no guarantee: a server that dies before it notifies,
// or loses its connection, leaves it to the slow look of the others.
type notifier struct {
	origin string // of our own notifications, which we need not hear
	log    *slog.Logger
	s      *pinnedConn

	mu      sync.Mutex
	pending map[string]time.Time // queue id to the earliest announced due time; zero is now
	bell    chan struct{}        // holds one; rung when something is pending

	urgent chan chan struct{} // asks for what is pending to be sent at once; closed when it has been
	ended  chan struct{}      // closed when nothing is sent any more

	connected atomic.Bool // notifications can come
}

func newNotifier(s *pinnedConn, log *slog.Logger) *notifier {
	return &notifier{
		origin:  rand.Text(),
		log:     log,
		s:       s,
		pending: make(map[string]time.Time),
		bell:    make(chan struct{}, 1),
		urgent:  make(chan chan struct{}),
		ended:   make(chan struct{}),
	}
}

// add has the other servers told, soon, that something in the queue is due then.
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

// sendNow returns when what was added before has been sent, or that takes long.
// It is called by who is alone with a session.
func (n *notifier) sendNow(s *pinnedConn) {
	if s == n.s {
		n.flushAlone()
		return
	}
	sent := make(chan struct{})
	patience := time.After(notifyTimeout)
	select {
	case n.urgent <- sent:
	case <-n.ended:
		return
	case <-patience:
		return
	}
	select {
	case <-sent:
	case <-patience:
	}
}

// send notifies until ctx is done, and then once more.
func (n *notifier) send(ctx context.Context) {
	defer n.s.end()
	defer close(n.ended)
	for {
		select {
		case <-n.bell:
			n.flush()
		case sent := <-n.urgent:
			n.flush()
			close(sent)
		case <-ctx.Done():
			n.flush()
			return
		}
		select {
		case <-time.After(notifyInterval):
		case sent := <-n.urgent:
			n.flush()
			close(sent)
		case <-ctx.Done():
		}
	}
}

const sendNotificationsSQL = `
SELECT pg_notify('` + notifyChannel + `', payload)
FROM unnest($1::text[]) AS payload`

func (n *notifier) flush() { n.s.exclusive(n.flushAlone) }

// flushAlone is flush for who is alone with the session.
func (n *notifier) flushAlone() {
	n.mu.Lock()
	pending := n.pending
	n.pending = make(map[string]time.Time)
	n.mu.Unlock()
	if len(pending) == 0 {
		return
	}
	payloads := textArray(n.payloads(pending))
	err := n.notify(payloads)
	if err != nil { // perhaps a connection that was lost: they may hear it twice
		err = n.notify(payloads)
	}
	if err != nil {
		n.log.Debug("notify", "error", err)
	}
}

func (n *notifier) notify(payloads textArray) error {
	_, err := read(n.s, "notify", func(row scanner) (any, error) {
		return nil, row.Scan(new(any)) // of type void
	}, sendNotificationsSQL, payloads)
	return err
}

// payloads writes the origin and then, as often as fits, a queue id and a due
// time in microseconds of the Unix epoch, all separated by spaces.
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

// hear calls wake for each queue in a payload of another server. A payload that
// makes no sense may have been meant to say anything: wakeAll.
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

// listening reports whether notifications can come.
func (n *notifier) listening() bool { return n.connected.Load() }

// listen hears notifications until ctx is done. It connects, and connects again,
// by itself; what may have been missed meanwhile is a call of wakeAll.
func (n *notifier) listen(ctx context.Context, d *database, wake func(queueID string, dueAt time.Time), wakeAll func()) {
	way := &listening{}
	l := pq.NewDialListener(dialer{database: d, timeout: listenTimeout, listener: way}, d.dsn, 100*time.Millisecond, time.Second, func(event pq.ListenerEventType, err error) {
		switch event {
		case pq.ListenerEventConnected, pq.ListenerEventConnectionAttemptFailed:
			way.leave(d, err)
		case pq.ListenerEventDisconnected:
			n.connected.Store(false)
			n.log.Warn("lost the connection for notifications", "error", err)
		case pq.ListenerEventReconnected:
			way.leave(d, nil)
			n.connected.Store(true)
			n.log.Info("notifications are back")
		}
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		// Blocks for as long as there is no connection, until Close.
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
			wg.Go(func() { l.Ping() }) // a dead connection is found by its read deadline
		}
	}
	l.Close()
	for range l.Notify { // closed when the listener has ended
	}
	wg.Wait()
}
