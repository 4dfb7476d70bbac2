package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// nodesOfTest are three ways to one database that look like a Citus cluster to a server: main
// is the coordinator, and the others have a home each. All of them execute each statement, as
// the nodes of a cluster do.
type nodesOfTest struct {
	dsn    string // through main
	main   *proxy
	others [2]*proxy
}

func newNodes(t testing.TB) *nodesOfTest {
	t.Helper()
	dsn, main := newProxiedDatabase(t)
	n := &nodesOfTest{dsn: dsn, main: main}
	for i := range n.others {
		n.others[i] = newProxy(t, "unix", filepath.Join(testPostgres.socket, socketName))
	}
	return n
}

// placements returns the placements if each home is on this node, or is at the coordinator if
// that is negative.
func (n *nodesOfTest) placements(nodes ...int) (all []placement) {
	for home, node := range nodes {
		p := placement{home: int64(home), main: node < 0}
		if node >= 0 {
			host, port, _ := net.SplitHostPort(n.others[node].address)
			p.host = host
			p.port, _ = strconv.Atoi(port)
		}
		all = append(all, p)
	}
	return all
}

// newServer starts a server whose home 0 is on the first node, and home 1 on the second. It
// creates the queues q0 and q1 in them, which subscribe to the topic t.
func (n *nodesOfTest) newServer(t testing.TB) *testServer {
	t.Helper()
	s := newTestServerTicking(t, n.dsn, 3*tick)
	s.engine.homes.set([]int64{0, 1})
	s.engine.place(context.Background(), n.placements(0, 1), nil)
	if s.do("POST", "/topics", `{"id":"t"}`).status == 201 {
		s.mustQueue("q0", `"topic_id":"t"`)
		s.mustQueue("q1", `"topic_id":"t"`)
	}
	for _, queue := range []string{"q0", "q1"} {
		s.receive(queue, "") // the server learns the home
	}
	return s
}

// stop makes a node unresponsive. When it returns, the server has noticed.
func (n *nodesOfTest) stop(s *testServer, node int) {
	s.t.Helper()
	n.others[node].freeze()
	body := s.must(503, "POST", fmt.Sprintf("/queues/q%d/messages", node), `{"data":{}}`)
	checkDiff(s.t, "the reason", `{"detail":"the database server of the queue is unavailable; try again later"}`, body)
}

func TestRequestsNeedOnlyTheNodeOfTheirHome(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s, other := n.newServer(t), n.newServer(t)
	for _, node := range slices.Concat(s.engine.nodes(), other.engine.nodes()) {
		eventually(t, "the server listens", node.notifier.listening)
	}
	n.main.freeze()
	for i, queue := range []string{"q0", "q1"} {
		poll := other.poll(context.Background(), queue, "?wait_seconds=20")
		other.waiting(queue, 1)
		s.must(201, "POST", "/queues/"+queue+"/messages", fmt.Sprintf(`{"data":{"n":%d}}`, i))
		got := other.await(poll)
		checkDiff(t, "received by the other server from "+queue, []int{i}, numbers(got))
		other.must(200, "PUT", "/messages/"+got[0].ID+"/extend", `{"ack_deadline_seconds":100}`)
		other.must(204, "PUT", "/messages/"+got[0].ID+"/nack", "")
		got = s.receive(queue, "?wait_seconds=20")
		checkDiff(t, "received again from "+queue, []int{i}, numbers(got))
		s.must(204, "PUT", "/messages/"+got[0].ID+"/ack", "")
	}
	body := s.must(200, "GET", "/readyz?verbose", "")
	checkDiff(t, "warnings", `{"success":true,"warnings":["the coordinator does not respond; topics and queues cannot be read or changed"]}`, body)
}

func TestANodeThatDoesNotRespondFailsItsQueuesOnly(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s := n.newServer(t)
	id := s.messages(s.must(201, "POST", "/queues/q1/messages", `{"data":{"n":1}}`))[0].ID
	n.stop(s, 1)

	for _, r := range [][3]string{
		{"POST", "/topics/t/messages", `{"data":{}}`}, // to both queues
		{"POST", "/queues/q0/messages", `{"data":{},"ack":["` + id + `"]}`},
		{"POST", "/topics", `{"id":"more"}`},
		{"DELETE", "/queues/q0", ""},
		{"GET", "/queues/q1/messages", ""},
		{"PUT", "/messages/" + id + "/ack", ""},
		{"PUT", "/messages/" + id + "/nack", ""},
		{"PUT", "/messages/" + id + "/extend", `{"ack_deadline_seconds":10}`},
	} {
		if v := s.do(r[0], r[1], r[2]); v.status != 503 || v.header.Get("Retry-After") == "" {
			t.Errorf("%s %s = %d %s, want 503 with Retry-After", r[0], r[1], v.status, v.body)
		}
	}
	s.must(201, "POST", "/queues/q0/messages", `{"data":{"n":0}}`)
	got := s.receive("q0", "?limit=10")
	checkDiff(t, "received from the other node", []int{0}, numbers(got))
	s.must(204, "PUT", "/messages/"+got[0].ID+"/ack", "")
	body := s.must(200, "GET", "/readyz?verbose", "")
	want := fmt.Sprintf("node %s does not respond; requests for its queues get status 503, and topics and queues cannot be changed", n.others[1].address)
	if !strings.Contains(body, want) {
		t.Errorf("readyz = %s, want the warning %q", body, want)
	}
	s.must(200, "GET", "/readyz", "")
	s.play([]step{{"PUT", "/queues/q0/pause", "", 503, `{"detail":"topics and queues cannot be changed while a database server is unavailable; try again later"}`}})

	n.others[1].thaw()
	eventually(t, "the other queue can be published to again", func() bool {
		return s.do("POST", "/queues/q1/messages", `{"data":{"n":2}}`).status == 201
	})
	eventually(t, "queues can be changed again", func() bool { return s.do("PUT", "/queues/q0/pause", "").status < 300 })
}

