package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// Where Citus distributes the tables, one node has the rows of a home. Requests about a home
// go straight to its node, because the way through the coordinator costs PostgreSQL several
// times the work. Each node can execute each statement, so a request that arrives at another
// node, because the home has moved in the meantime, has the same effect.

// placements are the nodes of the homes. They are replaced when a home moves.
type placements struct {
	nodes  []*node         // without the main one
	byHome map[int64]*node // without the homes of the main node
	left   []*node         // without homes since the last change; closed at the next one

	unreachable map[string]bool  // names of nodes that have not responded yet
	throughMain map[int64]string // names of these nodes by their homes
}

// errNodeUnavailable is errUnavailable for requests about the homes of one node. Requests
// about other homes may succeed.
var errNodeUnavailable = errors.New("node unavailable")

// errNeedsAllNodes is errUnavailable for changes of topics and queues while a node does not
// respond: their tables are on all nodes.
var errNeedsAllNodes = fmt.Errorf("%w: a node does not respond", errUnavailable)

// asNeedsAllNodes adds errNeedsAllNodes to the error of a statement for which the coordinator
// could not connect to a node.
func asNeedsAllNodes(err error) error {
	if pq.As(err, pqerror.ConnectionFailure) != nil {
		return fmt.Errorf("%w: %w", errNeedsAllNodes, err)
	}
	return err
}

// nodes returns all nodes, the main one first.
func (e *engine) nodes() []*node {
	all := []*node{e.main}
	if v := e.placements.Load(); v != nil {
		all = append(all, v.nodes...)
	}
	return all
}

// nodeOf returns the node of a home. It is the main node if no other node of the home has
// responded yet.
func (e *engine) nodeOf(home int64) *node {
	if v := e.placements.Load(); v != nil {
		if n := v.byHome[home]; n != nil {
			return n
		}
	}
	return e.main
}

// throughMain returns the name of the node of a home if only the main node connects to it.
func (e *engine) throughMain(home int64) string {
	if v := e.placements.Load(); v != nil {
		return v.throughMain[home]
	}
	return ""
}

// nodeOfQueue returns the node of the home that a queue had when it was last read.
func (e *engine) nodeOfQueue(queueID string) *node {
	if e.placements.Load() == nil {
		return e.main
	}
	home, known := e.homes.last(queueID)
	if !known {
		return e.anyNode()
	}
	return e.nodeOf(home)
}

// nodeOfItems returns the node of messages to ack, nack or extend, or nil if they have several.
func (e *engine) nodeOfItems(items []ackItem) *node {
	if e.placements.Load() == nil || len(items) == 0 {
		return e.main
	}
	n := e.nodeOf(e.homes.ofItem(items[0]))
	for _, item := range items[1:] {
		if e.nodeOf(e.homes.ofItem(item)) != n {
			return nil
		}
	}
	return n
}

// anyNode returns the main node or, if that does not respond, one that does.
func (e *engine) anyNode() *node {
	for _, n := range e.nodes() {
		if !n.isSilent() {
			return n
		}
	}
	return e.main
}

// nodeForPublication returns the node that executes a publication: that of its homes or, if
// they have several nodes, the main one. It returns errNodeUnavailable if one of the nodes
// does not respond.
func (e *engine) nodeForPublication(p *publication) (n *node, err error) {
	if e.placements.Load() == nil || p.messages[0].job != nil { // the main node counts jobs
		return e.main, nil
	}
	add := func(of *node) {
		if of.isSilent() {
			err = of.explain(errUnavailable)
		}
		if n == nil {
			n = of
		} else if n != of {
			n = e.main
		}
	}
	if p.queueID != "" {
		add(e.nodeOfQueue(p.queueID))
	} else if p.address.to != nil {
		for _, places := range p.address.queues {
			for _, place := range places {
				add(e.nodeOf(homeOf(p.address.to.queues[place].queueKey)))
			}
		}
	}
	for _, item := range p.acks {
		add(e.nodeOf(e.homes.ofItem(item)))
	}
	if n == nil { // no queue gets a message, or the queues are not known yet
		n = e.anyNode()
	}
	return n, err
}

// check pings a node each second until ctx is done.
func (n *node) check(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			n.silent.Store(!n.responds(ctx) && ctx.Err() == nil)
		}
	}
}

// isSilent reports whether a node does not respond, as far as is known.
func (n *node) isSilent() bool { return n.silent.Load() || n.database.unresponsive.Load() }

// nodeIsSilent reports whether a node besides the main one does not respond, as far as is
// known.
func (e *engine) nodeIsSilent() bool {
	return e.placements.Load() != nil && slices.ContainsFunc(e.nodes()[1:], (*node).isSilent)
}

