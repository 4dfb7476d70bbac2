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

func TestASearchThatFailsHurtsOnlyRequestsOfUnknownMessages(t *testing.T) {
	t.Parallel()
	s := newNodes(t).newServer(t)
	conn := newPinnedConn(s.store.db, s.engine.metrics)
	conn.homes = s.engine.homes
	defer conn.end()
	s.exec(`CREATE OR REPLACE FUNCTION queued.unfinished() RETURNS text[] LANGUAGE plpgsql VOLATILE AS $$ BEGIN RAISE query_canceled; END $$`)
	s.publish("t", 1)
	message, moved := s.receive("q0", "")[0], s.receive("q1", "")[0]
	s.exec(`UPDATE queued.messages SET queue_key = $1, home = $2 WHERE id = $3`, s.key("q0"), homeOf(s.key("q0")), moved.ID)
	for _, v := range []struct {
		name string
		run  func(*pinnedConn, []*ackRequest) error
	}{
		{"extend", s.engine.runExtensions},
		{"nack", s.engine.runNacks},
		{"ack", s.engine.runAcks},
	} {
		s.exec(`UPDATE queued.messages SET updated_at = '2020-01-01'`)
		var batch []*ackRequest
		for _, id := range []string{message.ID, moved.ID, newIDIn(1)} {
			batch = append(batch, &ackRequest{items: []ackItem{{id: id, after: time.Hour}}})
		}
		if err := v.run(conn, batch); err != nil {
			t.Errorf("%s: %v", v.name, err)
		}
		if batch[0].err != nil || batch[1].err != nil || batch[2].err != errMoving {
			t.Errorf("%s: errors %v, %v and %v, want only that of the unknown message: %v", v.name, batch[0].err, batch[1].err, batch[2].err, errMoving)
		}
		checkDiff(t, v.name+": unchanged messages", 0, s.count(`SELECT count(*) FROM queued.messages WHERE updated_at = '2020-01-01'`))
	}
}
