package main

import (
	"fmt"
	"testing"
	"time"
)

func TestAckOfAMessageThatIsMovingToAnotherHomeIsRefused(t *testing.T) {
	t.Parallel()
	s := newNodes(t).newServer(t)
	s.publish("t", 1)
	moving, other := s.receive("q0", "")[0], s.receive("q1", "")[0]
	// The transaction has committed where it has deleted the message, and not yet where it
	// has inserted it.
	s.exec(`CREATE TABLE public.inserted AS SELECT * FROM queued.messages WHERE id = $1`, moving.ID)
	s.exec(`DELETE FROM queued.messages WHERE id = $1`, moving.ID)
	unfinished := func(ids string) {
		s.exec(`CREATE OR REPLACE FUNCTION queued.unfinished() RETURNS text[] LANGUAGE sql VOLATILE AS $$ SELECT '` + ids + `'::text[] $$`)
	}
	unfinished("{citus_1}")
	withToken := func(m wireMessage) string { return fmt.Sprintf(`{"id":%q,"scheduled_at":%q}`, m.ID, m.ScheduledAt) }
	for _, body := range []string{
		fmt.Sprintf(`{"ids":[%q]}`, moving.ID),
		fmt.Sprintf(`{"messages":[%s]}`, withToken(moving)),
		fmt.Sprintf(`{"messages":[%s,%s]}`, withToken(other), withToken(moving)),
	} {
		checkDiff(t, body, `{"detail":"a message may be moving between database servers; try again later"}`, s.must(503, "PUT", "/messages/ack", body))
	}
	checkDiff(t, "messages in the other queue", 0, s.messagesIn("q1"))

	s.exec(`INSERT INTO queued.messages SELECT m.* FROM public.inserted m`)
	s.exec(`UPDATE queued.messages SET queue_key = $1, home = $2 WHERE id = $3`, s.key("q1"), homeOf(s.key("q1")), moving.ID)
	s.must(204, "PUT", "/messages/"+moving.ID+"/ack", "")
	unfinished("{}")
	s.must(204, "PUT", "/messages/"+moving.ID+"/ack", "")
	checkDiff(t, "messages after the move and the ack", 0, s.messagesIn("q1"))
}

func TestASearchThatFailsHurtsNoOtherRequestOfItsBatch(t *testing.T) {
	t.Parallel()
	s := newNodes(t).newServer(t)
	conn := newPinnedConn(s.store.db, s.engine.metrics)
	conn.homes = s.engine.homes
	defer conn.end()
	s.exec(`CREATE OR REPLACE FUNCTION queued.unfinished() RETURNS text[] LANGUAGE plpgsql VOLATILE AS $$ BEGIN RAISE query_canceled; END $$`)
	s.publish("t", 1)
	message := s.receive("q0", "")[0]
	for _, v := range []struct {
		name string
		run  func(*pinnedConn, []*ackRequest) error
	}{
		{"extend", s.engine.runExtensions},
		{"nack", s.engine.runNacks},
		{"ack", s.engine.runAcks},
	} {
		s.exec(`UPDATE queued.messages SET updated_at = '2020-01-01' WHERE id = $1`, message.ID)
		known := &ackRequest{items: []ackItem{{id: message.ID, after: time.Hour}}}
		unknown := &ackRequest{items: []ackItem{{id: newIDIn(1), after: time.Hour}}}
		if err := v.run(conn, []*ackRequest{known, unknown}); err != nil {
			t.Errorf("%s: %v", v.name, err)
		}
		if known.err != nil || unknown.err != errMoving {
			t.Errorf("%s: errors %v and %v, want only that of the unknown message: %v", v.name, known.err, unknown.err, errMoving)
		}
		checkDiff(t, v.name+": unchanged messages", 0, s.count(`SELECT count(*) FROM queued.messages WHERE id = $1 AND updated_at = '2020-01-01'`, message.ID))
	}
}
