package main

import (
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
		s.exec("SELECT pg_terminate_backend($1)", pids[0])
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
