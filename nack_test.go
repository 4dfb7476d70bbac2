package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The statements of these nacks are shared by all requests of a batch.
func TestNackWhoseMessageCannotMoveFailsAlone(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("q", `"message_max_deliveries":1,"dead_queue_id":"dead"`)
	s.mustQueue("last", `"message_max_deliveries":1,"dead_queue_id":"dead"`)
	s.mustTopic("t")
	s.must(201, "POST", "/queues/dead/messages", `{"data":{"n":1},"group":"g"}`)
	s.must(201, "POST", "/queues/q/messages", `{"data":{"n":2},"group":"g"}`)
	s.must(201, "POST", "/queues/last/messages", `{"data":{"n":3}}`)
	s.publish("t", 4)
	var batch []*ackRequest
	for _, m := range slices.Concat(s.receive("q", ""), s.receive("last", ""), s.receive("t", "")) {
		batch = append(batch, &ackRequest{items: []ackItem{{id: m.ID}}})
	}
	key := s.count("SELECT key FROM queued.queues WHERE id = 'dead'")
	lock := s.begin("SELECT FROM queued.groups WHERE home = $1 AND queue_key = $2 FOR UPDATE", homeOf(int64(key)), key)
	conn := newPinnedConn(s.store.db, s.server.metrics)
	conn.homes = s.engine.homes
	defer conn.end()
	if err := s.engine.runNacks(conn, batch); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(batch[0].err, errUnavailable) || batch[1].err != nil || batch[2].err != nil {
		t.Errorf("errors %v, %v and %v, want only one for the message whose group is locked", batch[0].err, batch[1].err, batch[2].err)
	}
	checkDiff(t, "dead", 2, s.messagesIn("dead"))
	checkDiff(t, "nacked", []int{4}, numbers(s.receive("t", "")))
	if err := lock.Commit(); err != nil {
		t.Fatal(err)
	}
	s.endLeases()
	s.mustCleanUp()
	checkDiff(t, "dead after the lease", 3, s.messagesIn("dead"))
}

// A transaction moves at most 8 MiB of messages.
// Without a lease token, a nack also ends a delivery that begins while the nack runs.
func TestNackWhileTheLastDeliveryBeginsLeavesNoMessageBehind(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead"`, `"message_max_deliveries":2`)
	id := s.publish("t", 1)[0]
	s.receive("t", "")
	cleanUp := s.newCleanup()
	cleanUp() // the first round looks at all messages
	delivery := s.begin("UPDATE queued.messages SET delivery_attempts = 2, last_delivery = true WHERE home = $1 AND id = $2", s.homeOf("t"), id)
	if v := s.sendUntilCommit(delivery, "PUT", "/messages/"+id+"/nack"); v.status != 204 {
		t.Errorf("nack = %d %s", v.status, v.body)
	}
	cleanUp()
	checkDiff(t, "dead queue", []int{1}, numbers(s.receive("dead", "")))
}

func TestManyLargeMessagesMove(t *testing.T) {
	t.Parallel()
	const enlarge = "UPDATE queued.messages SET bytes = 3 * 1024 * 1024"
	for what, move := range map[string]func(s *testServer, ids string){
		"redrive": func(s *testServer, ids string) {
			s.exec(enlarge)
			checkDiff(s.t, "result", "204 moved 5 left ", s.moved("/queues/q/redrive", `{"destination_queue_id":"dead"}`))
		},
		"redrive by id": func(s *testServer, ids string) {
			s.exec(enlarge)
			checkDiff(s.t, "result", "204 moved 5 left 1", s.moved("/messages/redrive", `{"ids":[`+ids+`],"destination_queue_id":"dead"}`))
		},
		"nack": func(s *testServer, ids string) {
			s.receive("q", "")
			s.exec(enlarge)
			s.must(204, "PUT", "/messages/nack", `{"ids":[`+ids+`]}`)
		},
		"cleanup": func(s *testServer, ids string) {
			s.receive("q", "")
			s.exec(enlarge)
			s.endLeases()
			s.mustCleanUp()
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			s.mustQueue("dead")
			s.mustQueue("q", `"message_max_deliveries":1,"dead_queue_id":"dead"`)
			var ids []string
			for n := range 5 {
				m := s.messages(s.must(201, "POST", "/queues/q/messages", fmt.Sprintf(`{"data":{"n":%d},"group":"g"}`, n)))[0]
				ids = append(ids, fmt.Sprintf("%q", m.ID))
				made := time.Now().UnixMilli()
				eventually(t, "the next id is larger", func() bool { return time.Now().UnixMilli() > made })
			}
			s.mustTopic("t")
			s.publish("t", 9)
			ids = append(ids, fmt.Sprintf("%q", s.receive("t", "")[0].ID)) // in flight
			move(s, strings.Join(ids, ","))
			s.exec("UPDATE queued.messages SET bytes = 9")
			checkDiff(t, "left", 0, s.messagesIn("q"))
			checkDiff(t, "moved, in order", []int{0, 1, 2, 3, 4}, numbers(s.receive("dead", "")))
		})
	}
}

// PostgreSQL refuses the connection to the node of one dead queue.
func TestNacksOfLastDeliveriesWhoseDeadQueueIsThereShareNoFailure(t *testing.T) {
	t.Parallel()
	s := newNodes(t).newServer(t)
	var batch []*ackRequest
	for queue, dead := range map[string]string{"a": "q0", "b": "q1"} {
		for id := queue; ; id += "_" {
			if s.mustQueue(id, `"message_max_deliveries":1`, `"dead_queue_id":"`+dead+`"`); s.homeOf(id) == 0 {
				queue = id
				break
			}
		}
		id := s.messages(s.must(201, "POST", "/queues/"+queue+"/messages", `{"data":{}}`))[0].ID
		s.receive(queue, "")
		batch = append(batch, &ackRequest{items: []ackItem{{id: id}}})
	}
	s.exec(`CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE connection_failure USING MESSAGE = 'no connection to home 1';
END $$`)
	s.exec("CREATE TRIGGER fail BEFORE INSERT ON queued.messages FOR EACH ROW WHEN (new.home = 1) EXECUTE FUNCTION public.fail()")
	conn := newPinnedConn(s.store.db, s.metrics)
	conn.homes = s.engine.homes
	defer conn.end()
	if err := s.engine.runNacks(conn, batch); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, v := range batch {
		if errors.Is(v.err, errUnavailable) {
			failed++
		}
	}
	checkDiff(t, "failed nacks, and messages in the dead queues", []int{1, 1, 0}, []int{failed, s.messagesIn("q0"), s.messagesIn("q1")})
}
