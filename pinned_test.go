package main

import (
	"cmp"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestTimeOnTheWireIsPostgreSQLs(t *testing.T) {
	t.Parallel()
	at := timestamp{time.Date(2022, 10, 5, 23, 48, 24, 724341000, time.FixedZone("", 7200))}
	got, err := at.MarshalJSON()
	if want := `"2022-10-05T21:48:24.724341"`; err != nil || string(got) != want {
		t.Errorf("timestamp = %s, %v, want %s", got, err, want)
	}
	array, _ := timeArray{at.Time, at.Time.Truncate(time.Second)}.Value()
	s := newTestStore(t)
	var n int
	err = s.db.QueryRow(`SELECT count(*) FROM unnest($1::timestamptz[]) AS u
		WHERE u IN ('2022-10-05 21:48:24.724341+00', '2022-10-05 21:48:24+00')`, array).Scan(&n)
	if err != nil || n != 2 {
		t.Errorf("%s has %d of 2 times, %v", array, n, err)
	}
}

// A new connection would accept the COMMIT although it does not have the transaction.
func TestTransactionOnALostConnectionIsNotCommitted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	session := newPinnedConn(s.store.db, s.server.metrics)
	defer session.close()
	err := session.transaction(func() error {
		pids, err := read(session, "pid", scanKey, "SELECT pg_backend_pid()")
		if err != nil {
			return err
		}
		s.exec("SELECT pg_terminate_backend($1::integer)", pids[0])
		eventually(t, "the connection is closed", func() bool {
			return s.count("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pids[0]) == 0
		})
		session.usedAt = time.Time{} // as after a statement that took long
		return nil
	})
	if err == nil {
		t.Error("it was committed")
	}
	if err := session.transaction(func() error { return nil }); err != nil {
		t.Errorf("the next transaction = %v", err)
	}
}

// A rollback, and a commit that fails, undo how the transaction has set plans.
func TestPlansAreKnownAfterATransaction(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.exec("CREATE TABLE public.once (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
	session := newPinnedConn(s.store.db, s.server.metrics)
	defer session.close()
	failed := errors.New("failed")
	for how, end := range map[string]func() error{
		"committed":   func() error { return nil },
		"rolled back": func() error { return failed },
		"commit fails": func() error {
			_, err := read[any](session, "insert", nil, "INSERT INTO public.once VALUES (1), (1)")
			return err
		},
	} {
		if err := cmp.Or(session.connect(), session.plan(true)); err != nil {
			t.Fatal(err)
		}
		err := session.transaction(func() error { return cmp.Or(session.plan(false), end()) })
		checkDiff(t, how, how == "committed", err == nil)
		modes, err := read(session, "mode", scanText, "SELECT current_setting('plan_cache_mode')")
		if err != nil {
			t.Fatal(err)
		}
		checkDiff(t, how+", generic", modes[0] == "force_generic_plan", session.generic)
	}
}

// The cache of a connection that is lost between two reads of it is empty after the
// second, as is one of an earlier version of the settings: entries that were found before
// have to be read again.
func TestCachedSettingsThatAreForgottenAreReadAgain(t *testing.T) {
	t.Parallel()
	for what, forget := range map[string]func(s *testServer, c *pinnedConn){
		"connection lost": func(s *testServer, c *pinnedConn) {
			pids, err := read(c, "pid", scanKey, "SELECT pg_backend_pid()")
			if err != nil {
				s.server.log.Error("pid", "error", err)
			}
			s.exec("SELECT pg_terminate_backend($1::integer)", pids[0])
			c.usedAt = time.Time{} // it is pinged before the next statement
		},
		"settings changed": func(s *testServer, c *pinnedConn) {
			s.must(200, "PUT", "/queues/changed", fmt.Sprintf(`{"ack_deadline_seconds":%d,"message_retention_seconds":3600}`, 1+c.settings.version%100))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newPlainTestServer(t)
			s.mustTopic("t")
			s.mustQueue("other")
			s.mustQueue("changed")
			c := newPinnedConn(s.store.db, s.server.metrics)
			defer c.close()
			toTopic := &publication{topicID: "t"}
			if err := c.readDestinations([]*publication{toTopic}); err != nil {
				t.Fatal(err)
			}
			forget(s, c)
			if err := c.readDestinations([]*publication{toTopic, {queueID: "other"}}); err != nil {
				t.Fatal(err)
			}
			if c.settings.topics["t"] == nil || c.settings.queues["other"] == nil {
				t.Errorf("destinations known: topic %t, queue %t", c.settings.topics["t"] != nil, c.settings.queues["other"] != nil)
			}

			claim := func(queueIDs ...string) (all []*claimRequest) {
				for _, id := range queueIDs {
					all = append(all, &claimRequest{dispatcherKey: dispatcherKey{queueID: id}, limit: 1, budget: 1000})
				}
				if err := s.engine.runClaims(c, all); err != nil {
					t.Fatal(err)
				}
				return all
			}
			claim("t")
			forget(s, c)
			for _, r := range claim("t", "other") {
				if !r.done || r.err != nil {
					t.Errorf("claim of %s: done %t, %v", r.queueID, r.done, r.err)
				}
			}
		})
	}
}
