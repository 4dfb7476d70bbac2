package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// The statements of queued in a form for pgbench: PostgreSQL creates the rows, and ids do
// not leave it.
const pgbenchInsert = `
INSERT INTO queued.messages (id, queue_key, data, bytes, expired_at, scheduled_at, created_at, updated_at)
SELECT gen_random_uuid(), :key, ('{"pad":"' || repeat('a', 190) || '"}')::json, 200, now() + interval '1 h', now(), now(), now()
FROM generate_series(1, 100);
`

const pgbenchCycle = pgbenchInsert + `
WITH due AS MATERIALIZED (
    SELECT ctid AS tid FROM queued.messages
    WHERE queue_key = :key AND group_id IS NULL AND scheduled_at <= now() AND expired_at > now() AND delivery_attempts < 2147483647
    ORDER BY scheduled_at, seq LIMIT 100 FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE queued.messages m
    SET in_flight = true, delivery_attempts = delivery_attempts + 1, scheduled_at = now() + interval '1 min', updated_at = now()
    FROM due WHERE m.ctid = due.tid RETURNING m.id
)
SELECT coalesce(array_agg(id), '{}') AS ids FROM claimed
\gset
DELETE FROM queued.messages WHERE id = ANY(:ids::uuid[]);
`

// pgbench runs a script on the database of a server, with a queue of its own, and returns
// the transactions per second.
func (v *server) pgbench(script string, clients int, d time.Duration) (float64, error) {
	path := filepath.Join(v.data, "pgbench.sql")
	if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(v.s.ctx, postgresProgram("pgbench"), "-n", "-M", "prepared", "-h", v.data+"/data/run", "-U", "queued", "-D", "key=1000000",
		"-c", strconv.Itoa(clients), "-j", "2", "-T", strconv.Itoa(max(1, int(d.Seconds()))), "-f", path, "queued")
	cmd.Env = append(os.Environ(), "PGOPTIONS=-c enable_seqscan=off -c enable_bitmapscan=off -c enable_sort=off -c jit=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	found := regexp.MustCompile(`tps = ([0-9.]+)`).FindSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("pgbench: %s", out)
	}
	fmt.Fprintf(os.Stderr, "   pgbench %s/s\n", found[1])
	return strconv.ParseFloat(string(found[1]), 64)
}

func (s *suite) batches() error {
	s.write(`
## Batches of 100

Messages per second with 100 messages in each request and 8 clients of each kind. Each receive acks the batch before. The
reference is pgbench with 8 clients on the same table: it inserts 100 rows in a commit, or inserts, claims and deletes 100 rows
in three commits.

| load | pgbench | queued | ratio | goal | %s |
|---|---|---|---|---|---|---|
`, costColumns)
	for _, k := range []struct {
		what, clients, script string
		consumers             int
		goal                  string
	}{{"publish", "8", pgbenchInsert, 0, "0.5"}, {"publish, receive and ack", "8 + 8", pgbenchCycle, 8, "0.5"}} {
		var theirs, ours, ratio numbers
		var costs costs
		for range s.rounds {
			v, err := s.start()
			if err != nil {
				return err
			}
			tps, err := v.pgbench(k.script, 8, s.seconds)
			if err == nil {
				_, err = v.sql("TRUNCATE queued.messages")
			}
			var b *result
			if err == nil {
				b, err = v.bench(load(8, k.consumers, 100, s.seconds)...)
			}
			v.stop()
			if err != nil {
				return err
			}
			theirs, ours, ratio = append(theirs, 100*tps), append(ours, b.rate), append(ratio, b.rate/(100*tps))
			costs.add(b)
		}
		s.write("| %s | %v | %v | %v | %s | %v |\n", k.what, theirs, ours, ratio, k.goal, costs)
		s.summarize(k.what+", 100 messages in each request, "+k.clients+" clients", ours.median(), "pgbench", ratio.median())
	}
	return nil
}