// Without the coordinator and all other nodes no queue is left.
func TestNotReadyWithoutAnyNode(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s := n.newServer(t)
	n.main.freeze()
	n.stop(s, 0)
	s.must(200, "GET", "/readyz", "")
	n.stop(s, 1)
	s.must(503, "GET", "/readyz", "")
}

func TestHomesMoveToAnotherNode(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s := n.newServer(t)
	id := s.messages(s.must(201, "POST", "/queues/q1/messages", `{"data":{"n":1}}`))[0].ID
	poll := s.poll(context.Background(), "q0", "?wait_seconds=20")
	s.waiting("q0", 1)

	s.engine.place(context.Background(), n.placements(1, 0), nil)
	s.must(201, "POST", "/queues/q0/messages", `{"data":{"n":0}}`)
	checkDiff(t, "received by the receiver that waited", []int{0}, numbers(s.await(poll)))
	s.engine.place(context.Background(), n.placements(-1, 0), nil) // home 0 moves to the coordinator
	s.engine.place(context.Background(), n.placements(-1, 0), nil)
	eventually(t, "the node without a home has no connection", func() bool { return n.others[1].open() == 0 })
	n.others[1].freeze()
	s.must(201, "POST", "/topics/t/messages", `{"data":{"n":2}}`)
	s.must(204, "PUT", "/messages/"+id+"/ack", "")
	for _, queue := range []string{"q0", "q1"} {
		checkDiff(t, "received from "+queue, []int{2}, numbers(s.receive(queue, "?limit=10")))
	}

	n.others[1].thaw()
	s.engine.place(context.Background(), n.placements(1, 0), nil) // it comes back
	n.main.freeze()
	s.must(201, "POST", "/queues/q0/messages", `{"data":{"n":3}}`)
}

// Citus can drain a node and use it again. A node that has left is closed at the reading after.
func TestANodeThatLeftCanComeBackAtTheNextReading(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s := n.newServer(t)
	for range 2 {
		s.engine.place(context.Background(), n.placements(0, 0), nil)
		s.engine.place(context.Background(), n.placements(0, 1), nil)
	}
	n.main.freeze()
	s.must(201, "POST", "/queues/q1/messages", `{"data":{}}`)
	n.main.thaw()
	s.wantMetrics(fmt.Sprintf(`go_sql_max_open_connections{db_name="engine %s"}`, n.others[1].address))

	s.engine.place(context.Background(), n.placements(0, 0), nil)
	s.engine.place(context.Background(), n.placements(0, 0), nil)
	eventually(t, "the node without a home has no connection", func() bool { return n.others[1].open() == 0 })
}

// A dispatcher may wait for a connection to a node while the homes of the node move away.
func TestAReceiveAtANodeThatIsClosedFails(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s := n.newServer(t)
	closed := s.engine.nodeOf(1)
	s.engine.place(context.Background(), n.placements(0, 0), nil)
	s.engine.place(context.Background(), n.placements(0, 0), nil)
	s.engine.placements.Load().byHome[1] = closed
	s.must(503, "GET", "/out/q1", "")
}

// The nodes of a cluster may be on a network that only the coordinator can reach.
func TestHomesOfUnreachableNodesAreReachedThroughTheCoordinator(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	n.others[1].refuse(true)
	s := n.newServer(t)
	s.must(201, "POST", "/topics/t/messages", `{"data":{"n":1}}`)
	for _, queue := range []string{"q0", "q1"} {
		checkDiff(t, "received from "+queue, []int{1}, numbers(s.receive(queue, "?limit=10")))
	}
	n.others[1].refuse(false)
	s.engine.place(context.Background(), n.placements(0, 1), nil)
	n.main.freeze()
	s.must(201, "POST", "/queues/q1/messages", `{"data":{"n":2}}`)
}

