package main

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"
)

func TestConnectionStringKeepsWhatTheUserSaysAndAddsOurs(t *testing.T) {
	for _, database := range []string{
		"postgres://me:p%20w@db.example:5433/q?sslmode=require&application_name=mine",
		"host=db.example port=5433 user=me password='p w' dbname=q sslmode=require application_name=mine",
	} {
		dsn, err := connectionString(database)
		if err != nil {
			t.Fatal(err)
		}
		c, err := pq.NewConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		if c.Host != "db.example" || c.Port != 5433 || c.User != "me" || c.Password != "p w" || c.Database != "q" ||
			c.SSLMode != pq.SSLModeRequire || c.ApplicationName != "mine" || c.ConnectTimeout != connectTimeout ||
			c.Runtime["enable_sort"] != "off" || c.Runtime["timezone"] != "UTC" {
			t.Errorf("%s became %+v", database, c)
		}
	}
	dsn, err := connectionString("dbname=q")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := pq.NewConfig(dsn); err != nil || c.SSLMode != pq.SSLModePrefer || c.ApplicationName != "queued" {
		t.Errorf("%s became %+v, %v", dsn, c, err)
	}
}

func TestBadConnectionStringIsRefusedWithoutItsPassword(t *testing.T) {
	for _, database := range []string{
		"postgres://me:secret@host:port/q",
		"postgres://me:secret@host/q?sslmode=sometimes",
		"password=secret host",
		"password='secret",
	} {
		dsn, err := connectionString(database)
		if err == nil {
			t.Errorf("%s became %s", database, dsn)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestStalledConnectionTimesOut(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := dialer{timeout: 10 * time.Millisecond}.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || !err.(net.Error).Timeout() {
		t.Errorf("read from a silent peer = %v, want a timeout", err)
	}
}

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
