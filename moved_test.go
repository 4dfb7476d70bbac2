package main

import (
	"fmt"
	"testing"
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