// explain turns errUnavailable into errNodeUnavailable if the node is not the main one.
func (n *node) explain(err error) error {
	if n.name != "" && errors.Is(err, errUnavailable) {
		return fmt.Errorf("%w: %s: %w", errNodeUnavailable, n.name, err)
	}
	return err
}

// placementInterval is the time between two readings of the placements.
const placementInterval = 5 * time.Second

// followPlacements reads the nodes of the homes until ctx is done.
func (e *engine) followPlacements(ctx context.Context, db querier) {
	ticker := time.NewTicker(placementInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-e.followNow:
		}
		e.readPlacements(ctx, db)
	}
}

// followSoon makes followPlacements read the placements at once.
func (e *engine) followSoon() {
	select {
	case e.followNow <- struct{}{}:
	default:
	}
}

// readPlacements reads the nodes of the homes, and connects to new ones. After an error the
// homes keep their nodes.
func (e *engine) readPlacements(ctx context.Context, db querier) {
	all, err := selectPlacements(ctx, db)
	var reference map[string]int64
	if err == nil {
		reference, err = selectReferenceShards(ctx, db)
	}
	if err != nil {
		e.log.Debug("placements not read", "error", err)
		return
	}
	e.place(ctx, all, reference)
}

// place moves homes to their nodes. One goroutine at a time calls it. A node that has never
// responded gets no home: perhaps only PostgreSQL itself can connect to it, and then the
// requests go through the main node.
func (e *engine) place(ctx context.Context, all []placement, reference map[string]int64) {
	before := e.placements.Load()
	if before == nil {
		before = &placements{}
	}
	known := make(map[string]*node) // with those that left, which are still open
	for _, n := range slices.Concat(before.nodes, before.left) {
		known[n.name] = n
	}
	now := &placements{byHome: make(map[int64]*node), unreachable: make(map[string]bool), throughMain: make(map[int64]string)}
	tried := make(map[string]*node)
	names := make(map[*node]*shards)
	for _, p := range all {
		if p.main {
			continue
		}
		name := net.JoinHostPort(p.host, strconv.Itoa(p.port))
		n, is := tried[name]
		if !is {
			if n = known[name]; n == nil {
				n = e.join(ctx, name, p.host, p.port)
			}
			if tried[name] = n; n != nil {
				now.nodes = append(now.nodes, n)
			} else {
				now.unreachable[name] = true
			}
			if n == nil && !before.unreachable[name] {
				e.log.Warn("cannot connect to a node, its queues are reached through the coordinator", "node", name)
			}
		}
		if n == nil {
			now.throughMain[p.home] = name
		} else {
			now.byHome[p.home] = n
			if names[n] == nil {
				names[n] = &shards{ofHome: make(map[int64]map[string]int64), ofAll: reference}
			}
			if len(p.shards) > 0 {
				names[n].ofHome[p.home] = p.shards
			}
		}
	}
	for _, n := range before.nodes {
		if tried[n.name] == nil {
			now.left = append(now.left, n)
		}
	}
	e.placements.Store(now)
	for n, v := range names {
		if !n.shards.Load().equal(v) {
			n.shards.Store(v)
		}
	}
	// Requests may have chosen a node just before it left, so it was still open since then.
	for _, n := range before.left {
		if tried[n.name] == nil {
			n.close()
		}
	}
}

// join opens a node and returns it, or nil if it does not respond.
func (e *engine) join(ctx context.Context, name, host string, port int) *node {
	d, err := e.main.database.at(host, port)
	if err != nil {
		e.log.Error("unusable name of a node", "node", name, "error", err)
		return nil
	}
	n, err := e.openNode(name, d)
	if err != nil {
		e.log.Error("unusable name of a node", "node", name, "error", err)
		return nil
	}
	e.startNode(n)
	if !n.responds(ctx) {
		n.close()
		return nil
	}
	e.log.Info("connected to a node", "node", name)
	return n
}

// responds reports whether a node accepts statements.
func (n *node) responds(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	if n.database.unresponsive.Load() {
		return false
	}
	response := make(chan error, 1)
	go func() { response <- n.pings.PingContext(ctx) }() // at a node that hangs it ends after networkTimeout
	select {
	case err := <-response:
		return err == nil
	case <-ctx.Done():
		return false
	}
}

// silentNodes returns the names of nodes that do not respond.
func silentNodes(ctx context.Context, all []*node) (names []string) {
	silent := make([]bool, len(all))
	var asking sync.WaitGroup
	for i, n := range all {
		asking.Go(func() { silent[i] = !n.responds(ctx) })
	}
	asking.Wait()
	for i, n := range all {
		if silent[i] {
			names = append(names, n.name)
		}
	}
	return names
}
