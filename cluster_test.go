package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"
)

// clusterVariable names the environment variable with the URL of the coordinator of a Citus
// cluster. The tests then use databases of this cluster, except where a test needs a
// PostgreSQL of its own. The role in the URL is a superuser on all nodes.
const clusterVariable = "QUEUED_TEST_CITUS"

// testCluster is the cluster of all tests; nil if they use a private PostgreSQL.
var testCluster *cluster

// cluster is a Citus cluster. Its nodes have the same databases, each with a copy of the
// metadata of Citus, so a copy of a template on each node is a copy of the distributed
// database.
type cluster struct {
	coordinator *url.URL
	nodes       []string // host:port
	prefix      string   // of the names of databases
	moving      sync.Mutex
}

// openCluster creates the templates of the tests' databases: one with the extension, and one
// that also has the distributed tables.
func openCluster(text string) (*cluster, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", clusterVariable, err)
	}
	c := &cluster{coordinator: u, prefix: fmt.Sprintf("queued%d_", os.Getpid())}
	db, err := openDB(text, 1)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	if c.nodes, err = collect(context.Background(), db, scanText, "SELECT nodename || ':' || nodeport FROM pg_dist_node ORDER BY groupid"); err != nil {
		return nil, err
	}
	for _, template := range []string{"template1", "queued"} {
		if err := c.createTemplate(template); err != nil {
			return nil, fmt.Errorf("template %s: %w", template, err)
		}
	}
	return c, nil
}

// dsn returns the URL of a database of the coordinator.
func (c *cluster) dsn(database string) string { return c.on(c.coordinator.Host, database) }

// on returns the URL of a database of a node.
func (c *cluster) on(node, database string) string {
	u := *c.coordinator
	u.Host, u.Path = node, "/"+database
	return u.String()
}

