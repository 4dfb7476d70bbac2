package main

import (
	"fmt"
	"strings"
	"testing"
)

// restartSequences leaves the sequences as logical replication and some restores do.
func (s *testServer) restartSequences() {
	s.t.Helper()
	s.exec("ALTER TABLE queued.queues ALTER key RESTART WITH 1")
	s.exec("ALTER TABLE queued.messages ALTER seq RESTART WITH 1")
}

// wantIdentity checks that a new queue and new messages are not taken for old ones:
// those of a deleted queue were in it under the key 1, and 1 to 3 are in the group g
// of the ordered queue.
func (s *testServer) wantIdentity() {
	s.t.Helper()
	s.mustQueue("new")
	s.must(201, "POST", "/queues/new/messages", `{"data":{"n":7}}`)
	s.must(201, "POST", "/queues/ordered/messages", `{"data":{"n":4},"group":"g"}`)
	mustCleanUp(s.t, s)
	checkDiff(s.t, "in the new queue", []int{7}, numbers(s.receive("new", "")))
	var order []int
	for range 4 {
		messages := s.receive("ordered", "")
		order = append(order, numbers(messages)...)
		s.must(204, "PUT", "/messages/"+messages[0].ID+"/ack", "")
	}
	checkDiff(s.t, "order of the group", []int{1, 2, 3, 4}, order)
}

func (s *testServer) fillBeforeRestart() {
	s.t.Helper()
	s.mustQueue("deleted")
	s.mustQueue("ordered", `"ordered":true`)
	s.must(201, "POST", "/queues/deleted/messages", `{"data":{}}`)
	s.must(204, "DELETE", "/queues/deleted", "")
	for n := range 3 {
		s.must(201, "POST", "/queues/ordered/messages", fmt.Sprintf(`{"data":{"n":%d},"group":"g"}`, n+1))
	}
}

func TestSequencesThatRestartedAreRaisedAtTheStart(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.fillBeforeRestart()
	s.restartSequences()
	runServer(t, "-database-url", s.dsn)
	s.wantIdentity()
}

func TestSequencesThatRestartedAreRaisedAfterAReconnect(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.fillBeforeRestart()
	s.restartSequences()
	outside := newTestDB(t, s.dsn)
	if _, err := outside.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
		t.Fatal(err)
	}
	s.eventually("it publishes again", func() bool {
		v := s.do("POST", "/queues/none/messages", `{"data":{}}`)
		return v.status == 404
	})
	s.eventually("it is ready again", func() bool { return s.do("GET", "/readyz", "").status == 200 })
	s.wantIdentity()
}

func TestSequencesThatAreRightStay(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.fillBeforeRestart()
	sequences := func() string {
		var v string
		if err := s.store.db.QueryRow("SELECT q.last_value || ' ' || q.is_called || ' ' || m.last_value || ' ' || m.is_called FROM queued.queues_key_seq q, queued.messages_seq_seq m").Scan(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := sequences()
	if err := s.store.raiseSequences(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "sequences", before, sequences())
	conn, err := s.store.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	plan := ""
	for _, statement := range strings.Split(raiseSequences, ";")[1:] {
		plan += explain1(t, conn, statement, nil)
	}
	if strings.Contains(plan, "Seq Scan on messages ") || strings.Contains(plan, "Sort ") {
		t.Errorf("it reads all messages:\n%s", plan)
	}
}
