package main

import (
	"embed"
	"math"
	"path"
	"strings"
	"time"
)

// dashboardFiles has the files of the dashboard, which are served as they are. There
// is no build step, and the files load nothing from other hosts.
//
//go:embed dashboard/*.html dashboard/*.css dashboard/*.js dashboard/*.svg
var dashboardFiles embed.FS

// dashboardPolicy is the Content-Security-Policy of the dashboard. It allows the
// dashboard's own files and requests to this server, and no HTML built from strings.
const dashboardPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// dashboardTypes are the content types by extension. Package mime may return others,
// depending on the configuration of the machine.
var dashboardTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

func (s *server) handleDashboard() {
	s.handle(sharQ, public, "GET /{$}", s.home)
	s.handle(native, public, "GET /dashboard/{file}", s.dashboardFile).always = true
	s.handle(native, anyToken, "GET /overview", s.overview)
	s.handle(native, anyToken, "GET /overview/history", s.overviewHistory)
}

// home returns the dashboard to browsers and SharQ's greeting to all other clients.
// The Server header holds the version, for which SharQ's greeting has no field.
func (s *server) home(r *request) (any, error) {
	r.w.Header().Set("Server", "queued "+version())
	r.w.Header().Set("Vary", "Accept")
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		return r.dashboard("index.html")
	}
	return sharQGreeting{"Hello, SharQ!"}, nil
}

func (s *server) dashboardFile(r *request) (any, error) {
	return r.dashboard(r.PathValue("file"))
}

// dashboard returns a file of the dashboard.
func (r *request) dashboard(name string) (any, error) {
	file, err := dashboardFiles.ReadFile("dashboard/" + name)
	if err != nil {
		return nil, errNoRoute
	}
	header := r.w.Header()
	header.Set("Content-Security-Policy", dashboardPolicy)
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	return content{mediaType: dashboardTypes[path.Ext(name)], bytes: file, static: true}, nil
}

// overview is the response to GET /overview without its "data", a list of
// overviewItem.
type overview struct {
	Server overviewServer `json:"server"`
	Token  *overviewToken `json:"token"` // null if the server requires none
	// Totals are those of all visible queues, not only of the page.
	Totals overviewTotals `json:"totals"`
	// NextOffset is the offset of the next page, null on the last page.
	NextOffset *int `json:"next_offset"`
}

type overviewServer struct {
	ID      string  `json:"id"` // of the process, whose totals count from its start
	Version string  `json:"version"`
	Uptime  float64 `json:"uptime_seconds"`
	// CountedAgo is the age of the message counts, null before the first count.
	CountedAgo *float64 `json:"counted_seconds_ago"`
	// Recent is the length of the time that the recent numbers of the queues are from.
	Recent float64 `json:"recent_seconds"`
	// Database is null if the token has no permission for metrics.
	Database *overviewDatabase `json:"database"`
}

// overviewDatabase describes the database of the server.
type overviewDatabase struct {
	databasePlace
	Version string  `json:"version"` // of PostgreSQL
	Latency float64 `json:"latency_seconds"`
}

// databasePlace says where the database of the server is, without secrets.
type databasePlace struct {
	Location string `json:"location"` // see describe; for the private PostgreSQL its directory
	Private  bool   `json:"private"`
}

type overviewToken struct {
	Name  string `json:"name"`
	Admin bool   `json:"admin"`
}

// overviewItem is a queue with its message counts and with this server's totals.
type overviewItem struct {
	queue
	Messages         *messageCounts `json:"messages"`          // null if the queue was created after the last count, or was not counted
	MessagesHourAgo  *int64         `json:"messages_hour_ago"` // at the oldest sample of the history, null without one, or if it was not counted then
	OldestAge        float64        `json:"oldest_message_age_seconds"`
	WaitingReceivers int            `json:"waiting_receivers"`
	overviewTotals
	Recent recentTotals `json:"recent,omitzero"` // left out if all are zero
}

// recentTotals are numbers of messages of the last minutes: those by which the dashboard
// judges a queue before it has watched it for a while, or if little happens in the queue.
type recentTotals struct {
	Delivered   int64 `json:"delivered"`
	Redelivered int64 `json:"redelivered"`
	Acked       int64 `json:"acked"`
	Nacked      int64 `json:"nacked"`
	Expired     int64 `json:"expired"`
}

