package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	writtenTime  = regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d(:?\d\d)?)?`)
	writtenMicro = regexp.MustCompile(`\b\d{16}\b`) // in the payload of a notification
)

// timesIn returns the times in a text, in microseconds of the Unix epoch.
func timesIn(t *testing.T, text string) (all []int64) {
	for _, v := range writtenTime.FindAllString(text, -1) {
		at, err := time.Parse("2006-01-02 15:04:05.999999Z07", strings.Replace(strings.Replace(v, "T", " ", 1), "+00:00", "+00", 1))
		if err != nil {
			t.Errorf("a time that cannot be read: %s", v)
			continue
		}
		all = append(all, at.UnixMicro())
	}
	for _, v := range writtenMicro.FindAllString(text, -1) {
		micros, _ := strconv.ParseInt(v, 10, 64)
		all = append(all, micros)
	}
	return all
}

// The test records the traffic with PostgreSQL while messages pass through every state.
// A time in an argument must be a time that PostgreSQL has sent before, or differ from
// one by the queue's delay. Only the ids of messages contain a time of the process;
// no statement reads it.
func TestNoTimeOfOursEntersSQL(t *testing.T) {
	t.Parallel()
	const delay = 2 * time.Second // of the queue
	// A time may differ by one of these from a time that PostgreSQL has sent.
	apart := []time.Duration{0, delay, -watermarkMargin, -sweepMargin, -watermarkMargin - sweepMargin}
	sent := map[int64]bool{time.Time{}.UnixMicro(): true} // the zero time is before all others
	queries := map[string]string{}                        // by connection and name of the prepared statement
	seen := map[string]int{}                              // times in arguments, by the first line of the statement
	check := func(query, text string) {
		query, _, _ = strings.Cut(strings.TrimSpace(query), "\n")
		for _, at := range timesIn(t, text) {
			seen[query]++
			if !slices.ContainsFunc(apart, func(d time.Duration) bool { return sent[at-d.Microseconds()] }) {
				t.Errorf("%s gets %v, which PostgreSQL has not sent: %s", query, time.UnixMicro(at).UTC(), text)
			}
		}
	}
	w := newWire(t, "tcp", "127.0.0.1:0", testPostgres.socket+"/"+socketName, func(conn int, fromClient bool, kind byte, body []byte) bool {
		switch {
		case fromClient && kind == 'Q':
			query, _ := fields(body, 1)
			check(query[0], query[0])
		case fromClient && kind == 'P':
			v, _ := fields(body, 2)
			check(v[1], v[1])
			queries[fmt.Sprint(conn, v[0])] = v[1]
		case fromClient && kind == 'B':
			v, rest := fields(body, 2)
			formats := int(binary.BigEndian.Uint16(rest))
			for i, text := range values(rest[2+2*formats:]) {
				if formats > 0 && binary.BigEndian.Uint16(rest[2+2*min(i, formats-1):]) != 0 {
					t.Errorf("%s has arguments that the test cannot read", queries[fmt.Sprint(conn, v[1])])
				}
				if strings.HasPrefix(text, `{"{`) {
					continue // payloads of messages
				}
				check(queries[fmt.Sprint(conn, v[1])], text)
			}
		case !fromClient && kind == 'D':
			for _, text := range values(body) {
				for _, at := range timesIn(t, text) {
					sent[at] = true
				}
			}
		}
		return true
	})
	host, port, _ := strings.Cut(w.address, ":")
	dsn := strings.NewReplacer("host='"+testPostgres.socket+"'", "host="+host, "port=5432", "port="+port).Replace(newPlainDatabase(t, "queued"))
	s, other := newTestServerOn(t, dsn), newTestServerOn(t, dsn)

	s.mustQueue("u", `"ack_deadline_seconds":30`)
	s.mustTopic("t", `"dead_queue_id":"u"`, `"message_max_deliveries":3`, `"delivery_delay_seconds":2`)
	poll := other.poll(context.Background(), "t", "?wait_seconds=20") // is woken by a notification
	s.publish("t", 1)
	s.must(201, "POST", "/topics/t/messages/batch", `{"messages":[{"data":{"n":2}},{"data":{"n":3},"delay_seconds":0},{"data":{"n":4},"delay_seconds":600}]}`)
	m := other.await(poll)[0]
	s.must(200, "PUT", "/messages/"+m.ID+"/extend?scheduled_at="+m.ScheduledAt, `{"ack_deadline_seconds":300}`)
	s.must(409, "PUT", "/messages/"+m.ID+"/ack?scheduled_at="+m.ScheduledAt, "")
	s.must(204, "PUT", "/messages/"+m.ID+"/nack", `{"delay_seconds":1}`)
	for range 3 { // until it is in the dead queue, with sweeps in between
		for _, m := range s.receive("t", "?wait_seconds=20") {
			s.must(204, "PUT", "/messages/"+m.ID+"/nack?scheduled_at="+m.ScheduledAt, `{"delay_seconds":1}`)
		}
	}
	v, err := s.engine.receive(context.Background(), "t", 10, testTimeout)
	if err != nil || len(v.messages) == 0 {
		t.Fatalf("receive = %v, %v", v.messages, err)
	}
	s.engine.release("t", v.messages)
	conn := newPinnedConn(s.store.db, s.metrics)
	for _, full := range []bool{false, true} {
		if err := s.engine.sweep(s.engine.main, conn, full); err != nil {
			t.Error(err)
		}
	}
	conn.close()
	s.exec("UPDATE queued.messages SET scheduled_at = now() - interval '1 s', delivery_attempts = 3, last_delivery = true, in_flight = true WHERE scheduled_at > now() + interval '500 s'")
	c := &cleanup{store: s.store, log: s.log, announce: s.engine.announce}
	for range 2 { // the second pass begins where the first has ended
		if err := c.once(context.Background()); err != nil {
			t.Fatal(err)
		}
		s.exec("UPDATE queued.messages SET expired_at = now() - interval '1 s' WHERE id IN (SELECT id FROM queued.messages ORDER BY seq LIMIT 1)")
	}
	s.must(201, "POST", "/queues/u/messages", `{"data":{}}`)
	s.must(204, "PUT", "/queues/u/redrive", `{"destination_queue_id":"t"}`)
	s.must(200, "GET", "/queues/t/messages/peek", "")
	s.must(200, "GET", "/queues/t/stats?detail=true", "")
	s.must(200, "GET", "/metrics", "")
	s.must(204, "PUT", "/queues/t/purge", "")
	s.must(204, "DELETE", "/queues/u", "")
	if err := c.once(context.Background()); err != nil {
		t.Fatal(err)
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	if len(seen) < 5 {
		t.Errorf("only %d statements had times in their arguments, so the test tests little: %v", len(seen), seen)
	}
}