// Where only the coordinator can reach a node, the first statement that fails shows that the
// node does not respond.
func TestCleanupGoesOnIfOnlyTheCoordinatorCouldReachANode(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	n.others[0].refuse(true)
	s := n.newServer(t)
	for _, queue := range []string{"q0", "q1"} {
		s.must(201, "POST", "/queues/"+queue+"/messages", `{"data":{}}`)
	}
	s.expire()
	s.exec(`CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE connection_failure USING MESSAGE = 'no connection to home 0';
END $$`)
	s.exec("CREATE TRIGGER fail BEFORE DELETE ON queued.messages FOR EACH ROW WHEN (old.home = 0) EXECUTE FUNCTION public.fail()")
	c := &cleanup{store: s.store, log: s.log, announce: s.engine.announce}
	err := c.once(t.Context())
	for _, want := range []string{"no connection to home 0", n.others[0].address} {
		if strings.Count(fmt.Sprint(err), want) != 1 {
			t.Errorf("the error of the cleanup is %v, want %q once", err, want)
		}
	}
	s.must(503, "POST", "/topics", `{"id":"more"}`)
	checkDiff(t, "messages left, by home", []string{"0"}, mustSelect(t, s.store.db, "SELECT home::text FROM queued.messages"))
	if c.round.expiry.IsZero() || c.round.expiry.After(time.Now()) {
		t.Errorf("the next round is due at %v, want now, because this one has left a home", c.round.expiry)
	}
}

func TestARequestAcksMessagesOfSeveralNodes(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s := n.newServer(t)
	s.publish("t", 1, 2)
	var items []string
	for _, queue := range []string{"q0", "q1"} {
		for i, m := range s.receive(queue, "?limit=10") {
			token := m.ScheduledAt
			if i == 1 {
				token = m.CreatedAt // of no lease
			}
			items = append(items, fmt.Sprintf(`{"id":%q,"scheduled_at":%q}`, m.ID, token))
		}
	}
	body := s.must(409, "PUT", "/messages/ack", `{"messages":[`+strings.Join(items, ",")+`]}`)
	for i := range items {
		if has := strings.Contains(body, fmt.Sprintf(`"messages",%d`, i)); has != (i%2 == 1) {
			t.Errorf("conflict of message %d: %v in %s", i, has, body)
		}
	}
	for _, queue := range []string{"q0", "q1"} {
		checkDiff(t, "messages left in "+queue, 1, s.messagesIn(queue))
	}
}

func TestADeletionThatFailsInOneHomeCountsThoseInOthers(t *testing.T) {
	t.Parallel()
	s := newNodes(t).newServer(t)
	s.publish("t", 1)
	ids := s.receive("q0", "")[0].ID + `","` + s.receive("q1", "")[0].ID
	refuse(s, "DELETE", "old.home = 1")
	s.must(503, "DELETE", "/messages", `{"ids":["`+ids+`"]}`)
	checkDiff(t, "messages left", []int{0, 1}, []int{s.messagesIn("q0"), s.messagesIn("q1")})
	s.wantMetrics(`queued_messages_purged_total{queue="q0"} 1`)
}

// refuse makes PostgreSQL refuse an event of messages for which the condition holds.
func refuse(s *testServer, event, condition string) {
	s.t.Helper()
	s.exec(`CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE insufficient_resources;
END $$`)
	s.exec("CREATE TRIGGER refuse BEFORE " + event + " ON queued.messages FOR EACH ROW WHEN (" + condition + ") EXECUTE FUNCTION public.refuse()")
}

func TestAPublishToSeveralHomesStoresAllCopiesOrNone(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s := n.newServer(t)
	refuse(s, "INSERT", "new.home = 1")
	s.must(503, "POST", "/topics/t/messages", `{"data":{"n":1}}`)
	checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.messages"))
	s.exec("DROP TRIGGER refuse ON queued.messages")
	stored := s.messages(s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[{"data":{"n":1}},{"data":{"n":2}}]}`))
	var order []string
	for _, m := range stored {
		order = append(order, m.QueueID+string(m.Data))
	}
	checkDiff(t, "stored", []string{`q0{"n":1}`, `q1{"n":1}`, `q0{"n":2}`, `q1{"n":2}`}, order)
	for _, queue := range []string{"q0", "q1"} {
		checkDiff(t, "received from "+queue, []int{1, 2}, numbers(s.receive(queue, "?limit=10")))
	}
}

// Another node has the same role, password and TLS settings, and one address only.
func TestConnectionStringOfANode(t *testing.T) {
	t.Parallel()
	d := mustDatabase(t, "postgres://u:p%20w@a:1,b:2/d?sslmode=require&hostaddr=10.0.0.1,10.0.0.2&options=-c%20work_mem%3D1MB")
	node, err := d.at("fd00::2", 5433)
	if err != nil {
		t.Fatal(err)
	}
	c := mustConfig(t, node.dsn)
	checkDiff(t, "configuration", []any{"u", "p w", "d", "fd00::2", uint16(5433), "require", 0}, []any{c.User, c.Password, c.Database, c.Host, c.Port, string(c.SSLMode), len(c.Multi)})
	if c.Hostaddr.IsValid() {
		t.Errorf("hostaddr = %v, want none", c.Hostaddr)
	}
}