// since returns what has happened since an earlier state. It is zero for a queue that was
// deleted and created again in between, whose totals restarted.
func (v *overviewTotals) since(before overviewTotals) recentTotals {
	r := recentTotals{v.Delivered - before.Delivered, v.Redelivered - before.Redelivered, v.Acked - before.Acked, v.Nacked - before.Nacked, v.Expired - before.Expired}
	if min(r.Delivered, r.Redelivered, r.Acked, r.Nacked, r.Expired) < 0 {
		return recentTotals{}
	}
	return r
}

// overviewTotals are numbers of messages since the start of this server. A message that
// moves to a dead queue counts at the queue that it leaves.
type overviewTotals struct {
	Published    int64 `json:"published_total"`
	Delivered    int64 `json:"delivered_total"`
	Redelivered  int64 `json:"redelivered_total"`
	Acked        int64 `json:"acked_total"`
	Nacked       int64 `json:"nacked_total"`
	DeadLettered int64 `json:"dead_lettered_total"`
	Expired      int64 `json:"expired_total"`
}

// merge adds other totals.
func (v *overviewTotals) merge(other overviewTotals) {
	v.Published += other.Published
	v.Delivered += other.Delivered
	v.Redelivered += other.Redelivered
	v.Acked += other.Acked
	v.Nacked += other.Nacked
	v.DeadLettered += other.DeadLettered
	v.Expired += other.Expired
}

// add adds the counters of a queue, none if totals is nil.
func (v *overviewTotals) add(totals *messageTotals) {
	if totals == nil {
		return
	}
	v.Published += totals[messagesPublished].Load()
	v.Delivered += totals[messagesDelivered].Load()
	v.Redelivered += totals[messagesRedelivered].Load()
	v.Acked += totals[messagesAcked].Load()
	v.Nacked += totals[messagesNacked].Load()
	v.DeadLettered += totals[messagesDeadLettered].Load()
	v.Expired += totals[messagesExpired].Load()
}

// overview returns a page of at most -max-limit queues, ordered by id.
func (s *server) overview(r *request) (any, error) {
	q := r.query()
	offset := q.integer("offset", 0, bounds{0, math.MaxInt})
	if err := q.err(); err != nil {
		return nil, err
	}
	visible := r.visible()
	queues, more, err := s.store.queues(r.Context(), visible, offset, s.limits.maxLimit+1)
	if err != nil {
		return nil, err
	}
	v := overview{Server: overviewServer{ID: s.id, Version: version()}}
	if len(queues) > s.limits.maxLimit {
		queues, more = queues[:s.limits.maxLimit], true
	}
	if r.token != nil {
		v.Token = &overviewToken{r.token.name, r.token.admin}
	}
	counted, at := s.depth.latest()
	counts := make(map[string]*queueDepth, len(counted))
	for i := range counted {
		counts[counted[i].queueID] = &counted[i]
	}
	waiting := s.engine.waiting()
	before, known := s.history.oldest()
	recent, recentKnown := s.history.before(time.Now().Add(-recentTime))
	if recentKnown {
		v.Server.Recent = time.Since(recent.at).Seconds()
	} else {
		v.Server.Recent = time.Since(s.started).Seconds()
	}
	items := make([]overviewItem, len(queues))
	for i, q := range queues {
		item := overviewItem{queue: q, WaitingReceivers: waiting[q.ID]}
		if c := counts[q.ID]; c != nil && !c.uncounted {
			item.Messages = &c.messageCounts
			item.OldestAge = c.oldestSeconds
		}
		if known && !before.uncounted[q.ID] {
			item.MessagesHourAgo = new(before.queues[q.ID].messages)
		}
		item.add(s.metrics.totalsOf(q.ID))
		if values, sampled := recent.queues[q.ID]; sampled || len(recent.queues) < historyQueues {
			item.Recent = item.since(values.overviewTotals)
		}
		items[i] = item
	}
	for queueID, totals := range s.metrics.messages.Range {
		if visible.match(queueID.(string)) {
			v.Totals.add(totals.(*messageTotals))
		}
	}
	if r.mayScrape() {
		asked := time.Now()
		version, err := s.store.databaseVersion(r.Context())
		if err != nil {
			return nil, err
		}
		v.Server.Database = &overviewDatabase{s.place, version, time.Since(asked).Seconds()}
	}
	v.Server.Uptime = time.Since(s.started).Seconds()
	if !at.IsZero() {
		v.Server.CountedAgo = new(time.Since(at).Seconds())
	}
	return itemList[overviewItem]{items, func(n int) any {
		if more || n < len(items) {
			v.NextOffset = new(offset + n)
		}
		return v
	}}, nil
}
