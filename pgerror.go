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

// pgErrorKind is what an error of PostgreSQL means to the server.
type pgErrorKind uint8

const (
	notExecuted    pgErrorKind = 1 << iota // the statement did nothing, and the connection is as good as before
	requestAtFault                         // the request is at fault: 422, where all others are 503
	blameOne                               // one of the requests that share the statement may be the reason: each is tried on its own
	retryElsewhere                         // another connection may do better
	needsOperator                          // somebody has to mend it: at the start it is an error, and new connections wait longer and longer
)

// pgErrors say what the errors of PostgreSQL mean, by SQLSTATE or by class, which
// is its first two characters; see the appendix of PostgreSQL's manual. An
// SQLSTATE goes before its class.
//
// The remedy is for the start, where waiting is in vain.
var pgErrors = []struct {
	codes  string // separated by spaces
	effect pgErrorKind
	remedy string
}{
	{"57014", notExecuted, ""},                                                // cancelled: it took too long
	{"08 57 58 XX", 0, ""},                                                    // connection, shutdown, system error, internal error: what became of it is unknown
	{"25P03 25P04", 0, ""},                                                    // a transaction that took too long, which ends the connection
	{"25006 26", notExecuted | retryElsewhere, ""},                            // read-only, as after a failover; a prepared statement that a pooler has lost
	{"25 40 53 55P03 55006", notExecuted, ""},                                 // lost against others, or out of a resource
	{"22 23 54", notExecuted | requestAtFault | blameOne | needsOperator, ""}, // data, constraints, limits
	{"22023", notExecuted | requestAtFault | blameOne | needsOperator, inOptions},
	{"42601 42704", notExecuted | needsOperator, inOptions},
	{"28", notExecuted | needsOperator, "check the user and the password in -database-url, and pg_hba.conf"},
	{"3D", notExecuted | needsOperator, "create the database, or name another one in -database-url"},
	{"42501", notExecuted | needsOperator, askDBA},
	{"0A", notExecuted | retryElsewhere | needsOperator, notOurs}, // also a plan that is out of date since the schema changed
	{"3F 42 55", notExecuted | needsOperator, notOurs},
}

const inOptions = "check options in -database-url"

// What a DBA can do.
const (
	askDBA  = `have a DBA run what "queued schema -role NAME" prints`
	notOurs = `the schema "queued" must be as "queued schema" prints it: use another database, or move away what is in the way`
)

// unlisted is what all other errors mean, like those of triggers.
const unlisted = notExecuted | blameOne | needsOperator

// pgErrorKindOf returns what an error means, and false if it is not PostgreSQL's.
// Errors that end the connection lib/pq turns into driver.ErrBadConn, if
// PostgreSQL speaks English.
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
	return unlisted, "look for a trigger or an event trigger that raises it", true
}

func means(err error, what pgErrorKind) bool {
	v, _, _ := pgErrorKindOf(err)
	return v&what != 0
}

// rejected reports whether PostgreSQL refused the statement and so did nothing.
func rejected(err error) bool { return means(err, notExecuted) }

// retryable reports whether another connection may do better.
func retryable(err error) bool { return means(err, retryElsewhere) }

// blamesOne reports whether one of the requests that share a statement may be the
// reason that PostgreSQL refused it.
func blamesOne(err error) bool { return means(err, blameOne) }

// atFault reports whether PostgreSQL rejected what a request brought, so that
// the same request will fail again.
func atFault(err error) bool { return means(err, requestAtFault) }

// locked reports whether a statement waited for a lock until lockTimeout.
func locked(err error) bool { return pq.As(err, "55P03") != nil }

// repeatInterval is the time between two lines about the same trouble.
const repeatInterval = time.Minute

// repeatFilter is a log that says once a minute, for each SQLSTATE, what
// PostgreSQL refuses, and, for each message, that it cannot be connected to,
// however many requests and tasks meet it. The other lines are of level debug.
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

// isNew reports whether a line is not about what another has said lately.
func (h repeatFilter) isNew(r slog.Record) bool {
	is := true
	r.Attrs(func(a slog.Attr) bool {
		err, _ := a.Value.Any().(error)
		var trouble any
		if e, network := pq.As(err), (*net.OpError)(nil); e != nil {
			trouble = e.Code
		} else if errors.As(err, &network) && network.Op == "dial" {
			trouble = r.Message
		} else {
			return true
		}
		now := time.Now()
		last, loaded := h.seen.LoadOrStore(trouble, now)
		is = !loaded || now.Sub(last.(time.Time)) > repeatInterval && h.seen.CompareAndSwap(trouble, last, now)
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

// connectGate keeps a server from connecting again and again where PostgreSQL refuses it
// for a reason that somebody has to mend. Then one connection is tried at a time,
// after a wait that doubles, and all others fail like the last.
type connectGate struct {
	mu    sync.Mutex
	err   error     // of the last try; nil: open
	until time.Time // no connection is tried
	wait  time.Duration
}

// Bounds of the wait.
const (
	firstWait   = 100 * time.Millisecond
	longestWait = 5 * time.Second
)

// errNotYet is the error of connections to a private PostgreSQL before it is ready.
var errNotYet = errors.New("PostgreSQL is starting")

// close has no connection tried until open is called.
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
// tries one, and hands its outcome and probe to leave.
func (g *connectGate) enter() (probe bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		return false, nil
	}
	if now := time.Now(); now.Before(g.until) {
		return false, g.err
	} else {
		g.until = now.Add(connectTimeout) // at most: until it is known what became of this one
	}
	return true, nil
}

func (g *connectGate) leave(probe bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		g.until = time.Time{} // nobody knows
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
		return // one that was under way already
	}
	g.err, g.until = err, time.Now().Add(g.wait)
}
