package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

func TestStatementsNameTheShardsOfTheirHome(t *testing.T) {
	t.Parallel()
	v := &shards{
		ofHome: map[int64]map[string]int64{3: {"queued.messages": 102014, "queued.groups": 102046}},
		ofAll:  map[string]int64{"queued.settings": 102011},
	}
	statement := "INSERT INTO queued.messages AS m SELECT nextval('queued.messages_seq_seq') FROM queued.groups, queued.settings, queued.queues WHERE queued.matches(x)"
	checkDiff(t, "the statement", "INSERT INTO queued.messages_102014 AS m SELECT nextval('queued.messages_seq_seq') FROM queued.groups_102046, queued.settings_102011, queued.queues WHERE queued.matches(x)", v.name(3, statement))
	checkDiff(t, "the statement of another home", "SELECT FROM queued.messages", v.name(4, "SELECT FROM queued.messages"))
}

// A statement must not use the name of a table as that of its rows: a shard has another name.
func TestStatementsOnShardsAreValid(t *testing.T) {
	t.Parallel()
	db := newTestDB(t, newPlainDatabase(t, "queued"))
	v := &shards{ofHome: map[int64]map[string]int64{0: {}}, ofAll: map[string]int64{}}
	for _, table := range distributedTables {
		v.ofHome[0]["queued."+table] = 7
	}
	for _, table := range referenceTables {
		v.ofAll["queued."+table] = 8
	}
	for _, tables := range []map[string]int64{v.ofHome[0], v.ofAll} {
		for table, id := range tables {
			if _, err := db.Exec(fmt.Sprintf("ALTER TABLE %s RENAME TO %s_%d", table, strings.TrimPrefix(table, "queued."), id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, statement := range []string{
		insertMessagesSQL, insertGroupedSQL, insertUncommonSQL, claimMessagesSQL, claimBackoffSQL, claimSQSSQL, claimBatchSQL, claimBatchSQSSQL,
		insertDeduplicationsSQL, lockGroupsSQL, selectLeaseTermsSQL, selectNextDueSQL, keepConsumedSQL,
		consumeMessagesSQL, ackMessagesSQL, ackReceiptsSQL, nackMessagesSQL, extendMessagesSQL, extendReceiptsSQL, releaseMessagesSQL,
	} {
		stmt, err := db.Prepare(v.name(0, statement))
		if err != nil {
			t.Errorf("%v in %s", err, statement)
			continue
		}
		stmt.Close()
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(v.name(0, claimGroupsOnShardsSQL)); err != nil {
		t.Fatal(err)
	}
	call := strings.NewReplacer("$13", "false", "$14", "false").Replace(v.name(0, claimGroupsSQL))
	if _, err := db.Exec(call, 0, 0, "-infinity", 1, true, 0, false, 1, 1, 1, 1, nil); err != nil {
		t.Error(err)
	}
}

// The table is called like a shard, and a view takes the place of the distributed table. A
// trigger refuses statements on the shard, as it does after a move of the home.
func TestAStatementFindsAHomeThatHasMoved(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s := n.newServer(t)
	s.exec("ALTER TABLE queued.messages RENAME TO messages_7")
	s.exec("CREATE VIEW queued.messages AS SELECT * FROM queued.messages_7")
	s.exec(`CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE serialization_failure;
END $$`)
	node := s.engine.nodeOf(1)
	for _, refuses := range []bool{false, true} {
		all := n.placements(0, 1)
		all[1].shards = map[string]int64{"queued.messages": 7}
		s.engine.place(context.Background(), all, nil)
		if refuses {
			s.exec("CREATE TRIGGER refuse BEFORE INSERT OR DELETE ON queued.messages_7 FOR EACH STATEMENT WHEN (current_query() LIKE '%messages\\_7%') EXECUTE FUNCTION public.refuse()")
		}
		message := s.messages(s.must(201, "POST", "/queues/q1/messages", `{"data":{"n":1}}`))[0]
		checkDiff(t, "messages", 1, s.count("SELECT count(*) FROM queued.messages"))
		s.must(204, "PUT", "/messages/"+message.ID+"/ack", "")
		checkDiff(t, "messages after the ack", 0, s.count("SELECT count(*) FROM queued.messages"))
		if onShard := node.shards.Load().ofHome[1] != nil; onShard == refuses {
			t.Errorf("with %v refused statements, the node has the home: %v", refuses, onShard)
		}
	}

	// A transaction is tried again from the begin.
	all := n.placements(0, 1)
	all[1].shards = map[string]int64{"queued.messages": 7}
	s.exec("DROP TRIGGER refuse ON queued.messages_7")
	ids := []string{s.messages(s.must(201, "POST", "/queues/q1/messages", `{"data":{"n":1}}`))[0].ID}
	s.exec("UPDATE queued.messages_7 SET in_flight = true, scheduled_at = now() + interval '1 hour'")
	s.exec("CREATE TRIGGER refuse BEFORE INSERT OR DELETE ON queued.messages_7 FOR EACH STATEMENT WHEN (current_query() LIKE '%messages\\_7%') EXECUTE FUNCTION public.refuse()")
	s.engine.place(context.Background(), all, nil)
	s.must(201, "POST", "/queues/q1/messages", fmt.Sprintf(`{"data":{"n":2},"ack":[%q]}`, ids[0]))
	checkDiff(t, "messages after the publish that acks", `{"n":2}`, mustSelect(t, s.store.db, "SELECT data::text FROM queued.messages")[0])
}

// The tables are called like shards, and views take their places. Then the home moves: the
// tables have their names again.
func TestGroupsAreClaimedInShardsUntilTheirHomeMoves(t *testing.T) {
	t.Parallel()
	n := newNodes(t)
	s := n.newServer(t)
	all := n.placements(0, 1)
	all[1].shards = make(map[string]int64)
	for _, table := range distributedTables {
		s.exec(fmt.Sprintf("ALTER TABLE queued.%s RENAME TO %[1]s_7", table))
		s.exec(fmt.Sprintf("CREATE VIEW queued.%s AS SELECT * FROM queued.%[1]s_7", table))
		all[1].shards["queued."+table] = 7
	}
	s.engine.place(context.Background(), all, nil)
	node := s.engine.nodeOf(1)
	check := func(what, names string, onShards bool) {
		t.Helper()
		s.publishGroups("q1", strings.Fields(names)...)
		for range 2 { // the second one is a duplicate
			s.must(201, "POST", "/queues/q1/messages", fmt.Sprintf(`{"data":{"name":"once"},"group":"once","deduplication_id":%q}`, names[:2]))
		}
		got := s.receive("q1", "?limit=10")
		checkDiff(t, "received "+what, names+" once", namesOf(got))
		for _, m := range got {
			s.must(204, "PUT", "/messages/"+m.ID+"/ack", "")
		}
		checkDiff(t, "messages "+what, 0, s.count("SELECT count(*) FROM queued.messages"))
		checkDiff(t, "the node has the home "+what, onShards, node.shards.Load().ofHome[1] != nil)
	}
	check("on shards", "a1 b1", true)
	checkDiff(t, "functions of connections", true, s.count("SELECT count(*) FROM pg_proc WHERE proname = 'claim_groups_7'") > 0)
	for _, table := range distributedTables {
		s.exec("DROP VIEW queued." + table)
		s.exec(fmt.Sprintf("ALTER TABLE queued.%s_7 RENAME TO %[1]s", table))
	}
	check("after the move", "a3 c1", false)
}
