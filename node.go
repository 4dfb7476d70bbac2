package main

import (
	"context"
	"database/sql"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

// node is a server of PostgreSQL, as the engine uses it. The node has its own connections,
// and its own batchers with the requests that wait for them.
type node struct {
	name     string // host:port; empty for the server of -database-url
	log      *slog.Logger
	database *database
	db       *sql.DB

	publications *batcher[*publication]
	deduplicated *batcher[*publication] // those with deduplication ids
	acks         *batcher[*ackRequest]
	nacks        *batcher[*ackRequest]
	extensions   *batcher[*ackRequest]
	releases     *batcher[[]message]
	finishes     *batcher[*finishing]
	measurings   *batcher[*measuring]
	claims       *batcher[*claimRequest]
	searches     *batcher[*dueSearch]
	claimers     chan *pinnedConn // idle connections for claims that cannot share a statement

	notifier *notifier
	silent   atomic.Bool // see check; of the main node it is always false
	shards   nodeShards  // empty for the main node
	sweeper  *pinnedConn
	sweepNow chan struct{} // requests a full sweep at once
	pings    *sql.DB       // for database.watch

	unobserve  func()             // removes the metrics of db
	stop       context.CancelFunc // ends the background goroutines
	background sync.WaitGroup
}

// openNode returns a node with connections of its own, so that slow requests of other kinds
// cannot occupy them. The caller passes it to startNode.
func (e *engine) openNode(name string, d *database) (*node, error) {
	db, err := d.openForEngine()
	if err != nil {
		return nil, err
	}
	pings, err := d.openPing()
	if err != nil {
		return nil, err
	}
	m := e.metrics
	log, pool := e.log, "engine"
	if name != "" {
		log, pool = log.With("node", name), pool+" "+name
	}
	shared := newPinnedConns(db, m, d.connections.batchers)
	claiming := newPinnedConns(db, m, d.connections.claimers)
	n := &node{
		name:      name,
		log:       log,
		database:  d,
		db:        db,
		claimers:  make(chan *pinnedConn, len(claiming)),
		notifier:  newNotifier(shared[len(shared)-1], e.origin, log),
		sweepNow:  make(chan struct{}, 1),
		pings:     pings,
		unobserve: m.observePool(db, pool),
		shards:    nodeShards{moved: e.followSoon},
		sweeper:   shared[len(shared)/2-1],
	}
	for _, s := range slices.Concat(shared, claiming) {
		s.homes = e.homes
		if d.isNode {
			s.shards = &n.shards
		}
	}
	// Each worker has a connection of its own if there are enough. With fewer
	// connections, batchers share them, but the two workers of a batcher never do.
	workers := func(i int) []*pinnedConn {
		return []*pinnedConn{shared[i%len(shared)], shared[(i+len(shared)/2)%len(shared)]}
	}
	n.publications = newBatcher("publish", workers(0), m, publishRows, publishSize, e.runPublications)
	n.acks = newBatcher("ack", workers(1), m, ackRows, publishSize, e.runAcks)
	n.nacks = newBatcher("nack", workers(2), m, ackRows, publishSize, e.runNacks)
	n.extensions = newBatcher("extend", workers(3), m, ackRows, publishSize, e.runExtensions)
	n.finishes = newBatcher("finish", workers(4), m, ackRows, publishSize, e.runFinishes)
	n.searches = newBatcher("search", workers(5), m, ackRows, publishSize, e.runSearches)
	n.releases = newBatcher("release", workers(6), m, ackRows, publishSize, e.runReleases)
	n.claims = newBatcher("claim", workers(7), m, claimRows, math.MaxInt, e.runClaims)
	n.measurings = newBatcher("measure", workers(8), m, ackRows, publishSize, e.runMeasurings)
	n.deduplicated = newBatcher("deduplicate", workers(9), m, publishRows, publishSize, e.runDeduplicated)
	for _, s := range claiming {
		n.claimers <- s
	}
	return n, nil
}

// startNode starts the background goroutines of a node, which use the nodes of the engine.
func (e *engine) startNode(n *node) {
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.background.Go(func() { n.notifier.send(ctx) })
	n.background.Go(func() { n.notifier.listen(ctx, n.database, e.wake, e.sweepSoon) })
	n.background.Go(func() { e.sweepPeriodically(ctx, n) })
	if n != e.main {
		n.background.Go(func() { n.check(ctx) })
	}
	n.background.Go(func() { n.database.watch(ctx, n.pings, n.log, e.sweepSoon) })
}

// close runs the requests that wait, and closes the connections.
func (n *node) close() {
	n.publications.close()
	n.deduplicated.close()
	n.acks.close()
	n.nacks.close()
	n.extensions.close()
	n.releases.close()
	n.finishes.close()
	n.measurings.close()
	n.claims.close()
	n.searches.close()
	n.stop()
	n.background.Wait()
	for range cap(n.claimers) {
		(<-n.claimers).end()
	}
	n.unobserve()
	n.pings.Close()
	n.db.Close()
}
