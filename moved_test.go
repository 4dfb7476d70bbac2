package main

import (
	"context"
	"fmt"
	"sync"
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
		checkDiff(t, body, `{"detail":"a message may be moving to another queue; try again later"}`, s.must(503, "PUT", "/messages/ack", body))
	}
	checkDiff(t, "messages in the other queue", 0, s.messagesIn("q1"))

	s.exec(`INSERT INTO queued.messages SELECT m.* FROM public.inserted m`)
	s.exec(`UPDATE queued.messages SET queue_key = $1, home = $2 WHERE id = $3`, s.key("q1"), homeOf(s.key("q1")), moving.ID)
	s.must(204, "PUT", "/messages/"+moving.ID+"/ack", "")
	unfinished("{}")
	s.must(204, "PUT", "/messages/"+moving.ID+"/ack", "")
	checkDiff(t, "messages after the move and the ack", 0, s.messagesIn("q1"))
}

// The first two searches miss the message, because it moves to and fro.
func TestAckSearchesAMessageThatMovesTwice(t *testing.T) {
	t.Parallel()
	s := newNodes(t).newServer(t)
	s.publish("t", 1)
	id := s.receive("q0", "")[0].ID
	s.exec(`CREATE TABLE public.inserted AS SELECT * FROM queued.messages WHERE id = $1`, id)
	s.exec(`DELETE FROM queued.messages WHERE id = $1`, id)
	s.exec(`CREATE SEQUENCE public.searches`)
	s.exec(`CREATE OR REPLACE FUNCTION queued.unfinished() RETURNS text[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    search bigint := nextval('public.searches');
BEGIN
    IF search = 1 THEN
        RETURN '{citus_1}';
    END IF;
    INSERT INTO queued.messages SELECT * FROM public.inserted;
    RETURN '{}';
END
$$`)
	s.must(204, "PUT", "/messages/"+id+"/ack", "")
	s.wantMetrics(`queued_messages_acked_total{queue="q0"} 1`)
}

// The messages move between two queues all the time while their acks search them.
func TestAcksOfMessagesThatMoveToAndFroAreFinal(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	queues := []string{"a", "b"}
	for _, queue := range queues {
		s.mustQueue(queue)
	}
	var acking, moving sync.WaitGroup
	for range 4 {
		acking.Go(func() {
			for range 25 {
				v, err := s.send(context.Background(), "POST", "/queues/a/messages", `{"data":{}}`)
				all, _ := decodeMessages(v.body)
				if err != nil || len(all) != 1 {
					t.Errorf("publish = %d %s, %v", v.status, v.body, err)
					return
				}
				for status := 0; status != 204; {
					v, err := s.send(context.Background(), "PUT", "/messages/"+all[0].ID+"/ack", "")
					if status = v.status; err != nil || status != 204 && status != 503 {
						t.Errorf("ack = %d %s, %v", v.status, v.body, err)
						return
					}
				}
			}
		})
	}
	acked := make(chan struct{})
	moving.Go(func() {
		for i := 0; !isClosed(acked); i = 1 - i {
			body := fmt.Sprintf(`{"destination_queue_id":%q}`, queues[1-i])
			if v, err := s.send(context.Background(), "PUT", "/queues/"+queues[i]+"/redrive", body); err != nil || v.status != 204 && v.status != 503 {
				t.Errorf("redrive = %d %s, %v", v.status, v.body, err)
				return
			}
		}
	})
	acking.Wait()
	close(acked)
	moving.Wait()
	checkDiff(t, "acked messages that are left", 0, s.count("SELECT count(*) FROM queued.messages"))
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