// everywhere runs statements on a database of each node.
func (c *cluster) everywhere(database string, statements ...string) error {
	for _, node := range c.nodes {
		db, err := openDB(c.on(node, database), 1)
		if err != nil {
			return err
		}
		for _, statement := range append([]string{"SET lock_timeout = 0", "SET statement_timeout = 0"}, statements...) {
			if _, err = db.Exec(statement); err != nil {
				err = fmt.Errorf("%s: %s: %w", node, statement, err)
				break
			}
		}
		db.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) createTemplate(template string) error {
	name := c.prefix + template
	if err := c.everywhere("postgres", "CREATE DATABASE "+name); err != nil {
		return err
	}
	if err := c.everywhere(name, "CREATE EXTENSION citus"); err != nil {
		return err
	}
	d, err := newDatabase(c.dsn(name))
	if err != nil {
		return err
	}
	db, err := d.openWithoutTimeout()
	if err != nil {
		return err
	}
	defer db.Close()
	if err := c.addNodes(db); err != nil {
		return err
	}
	if template == "queued" {
		s := &store{db: db, metrics: newMetrics(db), homes: &d.homes}
		if err := s.migrate(context.Background(), schemaSteps()); err != nil {
			return err
		}
		if err := s.distribute(context.Background()); err != nil {
			return err
		}
	}
	db.Close()
	// The maintenance daemon of Citus would keep the template from being copied.
	return c.everywhere("postgres", "ALTER DATABASE "+name+" ALLOW_CONNECTIONS false",
		"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = "+pq.QuoteLiteral(name)) // nothing connects any more
}

// addNodes makes a database of the coordinator that of a cluster.
func (c *cluster) addNodes(db *sql.DB) error {
	for i, node := range c.nodes {
		host, port, _ := splitNode(node)
		add := "SELECT citus_add_node($1, $2)"
		if i == 0 {
			add = "SELECT citus_set_coordinator_host($1, $2)"
		}
		if _, err := db.Exec(add, host, port); err != nil {
			return err
		}
	}
	return nil
}

func splitNode(node string) (host string, port int, err error) {
	u := url.URL{Host: node}
	_, err = fmt.Sscan(u.Port(), &port)
	return u.Hostname(), port, err
}

// newDatabase copies a template for one test.
func (c *cluster) newDatabase(t testing.TB, template string) string {
	t.Helper()
	name := fmt.Sprintf("%s%d", c.prefix, testDatabases.Add(1))
	if err := c.everywhere("postgres", "CREATE DATABASE "+name+" TEMPLATE "+c.prefix+template); err != nil {
		t.Fatal(err)
	}
	c.dropAtEnd(t, name)
	if template == "queued" {
		s := &store{db: newTestDB(t, c.dsn(name))}
		if err := s.transaction(context.Background(), func(tx *sql.Tx) error { return s.setOnNodes(context.Background(), tx) }); err != nil {
			t.Fatal(err)
		}
		s.db.Close()
	}
	return c.dsn(name)
}

func (c *cluster) dropAtEnd(t testing.TB, name string) {
	t.Cleanup(func() { c.everywhere("postgres", "DROP DATABASE "+name+" WITH (FORCE)") })
}

// newPlain creates a database without the extension for one test. distribute makes it that of
// a cluster.
func (c *cluster) newPlain(t testing.TB) (dsn string, distribute func()) {
	t.Helper()
	name := fmt.Sprintf("%s%d", c.prefix, testDatabases.Add(1))
	if err := c.everywhere("postgres", "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	c.dropAtEnd(t, name)
	return c.dsn(name), func() {
		t.Helper()
		if err := c.everywhere(name, "CREATE EXTENSION citus"); err != nil {
			t.Fatal(err)
		}
		db, err := openDB(c.dsn(name), 1)
		if err == nil {
			err = c.addNodes(db)
			db.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A database that has messages may become that of a cluster: the server distributes the
// tables at its next start.
func TestMessagesStayWhenTheirDatabaseIsDistributed(t *testing.T) {
	t.Parallel()
	dsn, distribute := "", func() {}
	if testCluster != nil {
		dsn, distribute = testCluster.newPlain(t)
	} else {
		dsn = newTestDatabase(t, "template1")
	}
	before := startProcess(t, "-database-url", dsn, "-cleanup-interval", "1h")
	s := newTestServerOn(t, dsn)
	s.mustTopic("t")
	s.mustQueue("dead")
	s.mustQueue("groups", `"ordered":true`, `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.mustQueue("kept", `"consumed_retention_seconds":600`)
	s.mustQueue("gone")
	s.publish("t", 1, 2, 3)
	s.publishGroups("groups", "a1", "a2", "b1", "c1")
	s.must(201, "POST", "/queues/kept/messages", `{"data":{},"deduplication_id":"once"}`)
	s.must(200, "GET", "/out/kept", "")
	s.must(201, "POST", "/queues/gone/messages", `{"data":{"n":"gone"}}`)
	s.must(204, "DELETE", "/queues/gone", "")
	leased := s.receive("groups", "?limit=1")
	state := s.state()

	distribute()
	startProcess(t, "-database-url", dsn, "-cleanup-interval", "1h")
	if testCluster != nil {
		<-before.ended
	}
	s = newTestServerOn(t, dsn)
	checkDiff(t, "rows", state, s.state())
	if testCluster != nil && !s.store.homes.areSeveral() {
		t.Error("the tables are not distributed")
	}
	checkDiff(t, "received", []int{1, 2, 3}, numbers(s.receive("t", "")))
	s.must(204, "PUT", "/queues/t/purge", "")
	checkDiff(t, "messages after a purge", 0, s.messagesIn("t"))
	s.publishGroups("groups", "a3", "d1")
	s.must(204, "PUT", "/messages/"+leased[0].ID+"/ack", "")
	if body := s.must(201, "POST", "/queues/kept/messages", `{"data":{},"deduplication_id":"once"}`); !strings.Contains(body, `"duplicate":true`) {
		t.Errorf("a message is published again: %s", body)
	}
	s.mustCleanUp()
	got := s.receive("groups", "?limit=10")
	checkDiff(t, "groups", "b1 c1 a2 d1", namesOf(got))
	s.must(204, "PUT", "/messages/"+got[2].ID+"/ack", "")
	checkDiff(t, "published later", "a3", s.receiveNames("groups", 10))
	checkDiff(t, "messages of the deleted queue", 0, s.count("SELECT count(*) FROM queued.messages WHERE data->>'n' = 'gone'"))
}

// A server that runs in the meantime would not find the messages of new queues.
func TestServerEndsWhenAnotherServerHasDistributedTheTables(t *testing.T) {
	t.Parallel()
	dsn := newPlainDatabase(t, "queued")
	r := runServer(t, "-database-url", dsn)
	db := newTestDB(t, dsn)
	for _, statement := range []string{
		"CREATE OR REPLACE FUNCTION queued.has_homes() RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true'",
		notifyDistributedSQL,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.await(); !errors.Is(err, errDistributed) {
		t.Errorf("run = %v, want %v", err, errDistributed)
	}
}

// moveHome moves a home to the next node that has homes. It does nothing without a cluster.
func (s *testServer) moveHome(home int64, mode string) {
	s.t.Helper()
	if testCluster == nil {
		return
	}
	db, err := mustDatabase(s.t, s.dsn).openWithoutTimeout()
	if err == nil {
		defer db.Close()
		err = moveHome(db, home, mode)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// One home moves at a time, also of different databases: the names of the replication slots
// would be the same.
func moveHome(db *sql.DB, home int64, mode string) (err error) {
	testCluster.moving.Lock()
	defer testCluster.moving.Unlock()
	for range 20 { // the role of the servers has a short lock timeout on all nodes
		_, err = db.Exec(`
SELECT citus_move_shard_placement(p.shardid, f.nodename, f.nodeport, t.nodename, t.nodeport, $2::citus.shard_transfer_mode)
FROM pg_dist_placement p
JOIN pg_dist_node f ON f.groupid = p.groupid
JOIN pg_dist_node t ON t.groupid <> p.groupid AND t.shouldhaveshards
WHERE p.shardid = get_shard_id_for_distribution_column('queued.messages', $1::smallint)
LIMIT 1`, home, mode)
		if err == nil {
			break
		}
	}
	return err
}

// Two servers publish and receive, and publish each message twice, while the home of the queue
// moves to and fro. Without a cluster it does not move.
func TestGroupsAndDeduplicationIDsMoveWithTheirHome(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"ordered":true`, `"ack_deadline_seconds":600`)
	servers := []*testServer{s, newTestServerOn(t, s.dsn)}
	for _, s := range servers {
		s.receive("q", "") // the server learns the home
	}
	var working sync.WaitGroup
	var moved atomic.Bool
	working.Go(func() {
		s.moveHomeUnderLoad(s.homeOf("q"), servers, "force_logical", "block_writes", "force_logical", "force_logical")
		moved.Store(true)
	})

	var published, received [2]atomic.Int64 // messages of each group
	// A request that a move or a busy machine holds up for long gets a 503 and is repeated.
	send := func(s *testServer, status int, method, path, body string) (all []wireMessage, repeated bool) {
		for try := 0; ; try++ {
			v, err := s.send(context.Background(), method, path, body)
			if err == nil && v.status == 503 && try < 20 {
				continue
			}
			if err != nil || v.status != status {
				t.Errorf("%s %s %s = %d %s, %v", method, path, body, v.status, v.body, err)
				return nil, false
			}
			all, _ := decodeMessages(v.body)
			return all, try > 0
		}
	}
	var publishing sync.WaitGroup
	for group := range servers {
		publishing.Go(func() {
			for n := int64(1); !t.Failed() && (n <= 20 || !moved.Load()); n++ {
				body := fmt.Sprintf(`{"data":{"group":%d,"n":%d},"group":"%d","deduplication_id":"%d.%d"}`, group, n, group, group, n)
				published[group].Store(n)
				first, unsure := send(servers[group], 201, "POST", "/queues/q/messages", body)
				again, _ := send(servers[1-group], 201, "POST", "/queues/q/messages", body)
				if len(first) != 1 || len(again) != 1 || first[0].Duplicate && !unsure || !again[0].Duplicate || first[0].ID != again[0].ID {
					t.Errorf("the message %s was stored as %v and %v", body, first, again)
				}
			}
		})
	}
	all := make(chan struct{})
	working.Go(func() {
		publishing.Wait()
		close(all)
	})
	complete := func() bool {
		select {
		case <-all:
			return received[0].Load() == published[0].Load() && received[1].Load() == published[1].Load()
		default:
			return false
		}
	}
	for _, s := range servers {
		working.Go(func() {
			for !t.Failed() && !complete() {
				delivered, _ := send(s, 200, "GET", "/queues/q/messages?limit=10&wait_seconds=1", "")
				for _, m := range delivered {
					var data struct{ Group, N int64 }
					json.Unmarshal(m.Data, &data)
					if n := received[data.Group].Add(1); n != data.N {
						t.Errorf("message %d of group %d was received at place %d", data.N, data.Group, n)
					}
					send(s, 204, "PUT", "/messages/"+m.ID+"/ack", "")
				}
			}
		})
	}
	working.Wait()
	checkDiff(t, "messages left", 0, s.count("SELECT count(*) FROM queued.messages"))
}

// moveHomeUnderLoad moves a home several times. The servers learn each place of it.
func (s *testServer) moveHomeUnderLoad(home int64, servers []*testServer, modes ...string) {
	if testCluster == nil {
		return
	}
	db, err := mustDatabase(s.t, s.dsn).openWithoutTimeout()
	if err != nil {
		s.t.Error(err)
		return
	}
	defer db.Close()
	for _, mode := range modes {
		if err := moveHome(db, home, mode); err != nil {
			s.t.Errorf("move the home: %v", err)
		}
		for _, server := range servers {
			server.engine.readPlacements(context.Background(), db)
		}
	}
}

// Each node draws numbers from a range of its own. A node with a lower range goes on with higher
// numbers.
func TestOrderOfAGroupHoldsWhenItsHomeMoves(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"ordered":true`)
	s.publishGroups("q", "a1", "b1", "a2")
	s.must(204, "PUT", "/messages/"+s.receive("q", "?limit=1")[0].ID+"/ack", "")
	seqs := mustSelect(t, s.store.db, "SELECT seq FROM queued.messages ORDER BY 1")
	for i, mode := range []string{"force_logical", "block_writes", "force_logical"} {
		s.moveHome(s.homeOf("q"), mode)
		checkDiff(t, "numbers after a move", seqs, mustSelect(t, s.store.db, "SELECT seq FROM queued.messages ORDER BY 1"))
		checkDiff(t, "ready groups", mustSelect(t, s.store.db, "SELECT id || ready_at FROM queued.groups WHERE ready_at < 'infinity' ORDER BY 1"),
			mustSelect(t, s.store.db, "SELECT id || ready_at FROM queued.ready_groups ORDER BY 1"))
		s.publishGroups("q", fmt.Sprintf("a%d", i+3))
		seqs = mustSelect(t, s.store.db, "SELECT seq FROM queued.messages ORDER BY 1")
	}
	var got []string
	for range 5 {
		m := s.receive("q", "?limit=1")
		got = append(got, namesOf(m))
		s.must(204, "PUT", "/messages/"+m[0].ID+"/ack", "")
	}
	checkDiff(t, "order", "b1 a2 a3 a4 a5", strings.Join(got, " "))
}

// The node that gets a home has drawn no number for its messages.
func TestMessagesThatMovedWithTheirHomeArePurgedAndRedriven(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("q", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	publish := func() {
		s.publishGroups("q", "a1", "b1")
		s.publishGroups("q", "-1", "-2")
	}
	for _, bulk := range []struct {
		what          string
		do            func()
		inQueue, dead int
	}{
		{"a deleted group", func() { s.must(204, "DELETE", "/queues/q/groups/a", "") }, 3, 4},
		{"a purge", func() { s.must(204, "PUT", "/queues/q/purge", "") }, 0, 4},
		{"a redrive", func() {
			checkDiff(t, "the response", "204 moved 4 left 0", s.moved("/queues/dead/redrive", `{"limit":10}`))
		}, 8, 0},
		{"a move task", func() { s.mustStart("dead", "q", 0); mustMove(t, s.newMover()) }, 8, 0},
	} {
		s.must(204, "PUT", "/queues/q/purge", "")
		s.must(204, "PUT", "/queues/dead/purge", "")
		publish()
		s.kill("q")
		publish()
		for _, queue := range []string{"q", "dead"} {
			s.moveHome(s.homeOf(queue), "block_writes")
		}
		bulk.do()
		checkDiff(t, "messages after "+bulk.what, bulk.inQueue, s.messagesIn("q"))
		checkDiff(t, "dead messages after "+bulk.what, bulk.dead, s.messagesIn("dead"))
	}
}

// putBehindProxies makes a database and its servers reach the nodes besides the coordinator
// through proxies, and returns these by their addresses.
func (c *cluster) putBehindProxies(t testing.TB, dsn string) map[string]*proxy {
	t.Helper()
	db := newTestDB(t, dsn)
	proxies := make(map[string]*proxy)
	for _, node := range c.nodes[1:] {
		p := newProxy(t, "tcp", node)
		proxies[p.address] = p
		host, port, _ := splitNode(p.address)
		if _, err := db.Exec("SELECT citus_update_node(nodeid, $1, $2) FROM pg_dist_node WHERE nodename || ':' || nodeport = $3", host, port, node); err != nil {
			t.Fatal(err)
		}
	}
	return proxies
}

// twoNodes is a server with queues on two nodes, the second of which a test can stop. Without
// a cluster, the nodes are ways to one database.
type twoNodes struct {
	*testServer
	queues [2][]string // of each node
	names  [2]string   // of the nodes
	second *proxy
}

func newTwoNodes(t testing.TB) *twoNodes {
	t.Helper()
	v := &twoNodes{}
	var proxies map[string]*proxy
	if testCluster == nil {
		n := newNodes(t)
		v.testServer = n.newServer(t)
		proxies = map[string]*proxy{n.others[0].address: n.others[0], n.others[1].address: n.others[1]}
	} else {
		dsn := newTestDatabase(t, "queued")
		proxies = testCluster.putBehindProxies(t, dsn)
		v.testServer = newTestServerTicking(t, dsn, 3*tick)
	}
	for i := 0; len(v.queues[0]) < 5 || len(v.queues[1]) < 5; i++ {
		id := fmt.Sprint("n", i)
		v.mustQueue(id)
		name := v.engine.nodeOf(v.homeOf(id)).name
		if i == 0 {
			v.names[0] = name
		}
		if name == v.names[0] {
			v.queues[0] = append(v.queues[0], id)
		} else if v.names[1] == "" || name == v.names[1] {
			v.names[1] = name
			v.queues[1] = append(v.queues[1], id)
		}
	}
	v.second = proxies[v.names[1]]
	return v
}

// put changes settings of a queue.
func (v *twoNodes) put(queue, settings string) {
	v.t.Helper()
	v.must(200, "PUT", "/queues/"+queue, `{"ack_deadline_seconds":60,"message_retention_seconds":3600,`+settings+`}`)
}

// publishTo publishes a message to a queue and returns its id.
func (v *twoNodes) publishTo(queue string) string {
	v.t.Helper()
	return v.messages(v.must(201, "POST", "/queues/"+queue+"/messages", `{"data":{"a" : "\u0000 (\"x"},"group":"g, \"1"}`))[0].ID
}

// messagesOf returns the number of messages in a queue, by its stats.
func (v *twoNodes) messagesOf(queue string) int {
	v.t.Helper()
	var stats struct {
		Messages int `json:"num_undelivered_messages"`
	}
	mustDecode(v.t, v.must(200, "GET", "/queues/"+queue+"/stats", ""), &stats)
	return stats.Messages
}

func TestBackgroundWorkNeedsOnlyTheNodeOfAHome(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"down", "hanging"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			v := newTwoNodes(t)
			for node, queues := range v.queues {
				v.put(queues[1], `"message_max_deliveries":1,"dead_queue_id":"`+queues[0]+`"`)
				v.put(queues[2], fmt.Sprintf(`"message_max_deliveries":1,"dead_queue_id":%q`, v.queues[1-node][0]))
				v.put(queues[3], `"max_messages":2`)
				for _, queue := range queues[1:3] {
					v.publishTo(queue)
					v.receive(queue, "")
				}
			}
			v.makeDue()
			v.expire(v.publishTo(v.queues[0][4]), v.publishTo(v.queues[1][4]))
			c := &cleanup{store: v.store, log: v.log, announce: v.engine.announce}
			v.metrics.cleanedUp.Set(1)
			v.must(200, "GET", "/metrics", "")

			if mode == "down" {
				v.second.refuse(true)
				v.second.reset()
			}
			v.hang()
			err := c.once(t.Context())
			if !errors.Is(err, errNodeUnavailable) || !strings.Contains(err.Error(), v.names[1]) || strings.Contains(err.Error(), v.names[0]) {
				t.Errorf("the error of the cleanup is %v, want one about the node %s", err, v.names[1])
			}
			healthy := v.queues[0]
			checkDiff(t, "messages of the dead queue on its node", 1, v.messagesOf(healthy[0]))
			checkDiff(t, "expired messages", 0, v.messagesOf(healthy[4]))
			v.full(healthy[3])
			metrics := v.must(200, "GET", "/metrics", "")
			for _, want := range []string{
				"queued_cleanup_last_success_timestamp_seconds 1\n",
				`queued_queue_messages{queue="` + healthy[0] + `",state="ready"} 1`,
				`queued_queue_messages{queue="` + healthy[1] + `",state="exhausted"} 0`,
				`queued_queue_messages{queue="` + healthy[2] + `",state="exhausted"} 1`, // its dead queue is on the other node
				`queued_queue_info{dead_queue="",queue="` + v.queues[1][0] + `"} 1`,
			} {
				if !strings.Contains(metrics, want) {
					t.Errorf("metrics lack %s", want)
				}
			}
			for _, metric := range []string{"queued_queue_messages", "queued_queue_oldest_message_age_seconds"} {
				if strings.Contains(metrics, metric+`{queue="`+v.queues[1][1]) {
					t.Errorf("%s has a number of a queue that was not counted", metric)
				}
			}
			var overview struct {
				Data []struct {
					ID       string
					Messages *messageCounts
				}
			}
			mustDecode(t, v.must(200, "GET", "/overview", ""), &overview)
			for _, q := range overview.Data {
				if is, want := q.Messages != nil, !slices.Contains(v.queues[1], q.ID); is != want && q.ID[0] == 'n' {
					t.Errorf("the overview has numbers of %s: %t, want %t", q.ID, is, want)
				}
			}

			if testCluster != nil { // another server can start
				startProcess(t, "-database-url", v.dsn)
			}
			v.history.sample(time.Now())
			for node, queues := range v.queues {
				body := v.must(200, "GET", "/overview/history?queue_id="+queues[0], "")
				if unknown := strings.Contains(body, `"ready":null,"messages":null`); unknown != (node == 1) {
					t.Errorf("the history of a queue of node %d is %s", node, body)
				}
			}

			v.second.refuse(false)
			v.second.thaw()
			eventually(t, "a pass without error", func() bool { return c.once(t.Context()) == nil })
			for node, queues := range v.queues {
				data := v.must(200, "GET", "/queues/"+queues[0]+"/messages", "")
				if n := strings.Count(data, `"data":{"a" : "\u0000 (\"x"}`); n != 2 {
					t.Errorf("the dead queue of node %d has %s, want two messages as they were published", node, data)
				}
				checkDiff(t, "expired messages", 0, v.messagesOf(queues[4]))
			}
			eventually(t, "all queues are counted", func() bool {
				return strings.Contains(v.must(200, "GET", "/metrics", ""), `queued_queue_messages{queue="`+v.queues[1][0]+`",state="ready"}`)
			})
		})
	}
}

// hang makes the second node hang. When it returns, the server has noticed.
func (v *twoNodes) hang() {
	v.t.Helper()
	v.second.freeze()
	eventually(v.t, "the server notices", func() bool { return v.store.homes.unavailable(v.homeOf(v.queues[1][0])) != nil })
}

const nodeUnavailable = `{"detail":"the database server of the queue is unavailable; try again later"}`

// A message that is not in its queue any more may have moved to the node that hangs.
func TestMessagesAreSearchedOnNodesThatRespond(t *testing.T) {
	t.Parallel()
	v := newTwoNodes(t)
	queue, other := v.queues[0][0], v.queues[0][1]
	receive := func() wireMessage {
		v.publishTo(queue)
		return v.receive(queue, "")[0]
	}
	acked, stale := receive(), receive()
	v.must(204, "PUT", "/messages/"+acked.ID+"/ack", "")
	moved := v.publishTo(queue)
	v.must(204, "PUT", "/messages/redrive", fmt.Sprintf(`{"ids":[%q],"destination_queue_id":%q}`, moved, other))
	v.must(204, "PUT", "/messages/"+stale.ID+"/nack", `{"delay_seconds":600}`)
	leased, last := receive(), receive()
	searches := v.statements("locations")
	v.hang()

	const mayMove = `{"detail":"a message may be moving to another queue; try again later"}`
	publish := func(ack string) string { return fmt.Sprintf(`{"data":{},"ack":[%q]}`, ack) }
	token := fmt.Sprintf(`{"messages":[{"id":%q,"scheduled_at":%q}]}`, stale.ID, stale.ScheduledAt)
	v.play([]step{
		{"PUT", "/messages/" + acked.ID + "/ack", "", 503, mayMove},
		{"PUT", "/messages/" + acked.ID + "/nack", "", 503, mayMove},
		{"PUT", "/messages/" + acked.ID + "/extend", `{"ack_deadline_seconds":60}`, 503, mayMove},
		{"POST", "/queues/" + queue + "/messages", publish(acked.ID), 503, mayMove},
		{"POST", "/queues/" + queue + "/messages", `{"deduplication_id":"1",` + publish(acked.ID)[1:], 503, mayMove},
		{"GET", "/messages/" + acked.ID, "", 503, nodeUnavailable},
	})
	v.must(409, "PUT", "/messages/ack", token)
	v.must(409, "PUT", "/messages/nack", token)
	v.must(201, "POST", "/queues/"+queue+"/messages", publish(leased.ID))
	v.must(201, "POST", "/queues/"+queue+"/messages", `{"deduplication_id":"2",`+publish(last.ID)[1:])
	v.must(200, "GET", "/messages/"+moved, "")
	v.must(204, "PUT", "/messages/"+moved+"/ack", "")
	checkDiff(t, "searches on all nodes", searches, v.statements("locations"))
}

func TestANackOfALastDeliveryNeedsTheNodeOfItsDeadQueue(t *testing.T) {
	t.Parallel()
	v := newTwoNodes(t)
	healthy := v.queues[0]
	var batch []*ackRequest
	for i, dead := range []string{healthy[0], v.queues[1][0]} {
		v.put(healthy[i+1], fmt.Sprintf(`"message_max_deliveries":1,"dead_queue_id":%q`, dead))
		batch = append(batch, &ackRequest{items: []ackItem{{id: v.publishTo(healthy[i+1])}}})
		v.receive(healthy[i+1], "")
	}
	v.hang()
	node := v.engine.nodeOf(v.homeOf(healthy[1]))
	conn := newPinnedConn(node.db, v.metrics)
	conn.homes, conn.shards = v.engine.homes, &node.shards
	defer conn.end()
	if err := v.engine.runNacks(conn, batch); err != nil {
		t.Fatal(err)
	}
	if batch[0].err != nil || !errors.Is(batch[1].err, errNodeUnavailable) {
		t.Errorf("errors %v and %v, want one of the message whose dead queue is on the other node", batch[0].err, batch[1].err)
	}
	checkDiff(t, "messages of the dead queue that responds", 1, v.messagesOf(healthy[0]))
	checkDiff(t, "attempts to move messages", 1, v.statements("nack_last"))
}

// A statement that waits for a node occupies a connection that requests for other queues need.
func TestRequestsForQueuesOfANodeThatHangsFailAtOnce(t *testing.T) {
	t.Parallel()
	v := newTwoNodes(t)
	queue, healthy := v.queues[1][0], v.queues[0][0]
	id := v.publishTo(queue)
	v.receive(queue, "")
	dead := v.queues[0][1]
	v.put(v.queues[1][1], fmt.Sprintf(`"message_max_deliveries":1,"dead_queue_id":%q`, dead))
	died := v.publishTo(v.queues[1][1])
	v.receive(v.queues[1][1], "")
	v.must(204, "PUT", "/messages/"+died+"/nack", "")
	v.put(healthy, fmt.Sprintf(`"message_max_deliveries":2,"dead_queue_id":%q`, queue))
	v.publishTo(healthy)
	v.hang()
	var steps []step
	for _, r := range [][3]string{
		{"GET", "/stats"},
		{"GET", "/stats?detail=true"},
		{"GET", "/consumers"},
		{"PUT", "/purge"},
		{"PUT", "/redrive", fmt.Sprintf(`{"destination_queue_id":%q}`, healthy)},
		{"GET", "/messages/peek"},
		{"GET", "/messages/peek?state=ready"},
		{"GET", "/messages/consumed"},
		{"GET", "/groups"},
		{"GET", "/groups/1"},
		{"PUT", "/groups/1", `{"delivery_interval_ms":1}`},
		{"DELETE", "/groups/1"},
	} {
		steps = append(steps, step{r[0], "/queues/" + queue + r[1], r[2], 503, nodeUnavailable})
	}
	v.play(append(steps,
		step{"GET", "/messages/" + id, "", 503, nodeUnavailable},
		step{"PUT", "/queues/" + healthy + "/redrive", fmt.Sprintf(`{"destination_queue_id":%q}`, queue), 503, nodeUnavailable},
		step{"PUT", "/messages/redrive", fmt.Sprintf(`{"ids":[%q],"destination_queue_id":%q}`, id, queue), 503, nodeUnavailable},
		step{"PUT", "/messages/redrive", fmt.Sprintf(`{"ids":[%q]}`, died), 503, nodeUnavailable},
		step{"PUT", "/queues/" + dead + "/redrive", "", 503, nodeUnavailable},
		step{"DELETE", "/messages", fmt.Sprintf(`{"ids":[%q]}`, id), 503, nodeUnavailable},
	))
	if _, err := v.store.counts(t.Context(), v.key(queue), 1); !errors.Is(err, errNodeUnavailable) {
		t.Errorf("the error of counts is %v, want %v", err, errNodeUnavailable)
	}
	body := v.must(200, "GET", "/queues/"+healthy+"/stats?detail=true", "")
	if !strings.Contains(body, `"ready":1`) || !strings.HasSuffix(body, `"dead_queue_messages":null}`) {
		t.Errorf("the stats of a queue whose dead queue hangs are %s", body)
	}
}

// lockShards locks the shards of a table on all nodes until free is called.
func (c *cluster) lockShards(t testing.TB, dsn, table string) (free func()) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	var locked []*sql.Tx
	for _, node := range c.nodes {
		tx, err := newTestDB(t, c.on(node, strings.TrimPrefix(u.Path, "/"))).Begin()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tx.Rollback() })
		locked = append(locked, tx)
		if _, err := tx.Exec("SET LOCAL citus.enable_manual_changes_to_shards = on"); err != nil {
			t.Fatal(err)
		}
		for _, shard := range mustSelect(t, tx, `SELECT shard_name(s.logicalrelid, s.shardid)
FROM pg_dist_shard s
JOIN pg_dist_placement p ON p.shardid = s.shardid
JOIN pg_dist_local_group g ON g.groupid = p.groupid
WHERE s.logicalrelid = $1::regclass`, table) {
			if _, err := tx.Exec("LOCK TABLE " + shard + " IN ACCESS EXCLUSIVE MODE"); err != nil {
				t.Fatal(err)
			}
		}
	}
	return func() {
		for _, tx := range locked {
			tx.Rollback()
		}
	}
}

// close drops the templates.
func (c *cluster) close() {
	for _, template := range []string{"template1", "queued"} {
		c.everywhere("postgres", "DROP DATABASE "+c.prefix+template+" WITH (FORCE)")
	}
}
