package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

// pgErrorKind is what an error of PostgreSQL means for the server.
type pgErrorKind uint8

const (
	notExecuted    pgErrorKind = 1 << iota // the statement had no effect, and the connection is usable
	requestAtFault                         // the content of the request is the cause: 422, where all others are 503
	blameOne                               // one of the requests that share the statement may be the cause: each is tried on its own
	retryElsewhere                         // another connection may succeed
	needsOperator                          // fatal at the start; later, new connections are tried with back-off
)

// pgErrors classifies the errors of PostgreSQL by SQLSTATE, or by class (its first two
// characters), see appendix A of PostgreSQL's manual. An SQLSTATE takes precedence
// over its class. The remedy is shown when the error ends the start of the server.
var pgErrors = []struct {
	codes  string // separated by spaces
	effect pgErrorKind
	remedy string
}{
	{"57014", notExecuted, ""},                                                // query canceled, by the statement timeout
	{"08 57 58 XX", 0, ""},                                                    // connection, shutdown, system error, internal error: the outcome is unknown
	{"25P03 25P04", 0, ""},                                                    // a transaction timeout, which ends the connection
	{"25006 26", notExecuted | retryElsewhere, ""},                            // read-only, as after a failover; a prepared statement that a pooler does not know
	{"25 40 53 55P03 55006", notExecuted, ""},                                 // a deadlock, a lock timeout, or insufficient resources
	{"22 23 54", notExecuted | requestAtFault | blameOne | needsOperator, ""}, // data, constraints, limits
	{"22023", notExecuted | requestAtFault | blameOne | needsOperator, inOptions},
	{"42601 42704", notExecuted | needsOperator, inOptions},
	{"28", notExecuted | needsOperator, "check the user and the password in -database-url, and pg_hba.conf"},
	{"3D", notExecuted | needsOperator, "create the database, or name another one in -database-url"},
	{"42501", notExecuted | needsOperator, askDBA},
	{"0A", notExecuted | retryElsewhere | needsOperator, notOurs}, // also a cached plan that a schema change invalidated
	{"3F 42 55", notExecuted | needsOperator, notOurs},
}

const inOptions = "check options in -database-url"

// Remedies for a DBA.
const (
	askDBA  = `have a DBA run the output of "queued schema -role NAME"`
	notOurs = `schema "queued" does not match the output of "queued schema"; use another database or rename the conflicting objects`
)

// unlisted is the kind of all other errors, such as those that triggers raise.
const unlisted = notExecuted | blameOne | needsOperator

// pgErrorKindOf returns the kind of an error of PostgreSQL and its remedy, or false
// for other errors. lib/pq turns errors that end the connection into
// driver.ErrBadConn, if the messages of PostgreSQL are in English.
func pgErrorKindOf(err error) (v pgErrorKind, remedy string, ok bool) {
	e := pq.As(err)
	if e == nil {
		return 0, "", false
	}
	for _, code := range []string{string(e.Code), string(e.Code.Class())} {
		for _, r := range pgErrors {
			for known := range strings.SplitSeq(r.codes, " ") {
				if known == code {
					return r.effect, r.remedy, true
				}
			}
		}
	}
	return unlisted, "check for a trigger or an event trigger that raises it", true
}

func means(err error, what pgErrorKind) bool {
	v, _, _ := pgErrorKindOf(err)
	return v&what != 0
}

// rejected reports whether PostgreSQL refused the statement, which had no effect.
func rejected(err error) bool { return means(err, notExecuted) }

// retryable reports whether the statement may succeed on another connection.
func retryable(err error) bool { return means(err, retryElsewhere) }

// blamesOne reports whether one of the requests that share a statement may be the
// cause of its error.
func blamesOne(err error) bool { return means(err, blameOne) }

// atFault reports whether PostgreSQL rejected the content of a request: the same
// request would fail again.
func atFault(err error) bool { return means(err, requestAtFault) }

// locked reports whether a statement failed with a lock timeout.
func locked(err error) bool { return pq.As(err, "55P03") != nil }

// repeatInterval is the minimum time between two lines about the same error.
const repeatInterval = time.Minute

// repeatFilter limits repeated warnings and errors to one a minute: for errors of
// PostgreSQL by SQLSTATE, for failed connections and unavailable nodes by message. It logs the
// others at level debug.
type repeatFilter struct {
	slog.Handler
	seen *sync.Map // time.Time by pqerror.Code or message
}

func (h repeatFilter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn && !h.isNew(r) {
		if r.Level = slog.LevelDebug; !h.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}

// isNew reports whether there was no line about the same error in the last minute.
func (h repeatFilter) isNew(r slog.Record) bool {
	is := true
	r.Attrs(func(a slog.Attr) bool {
		err, _ := a.Value.Any().(error)
		var key any
		if e, network := pq.As(err), (*net.OpError)(nil); e != nil {
			key = e.Code
		} else if errors.As(err, &network) && network.Op == "dial" || errors.Is(err, errNodeUnavailable) || errors.Is(err, errNeedsAllNodes) {
			key = r.Message
		} else {
			return true
		}
		now := time.Now()
		last, loaded := h.seen.LoadOrStore(key, now)
		is = !loaded || now.Sub(last.(time.Time)) > repeatInterval && h.seen.CompareAndSwap(key, last, now)
		return false
	})
	return is
}

func (h repeatFilter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return repeatFilter{h.Handler.WithAttrs(attrs), h.seen}
}

func (h repeatFilter) WithGroup(name string) slog.Handler {
	return repeatFilter{h.Handler.WithGroup(name), h.seen}
}

// connectGate limits connection attempts while PostgreSQL refuses them for a reason
// that needs an operator. Then one connection is tried at a time, with exponential
// back-off, and all others fail with the error of the last attempt.
type connectGate struct {
	mu    sync.Mutex
	err   error     // of the last attempt; nil if the gate is open
	until time.Time // no attempt before this time
	wait  time.Duration
}

// Limits of the back-off.
const (
	firstWait   = 100 * time.Millisecond
	longestWait = 5 * time.Second
)

// errNotYet is the error of connections to a private PostgreSQL before it is ready.
var errNotYet = errors.New("PostgreSQL is starting")

// close refuses all connections until open is called.
func (g *connectGate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err, g.until = errNotYet, time.Now().Add(noDeadline)
}

func (g *connectGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = nil
}

// enter returns an error if no connection may be tried now. Otherwise the caller
// tries one, and passes its error and probe to leave.
func (g *connectGate) enter() (probe bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		return false, nil
	}
	if now := time.Now(); now.Before(g.until) {
		return false, g.err
	} else {
		g.until = now.Add(connectTimeout) // or until leave is called
	}
	return true, nil
}

func (g *connectGate) leave(probe bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		g.until = time.Time{} // the attempt has no result, so the next one may follow at once
		return
	case !means(err, needsOperator):
		if err == nil || probe {
			g.err, g.wait = nil, 0
		}
		return
	case g.err == nil:
		g.wait = firstWait
	case probe:
		g.wait = min(2*g.wait, longestWait)
	default:
		return // an attempt that began before the gate closed
	}
	g.err, g.until = err, time.Now().Add(g.wait)
}
