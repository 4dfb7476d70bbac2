package main

import (
	"fmt"
)

// rows inserts messages without the server.
func (v *server) rows(queueID string, many int, scheduledAt string, inFlight bool) error {
	_, err := v.sql(fmt.Sprintf(`INSERT INTO queued.messages (id, queue_key, data, bytes, in_flight, expired_at, scheduled_at, created_at, updated_at)
		SELECT gen_random_uuid(), key, ('{"pad":"' || repeat('a', 190) || '"}')::json, 200, %v, now() + interval '10 h', %s, now(), now()
		FROM queued.queues, generate_series(1, %d) WHERE id = '%s'`, inFlight, scheduledAt, many, queueID))
	return err
}

func (s *suite) backlog() error {
	s.write(`
## With a backlog

64 + 64 clients run cycles while other messages are in the database. These were inserted immediately before, so PostgreSQL
has no statistics about them. The ratio is relative to an empty queue in the same round; the goal is 0.9. Loads ran in at most two rounds, the one with ten million in one.

| other messages | messages per second | ratio | %s |
|---|---|---|---|---|
`, costColumns)
	const million = 1_000_000
	rounds := min(2, s.rounds)
	kinds := []struct {
		what    string
		prepare func(v *server) error
		args    []string
		rounds  int
	}{
		{"none", func(*server) error { return nil }, nil, rounds},
		{"a million due in the queue", func(*server) error { return nil }, []string{"-backlog", "1000000", "-drain=false"}, rounds},
		{"a million in flight in the queue", func(v *server) error { return v.rows("q", million, "now() + interval '1 h'", true) }, []string{"-queue", "q"}, rounds},
		{"a million delayed in the queue", func(v *server) error { return v.rows("q", million, "now() + interval '1 h'", false) }, []string{"-queue", "q"}, rounds},
		{"a million due in another queue", func(v *server) error { return v.rows("other", million, "now()", false) }, nil, rounds},
		{"ten million due in the queue", func(*server) error { return nil }, []string{"-backlog", "10000000", "-drain=false"}, 1},
	}
	results := make([]numbers, len(kinds))
	ratios := make([]numbers, len(kinds))
	used := make([]costs, len(kinds))
	for round := range rounds {
		empty := 0.0
		for i, k := range kinds {
			if round >= k.rounds {
				continue
			}
			v, err := s.start()
			if err != nil {
				return err
			}
			var r *result
			for _, id := range []string{"q", "other"} {
				if err == nil {
					err = v.mustQueue(id)
				}
			}
			if err == nil {
				err = k.prepare(v)
			}
			if err == nil {
				r, err = v.bench(append(load(64, 64, 1, s.seconds), k.args...)...)
			}
			v.stop()
			if err != nil {
				return err
			}
			if i == 0 {
				empty = r.rate
			}
			results[i], ratios[i] = append(results[i], r.rate), append(ratios[i], r.rate/empty)
			used[i].add(r)
		}
	}
	for i, k := range kinds {
		s.write("| %s | %v | %v | %v |\n", k.what, results[i], ratios[i], used[i])
	}
	s.write("\nThe query plans are the same on an empty, a full and an analyzed table; `go test -v -run HotStatements .` checks and prints them.\n")
	return nil
}
