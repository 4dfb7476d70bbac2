package main

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
)

// restartSequences restarts the sequences, as logical replication and some restores do.
func restartSequences(s *testServer) {
	s.t.Helper()
	s.onNodes("SELECT setval(seqrelid::regclass, seqmin, false) FROM pg_sequence WHERE seqrelid IN ('queued.queues_key_seq'::regclass, 'queued.messages_seq_seq'::regclass)")
}

// wantIdentity checks that a new queue does not get the key of the deleted queue, with
// its messages, and that new messages come after the messages 1 to 3 in the group g of
// the ordered queue.
func wantIdentity(s *testServer) {
	s.t.Helper()
	s.mustQueue("new")
	s.must(201, "POST", "/queues/new/messages", `{"data":{"n":7}}`)
	s.must(201, "POST", "/queues/ordered/messages", `{"data":{"n":4},"group":"g"}`)
	s.mustCleanUp()
	checkDiff(s.t, "in the new queue", []int{7}, numbers(s.receive("new", "")))
	var order []int
	for range 4 {
		messages := s.receive("ordered", "")
		order = append(order, numbers(messages)...)
		s.must(204, "PUT", "/messages/"+messages[0].ID+"/ack", "")
	}
	checkDiff(s.t, "order of the group", []int{1, 2, 3, 4}, order)
}

func fillBeforeRestart(s *testServer) {
	s.t.Helper()
	s.mustQueue("deleted")
	s.mustQueue("ordered", `"ordered":true`)
	s.must(201, "POST", "/queues/deleted/messages", `{"data":{}}`)
	s.must(204, "DELETE", "/queues/deleted", "")
	for n := range 3 {
		s.must(201, "POST", "/queues/ordered/messages", fmt.Sprintf(`{"data":{"n":%d},"group":"g"}`, n+1))
	}
}

func TestSequenceOfKeysHasNoHome(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	if _, err := s.db.Exec("INSERT INTO queued.queues (key, id, ack_deadline_seconds, message_retention_seconds) OVERRIDING SYSTEM VALUE VALUES (3::bigint << 48 | 7, 'q', 60, 60)"); err != nil {
		t.Fatal(err)
	}
	if err := s.raiseSequences(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.createQueue(t.Context(), "next", queueSettings{AckDeadlineSeconds: 60, MessageRetentionSeconds: 60}); err != nil {
		t.Fatal(err)
	}
	next, err := s.queue(t.Context(), "next")
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "number in the key", int64(8), next.key&(1<<48-1))
	if homeOf(next.key) == 3 {
		t.Errorf("the key %d has the home of the other queue", next.key)
	}
}

func TestSequencesThatRestartedAreRaisedAtTheStart(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	fillBeforeRestart(s)
	restartSequences(s)
	runServer(t, "-database-url", s.dsn)
	wantIdentity(s)
}

func TestSequencesThatRestartedAreRaisedAfterAReconnect(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	fillBeforeRestart(s)
	restartSequences(s)
	loseConnections(s, newTestDB(t, s.dsn))
	wantIdentity(s)
}

// loseConnections ends all connections except one, and waits until the server has
// recovered.
func loseConnections(s *testServer, but *sql.DB) {
	s.t.Helper()
	if _, err := but.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the server publishes again", func() bool {
		return s.do("POST", "/queues/none/messages", `{"data":{}}`).status == 404
	})
	eventually(s.t, "the server is ready again", func() bool { return s.do("GET", "/readyz", "").status == 200 })
}

func TestLostConnectionsAreReplacedWhileAnotherServerRaisesSequences(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	outside := newTestDB(t, s.dsn)
	outside.SetMaxOpenConns(1)
	if _, err := outside.Exec("SELECT pg_advisory_lock($1)", int64(sequencesLock)); err != nil {
		t.Fatal(err)
	}
	loseConnections(s, outside)
}

// The server does not read the tables again, because a search for the newest message
// walks over all deleted rows before a vacuum.
func TestSequencesThatHaveOnlyGrownStayAfterAReconnect(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	fillBeforeRestart(s)
	outside := newTestDB(t, s.dsn)
	loseConnections(s, outside)
	s.exec(`
		WITH removed AS (DELETE FROM queued.messages RETURNING *)
		INSERT INTO queued.messages (home, id, queue_key, group_id, data, bytes, expired_at, scheduled_at, created_at, updated_at, seq)
		OVERRIDING SYSTEM VALUE
		SELECT home, id, queue_key, group_id, data, bytes, expired_at, scheduled_at, created_at, updated_at, seq + 1000
		FROM removed`)
	loseConnections(s, outside)
	if n := s.count("SELECT last_value FROM queued.messages_seq_seq"); n > sequenceLeap {
		t.Errorf("the sequence of messages was raised to %d", n)
	}
}

// Here the sequences restart while the server runs and loses no connection.
func TestSequencesThatRestartedAreRaisedForTheFirstKeyThatIsTaken(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	fillBeforeRestart(s)
	restartSequences(s)
	wantIdentity(s)
	restartSequences(s)
	for _, id := range []string{"a", "b", "c"} {
		s.mustQueue(id)
	}
	s.must(422, "POST", "/queues", `{"id":"a","ack_deadline_seconds":30,"message_retention_seconds":600}`)
}

func TestSequencesThatAreRightStay(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	fillBeforeRestart(s)
	standing := func() string {
		var v string
		if err := s.store.db.QueryRow("SELECT q.last_value || ' ' || q.is_called || ' ' || m.last_value || ' ' || m.is_called FROM queued.queues_key_seq q, queued.messages_seq_seq m").Scan(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := standing()
	if err := new(sequences).raiseOn(t.Context(), s.store.db); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "sequences", before, standing())
	conn, err := s.store.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	plan := ""
	for _, statement := range strings.Split(raiseSequencesSQL, ";")[1:] {
		plan += explain1(t, conn, statement, nil)
	}
	if strings.Contains(plan, "Seq Scan on messages ") || strings.Contains(plan, "Sort ") {
		t.Errorf("the statement reads all messages:\n%s", plan)
	}
}
