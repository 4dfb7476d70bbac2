package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"
)

// plainDB returns connections with PostgreSQL's own settings, as applications have them.
func (s *inspector) plainDB(user string) *sql.DB {
	s.t.Helper()
	dsn := s.dsn
	if user != "" {
		dsn += " user=" + user
	}
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { db.Close() })
	return db
}

// transaction begins a transaction of an application.
func (s *inspector) transaction() *sql.Tx {
	s.t.Helper()
	tx, err := s.plainDB("").Begin()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { tx.Rollback() })
	return tx
}

// mustSelect returns the rows of a statement, each as text with spaces between its columns.
func mustSelect(t testing.TB, db querier, statement string, args ...any) (all []string) {
	t.Helper()
	all, err := selectRows(db, statement, args...)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return all
}

func selectRows(db querier, statement string, args ...any) (all []string, err error) {
	rows, err := db.QueryContext(context.Background(), statement, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		values, into := make([]sql.NullString, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		texts := make([]string, len(names))
		for i, v := range values {
			texts[i] = v.String
		}
		all = append(all, strings.Join(texts, " "))
	}
	return all, rows.Err()
}

func mustCommit(t testing.TB, tx *sql.Tx) {
	t.Helper()
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

// randomString returns a short JSON string, as one of the many texts that mean the same or
// nearly the same.
func randomString(r *rand.Rand) string {
	pieces := []string{"", "a", `\u0061`, "b", `\u0062`, "A", `\\`, `\u005c`, `\u005C`, "/", `\/`, `\"`, `\u0022`, `\n`, `\u000a`, `\u000A`,
		`\u0000`, "u0000", `\\u0000`, `\ud83d`, `\uD83D`, `\ude00`, `\uDE00`, `\ud83d\ude00`, `\uD83D\uDE00`, "😀", `\\ud83d`, "ud83d", "é", `\u00e9`, `\ufffd`, "\ufffd"}
	text := ""
	for range r.IntN(3) {
		text += pieces[r.IntN(len(pieces))]
	}
	return `"` + text + `"`
}

// randomFiltered returns attributes and filters that match more often than by chance.
func randomFiltered(r *rand.Rand) (rawFilters, rawAttributes []byte) {
	space := func() string { return []string{"", "", " ", "\n\t"}[r.IntN(4)] }
	object := func(n int, value func() string) []byte {
		members := make([]string, n)
		for i := range members {
			name := []string{`"a"`, `"\u0061"`, `"b"`, randomString(r)}[r.IntN(4)]
			members[i] = space() + name + space() + ":" + space() + value()
		}
		return []byte("{" + strings.Join(members, ",") + space() + "}")
	}
	values := []string{randomString(r), randomString(r)}
	value := func() string { return values[r.IntN(len(values))] }
	if rawAttributes = object(r.IntN(4), value); r.IntN(20) == 0 {
		rawAttributes = nil
	}
	rawFilters = object(r.IntN(3), func() string {
		list := make([]string, r.IntN(4))
		for i := range list {
			if list[i] = value(); r.IntN(3) == 0 {
				list[i] = randomString(r)
			}
		}
		return "[" + strings.Join(list, space()+","+space()) + "]"
	})
	if r.IntN(20) == 0 {
		rawFilters = nil
	}
	return rawFilters, rawAttributes
}

func TestFiltersMatchInSQLAsInTheServer(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	r := rand.New(rand.NewPCG(20, 26))
	const many, each = 20_000, 1000 // pairs, and pairs of a statement
	outcomes := map[bool]int{}
	for range many / each {
		allFilters, allAttributes := make(jsonArray, each), make(jsonArray, each)
		for i := range each {
			allFilters[i], allAttributes[i] = randomFiltered(r)
		}
		got, err := collect(context.Background(), s.db, func(row scanner) (matches bool, err error) {
			err = row.Scan(&matches)
			return matches, err
		}, "SELECT queued.matches(f, a) FROM unnest($1::json[], $2::json[]) WITH ORDINALITY AS u (f, a, n) ORDER BY n", allFilters, allAttributes)
		if err != nil {
			t.Fatal(err)
		}
		for i, matches := range got {
			want := accepts(allFilters[i], allAttributes[i])
			outcomes[want]++
			if matches != want {
				t.Errorf("filters %s, attributes %s match: %v, want %v", allFilters[i], allAttributes[i], matches, want)
			}
		}
	}
	if outcomes[true] < many/10 || outcomes[false] < many/10 {
		t.Errorf("%d of %d match: the inputs are too much alike", outcomes[true], many)
	}
}

// storedRow returns all columns of a message as JSON. The due time is relative to the time
// of the last change, and the expiry to the publish, in minutes. It leaves out what identifies
// the message.
func (s *inspector) storedRow(id string) map[string]string {
	s.t.Helper()
	var text string
	var scheduled, expired float64
	var failed, died sql.NullBool
	var changed bool
	err := s.store.db.QueryRow(`SELECT row_to_json(m), extract(epoch FROM scheduled_at - updated_at), round(extract(epoch FROM expired_at - created_at) / 60),
			last_error_at = updated_at, dead_at = updated_at, updated_at <> created_at
		FROM queued.messages m WHERE id = $1`, id).Scan(&text, &scheduled, &expired, &failed, &died, &changed)
	if err != nil {
		s.t.Fatal(err)
	}
	var columns map[string]json.RawMessage
	mustDecode(s.t, text, &columns)
	row := map[string]string{}
	for name, value := range columns {
		row[name] = string(value)
	}
	for name, value := range map[string]any{"scheduled_at": scheduled, "expired_at": expired, "last_error_at": failed, "dead_at": died, "updated_at": changed} {
		row[name] = fmt.Sprint(value)
	}
	for _, name := range []string{"id", "seq", "created_at"} {
		delete(row, name)
	}
	return row
}

func TestMessageOfSQLIsStoredLikeOneOfHTTP(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustTopic("late", `"delivery_delay_seconds":7`)
	for _, v := range []struct{ topic, body, args string }{
		{"t", `{"data":{}}`, `'{}'`},
		{"t", `{"data": {"é" : [1e400, "\u0000\ud800"]} }`, "' {\"é\" : [1e400, \"\\u0000\\ud800\"]} \n'"},
		{"t", `{"data":{"n":1},"attributes":null,"group":null}`, `'{"n":1}', 'null', NULL`},
		{"t", `{"data":{"n":1},"attributes":{ "a" : "b","a":"\u0000"}}`, `'{"n":1}', '{ "a" : "b","a":"\u0000"} '`},
		{"t", `{"data":{"n":1},"attributes":{}}`, `'{"n":1}', '{}'`},
		{"t", `{"data":{"n":1},"group":"a/ä "}`, `'{"n":1}', group_id => 'a/ä '`},
		{"t", `{"data":{"n":1},"delay_seconds":5}`, `'{"n":1}', delay => '5 s'`},
		{"late", `{"data":{"n":1}}`, `'{"n":1}'`},
		{"late", `{"data":{"n":1},"delay_seconds":0}`, `'{"n":1}', delay => '0 s'`},
	} {
		var want, got map[string]string
		for _, m := range s.messages(s.must(201, "POST", "/topics/"+v.topic+"/messages", v.body)) {
			want = s.storedRow(m.ID)
		}
		for _, function := range []string{"publish", "send"} {
			for _, id := range mustSelect(t, s.plainDB(""), fmt.Sprintf("SELECT queued.%s('%s', %s)", function, v.topic, v.args)) {
				got = s.storedRow(id)
				if !strings.HasPrefix(id[14:], "7") {
					t.Errorf("the id %s is not of version 7", id)
				}
			}
			checkDiff(t, v.args, want, got)
		}
	}
}

func TestPublishOfSQLReachesTheQueuesWhoseFiltersMatch(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("es", `"topic_id":"t","message_filters":{"country":["es","pt"]}`)
	s.mustQueue("de", `"topic_id":"t","message_filters":{"country":["de"]}`)
	db := s.plainDB("")
	if ids := mustSelect(t, db, `SELECT queued.publish('t', '{"n":1}', '{"country":"es"}')`); len(ids) != 2 {
		t.Errorf("publish returned %v, want an id for each of two queues", ids)
	}
	mustSelect(t, db, `SELECT queued.send('de', '{"n":2}', '{"country":"es"}')`)
	for queueID, want := range map[string][]int{"t": {1}, "es": {1}, "de": {2}} {
		checkDiff(t, queueID, want, numbers(s.receive(queueID, "?limit=10")))
	}
	s.must(201, "POST", "/topics", `{"id":"alone"}`)
	if ids := mustSelect(t, db, `SELECT queued.publish('alone', '{"n":1}')`); len(ids) != 0 {
		t.Errorf("a publish to a topic without queues returned %v", ids)
	}
}

func TestSQLFunctionsNameTheArgumentTheyRefuse(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	id := mustSelect(t, s.plainDB(""), `SELECT queued.send('t', '{}')`)[0]
	const null, invalid, unknown = "22004", "22023", "P0002"
	for _, v := range []struct{ call, code, argument string }{
		{`publish(NULL, '{}')`, null, "topic"},
		{`publish('nope', '{}')`, unknown, `topic "nope"`},
		{`publish('t', NULL)`, null, "data"},
		{`publish('t', '{}', delay => '-1 s')`, invalid, "delay"},
		{`publish('alone', '{}', delay => '-1 s')`, invalid, "delay"},
		{`send(NULL, '{}')`, null, "queue"},
		{`send('nope', '{}')`, unknown, `queue "nope"`},
		{`send('t', NULL)`, null, "data"},
		{`send('t', 'null')`, null, "data"},
		{`send('t', '[]')`, invalid, "data"},
		{`send('t', '"a"')`, invalid, "data"},
		{`send('t', '1')`, invalid, "data"},
		{`send('t', format('{"a":"%s"}', repeat('a', 1048576))::json)`, invalid, "data"},
		{`send('t', format('{"a":"%s"}', repeat('a', 1048569))::json)`, invalid, "data"},
		{`send('t', '{}', format('{"a":"%s"}', repeat('a', 1048567))::json)`, invalid, "attributes"},
		{`send('t', format('{"a":%s%s}', repeat('[', 999), repeat(']', 999))::json)`, invalid, "data"},
		{`send('t', '{}', '[]')`, invalid, "attributes"},
		{`send('t', '{}', '"a"')`, invalid, "attributes"},
		{`send('t', '{}', '{"a":1}')`, invalid, "attributes"},
		{`send('t', '{}', '{"a":1,"a":"b"}')`, invalid, "attributes"},
		{`send('t', '{}', '{"a":null}')`, invalid, "attributes"},
		{`send('t', '{}', '{"a":{"b":"c"}}')`, invalid, "attributes"},
		{`send('t', '{}', '{"a":["b"]}')`, invalid, "attributes"},
		{`send('t', '{}', group_id => '')`, invalid, "group_id"},
		{`send('t', '{}', group_id => repeat('é', 129))`, invalid, "group_id"},
		{`send('t', '{}', group_id => '..')`, invalid, "group_id"},
		{`send('t', '{}', group_id => 'a/./b')`, invalid, "group_id"},
		{`send('t', '{}', group_id => 'a/')`, invalid, "group_id"},
		{`send('t', '{}', group_id => '/a')`, invalid, "group_id"},
		{`send('t', '{}', group_id => 'a//b')`, invalid, "group_id"},
		{`send('t', '{}', delay => '-1 us')`, invalid, "delay"},
		{`send('t', '{}', delay => '3600 s')`, invalid, "delay"},
		{`send('t', '{}', delay => '170000000 years')`, invalid, "delay"},
		{`send('t', '{}', deduplication_id => '')`, invalid, "deduplication_id"},
		{`send('t', '{}', deduplication_id => 'a b' || chr(10))`, invalid, "deduplication_id"},
		{`send('t', '{}', deduplication_id => 'é')`, invalid, "deduplication_id"},
		{`send('t', '{}', deduplication_id => repeat('a', 129))`, invalid, "deduplication_id"},
		{`ack(NULL)`, null, "id"},
		{`ack($1, 'infinity')`, invalid, "scheduled_at"},
		{`ack($1, '-infinity')`, invalid, "scheduled_at"},
		{`nack(NULL)`, null, "id"},
		{`nack($1, '-1 s')`, invalid, "delay"},
		{`nack($1, '12:00:00.000001')`, invalid, "delay"},
		{`nack($1, NULL, 'infinity')`, invalid, "scheduled_at"},
		{`receive(NULL)`, null, "queue"},
		{`receive('nope')`, unknown, `queue "nope"`},
		{`receive('t', NULL)`, null, "max_messages"},
		{`receive('t', 0)`, invalid, "max_messages"},
		{`receive('t', 1001)`, invalid, "max_messages"},
		{`receive('t', 1, '0 s')`, invalid, "ack_deadline"},
		{`receive('t', 1, '-1 s')`, invalid, "ack_deadline"},
		{`receive('t', 1, '13 h')`, invalid, "ack_deadline"},
	} {
		call := strings.ReplaceAll(v.call, "$1", "'"+id+"'")
		_, err := selectRows(s.plainDB(""), "SELECT queued."+call)
		var refused *pq.Error
		if !errors.As(err, &refused) {
			t.Errorf("%s: %v, want an error of PostgreSQL", v.call, err)
		} else if string(refused.Code) != v.code || !strings.HasPrefix(refused.Message, v.argument+" ") && !strings.Contains(refused.Message, " "+v.argument+" ") {
			t.Errorf("%s: %s %s, want %s about %s", v.call, refused.Code, refused.Message, v.code, v.argument)
		}
	}
	checkDiff(t, "messages", 1, s.messagesIn("t"))
	for _, call := range []string{
		`send('t', format('{"a":"%s"}', repeat('a', 1048568))::json)`,
		`send('t', format('{"a":%s%s}', repeat('[', 998), repeat(']', 998))::json)`,
		`send('t', format('{"a":["%s"]}', repeat('[', 2000))::json)`,
		`send('t', '{}', group_id => repeat('é', 128))`,
		`send('t', '{}', group_id => '.a/...')`,
		`send('t', '{}', delay => '3599.9 s')`,
		`nack('` + id + `', '12 h')`,
	} {
		mustSelect(t, s.plainDB(""), "SELECT queued."+call)
	}
}

func TestMessageOfSQLWakesReceiversAtEveryServer(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`)
	for _, args := range []string{`'{"n":1}'`, `'{"n":2}', group_id => 'g'`, `'{"n":3}', delay => '10 ms'`} {
		polls := map[string]<-chan polled{"t": s.poll(context.Background(), "t", "?wait_seconds=30"), "u": other.poll(context.Background(), "u", "?wait_seconds=30")}
		s.waiting("t", 1)
		other.waiting("u", 1)
		tx := s.transaction()
		mustSelect(t, tx, "SELECT queued.publish('t', "+args+")")
		mustCommit(t, tx)
		for queueID, poll := range polls {
			if got := s.await(poll); len(got) != 1 || !strings.Contains(args, string(got[0].Data)) {
				t.Errorf("%s received %v, want the message with %s", queueID, got, args)
			}
		}
	}
}

func TestMessageOfSQLExistsOnlyAfterTheCommit(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	db := s.plainDB("")
	first := mustSelect(t, db, `SELECT queued.send('t', '{"n":1}')`)[0]
	tx := s.transaction()
	mustSelect(t, tx, `SELECT queued.send('t', '{"n":2}'), queued.send('t', '{"n":2}', group_id => 'g'), queued.ack($1)`, first)
	checkDiff(t, "before the rollback", 1, s.messagesIn("t"))
	tx.Rollback()
	checkDiff(t, "after the rollback", []int{1}, numbers(s.receive("t", "?limit=10")))
	checkDiff(t, "groups", 0, s.count("SELECT count(*) FROM queued.groups"))

	tx = s.transaction()
	mustSelect(t, tx, `SELECT queued.send('t', '{"n":3}', group_id => 'g')`)
	if _, err := tx.Exec("SAVEPOINT a"); err != nil {
		t.Fatal(err)
	}
	mustSelect(t, tx, `SELECT queued.send('t', '{"n":4}', group_id => 'g')`)
	if _, err := tx.Exec("ROLLBACK TO a"); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, tx)
	checkDiff(t, "after a savepoint", []int{3}, numbers(s.receive("t", "?limit=10")))
	checkDiff(t, "rows that stay", 0, s.count("SELECT count(*) FROM queued.group_changes"))
}

// The low-water marks of the servers pass the messages of a transaction that stays open. Its
// commit lowers the marks.
func TestCommitLowersTheWatermarksOfEveryServer(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	s.mustTopic("t")
	for _, v := range []*testServer{s, other} {
		eventually(t, "the server listens", v.engine.main.notifier.listening)
	}
	tx := s.transaction()
	var began time.Time
	if err := tx.QueryRow("SELECT now(), queued.send('t', '{}'), queued.send('t', '{}', group_id => 'g')").Scan(&began, new(any), new(any)); err != nil {
		t.Fatal(err)
	}
	marks := func(v *testServer) (messages, groups time.Time) {
		v.engine.mu.Lock()
		defer v.engine.mu.Unlock()
		w := v.engine.watermarksOf("t")
		return w.messages.at, w.groups.at
	}
	for _, v := range []*testServer{s, other} {
		eventually(t, "the marks are past the transaction", func() bool {
			v.publish("t", 1)
			v.publishGroups("t", "a1")
			for _, m := range v.receive("t", "?limit=10") {
				v.must(204, "PUT", "/messages/"+m.ID+"/ack", "")
			}
			messages, groups := marks(v)
			return messages.After(began) && groups.After(began)
		})
	}
	mustCommit(t, tx)
	for _, v := range []*testServer{s, other} {
		eventually(t, "the marks are at the beginning of the transaction", func() bool {
			messages, groups := marks(v)
			return messages.Equal(began) && groups.Equal(began)
		})
	}
}

// Transactions of applications stay open, and commit in another order than they began.
// Meanwhile the queues are busy: messages that are published, received and acked at three
// servers move the low-water marks past the ones that are not committed. Receivers that wait
// get each message after its commit, and those of an ordered group in the order of commits.
func TestNoMessageOfALongTransactionIsLost(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	servers := []*testServer{s, newTestServerOn(t, s.dsn), newTestServerOn(t, s.dsn)}
	s.mustTopic("t", `"delivery_interval_ms":0`)
	s.mustQueue("ordered", `"topic_id":"t"`, `"ordered":true`)
	groups := []string{"a", "b", "c"}
	const each, burst, between = 12, 4, 100 // transactions of a group, commits in a row, and deliveries before these
	type transaction struct {
		*sql.Tx
		n int
	}
	next := 0
	open := map[string][]transaction{}
	for range each {
		for _, group := range groups {
			tx := s.transaction()
			mustSelect(t, tx, "SELECT queued.publish('t', json_build_object('n', $1::integer), group_id => $2)", next, group)
			mustSelect(t, tx, "SELECT queued.send('t', json_build_object('n', $1::integer))", next+1)
			open[group] = append(open[group], transaction{tx, next})
			next += 2
		}
	}

	var mu sync.Mutex
	var delivered int
	received := map[string]map[int]int{"t": {}, "ordered": {}}
	order := map[string][]int{} // by group
	gates := map[string]*sync.Mutex{}
	for _, group := range groups {
		gates[group] = new(sync.Mutex)
	}
	left := 0 // number of deliveries that are expected and have not happened
	expect := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		left += n
	}
	ctx, done := context.WithCancel(context.Background())
	defer done()
	delivery := sync.NewCond(&mu)
	// await waits until a condition is true, which a delivery may change.
	await := func(what string, is func() bool) {
		tooLong, cancel := context.WithTimeout(ctx, testTimeout)
		defer cancel()
		defer context.AfterFunc(tooLong, func() {
			mu.Lock()
			defer mu.Unlock()
			delivery.Broadcast()
		})()
		mu.Lock()
		defer mu.Unlock()
		for !is() && !t.Failed() {
			if tooLong.Err() != nil {
				t.Errorf("did not happen: %s", what)
				return
			}
			delivery.Wait()
		}
	}
	var receiving sync.WaitGroup
	for i := range 12 {
		v, queueID := servers[i%3], []string{"t", "ordered"}[i%2]
		receiving.Go(func() {
			for ctx.Err() == nil {
				body := (<-v.poll(ctx, queueID, "?limit=3&wait_seconds=30&fields=group")).body
				if ctx.Err() != nil {
					return
				}
				var all struct {
					Data []struct {
						ID, Group string
						Data      struct{ N int }
					}
				}
				if err := json.Unmarshal([]byte(body), &all); err != nil {
					t.Errorf("receive = %s, %v", body, err)
					return
				}
				for _, m := range all.Data {
					mu.Lock()
					received[queueID][m.Data.N]++
					if queueID == "ordered" {
						order[m.Group] = append(order[m.Group], m.Data.N)
					}
					delivered++
					left--
					delivery.Broadcast()
					mu.Unlock()
					if queueID == "ordered" { // the others of the group wait until all are committed
						func() {
							gates[m.Group].Lock()
							defer gates[m.Group].Unlock()
						}()
					}
					if r, err := v.send(context.Background(), "PUT", "/messages/"+m.ID+"/ack", ""); err != nil || r.status != 204 {
						t.Errorf("ack = %v, %v", r, err)
					}
				}
			}
		})
	}

	// The load does not run ahead of the receivers.
	var number atomic.Int64
	number.Store(int64(next))
	publishHTTP := func(v *testServer, path, group string) int {
		n := int(number.Add(1) - 1)
		r, err := v.send(context.Background(), "POST", path, fmt.Sprintf(`{"data":{"n":%d},"group":%s}`, n, group))
		if err != nil || r.status != 201 {
			t.Errorf("publish = %v, %v", r, err)
		}
		return n
	}
	calm := make(chan struct{})
	var loading, committing sync.WaitGroup
	want := map[string]map[int]int{"t": {}, "ordered": {}}
	wantOrder := map[string][]int{}
	wanted := func(n int, queues ...string) {
		for _, queueID := range queues {
			want[queueID][n] = 1
		}
	}
	for _, v := range servers {
		loading.Go(func() {
			for {
				select {
				case <-calm:
					return
				default:
				}
				await("the receivers keep up", func() bool { return left <= 50 })
				expect(2)
				plain, grouped := publishHTTP(v, "/queues/t/messages", "null"), publishHTTP(v, "/queues/t/messages", `"a"`)
				mu.Lock()
				wanted(plain, "t")
				wanted(grouped, "t")
				mu.Unlock()
			}
		})
	}
	for i, group := range groups {
		r := rand.New(rand.NewPCG(3, uint64(i)))
		r.Shuffle(each, func(i, j int) { open[group][i], open[group][j] = open[group][j], open[group][i] })
		committing.Go(func() {
			for transactions := range slices.Chunk(open[group], burst) {
				mu.Lock()
				after := delivered + between
				mu.Unlock()
				await("the receivers get more of the load", func() bool { return delivered >= after })
				gates[group].Lock()
				for _, tx := range transactions {
					expect(4)
					if err := tx.Commit(); err != nil {
						t.Error(err)
					}
					next := publishHTTP(servers[i], "/queues/ordered/messages", `"`+group+`"`)
					mu.Lock()
					wanted(tx.n, "t", "ordered")
					wanted(tx.n+1, "t")
					wanted(next, "ordered")
					wantOrder[group] = append(wantOrder[group], tx.n, next)
					mu.Unlock()
				}
				gates[group].Unlock()
			}
		})
	}
	committing.Wait()
	close(calm)
	loading.Wait()
	await("everything is received", func() bool { return left <= 0 })
	done()
	receiving.Wait()
	checkDiff(t, "received", want, received)
	checkDiff(t, "order", wantOrder, order)
	t.Logf("%d deliveries while %d transactions were open", delivered, len(groups)*each)
}

func TestGroupsKeepTheOrderOfCommits(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"ordered":true`)
	slow, quick := s.transaction(), s.transaction()
	mustSelect(t, slow, `SELECT queued.send('t', '{"n":4}', group_id => 'g'), queued.send('t', '{"n":5}', group_id => 'g')`)
	mustSelect(t, quick, `SELECT queued.publish('t', '{"n":1}', group_id => 'g')`)
	mustSelect(t, quick, `SELECT queued.send('t', '{"n":2}', group_id => 'g')`)
	mustCommit(t, quick)
	s.must(201, "POST", "/queues/t/messages", `{"data":{"n":3},"group":"g"}`)
	mustCommit(t, slow)
	var got []int
	for range 5 {
		m := s.receive("t", "?limit=10&wait_seconds=30")
		got = append(got, numbers(m)...)
		s.must(204, "PUT", "/messages/"+m[0].ID+"/ack", "")
	}
	checkDiff(t, "received", []int{1, 2, 3, 4, 5}, got)
}

// A transaction of an application locks a group at its commit only.
func TestOpenTransactionDoesNotStopOthersInItsGroups(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"ordered":true`)
	s.must(201, "POST", "/queues/t/messages", `{"data":{"n":1},"group":"g"}`)
	s.must(201, "POST", "/queues/t/messages", `{"data":{"n":2},"group":"g"}`)
	first := s.receive("t", "")[0]
	tx := s.transaction()
	mustSelect(t, tx, `SELECT queued.send('t', '{"n":4}', group_id => 'g'), queued.ack($1)`, first.ID)
	s.must(201, "POST", "/queues/t/messages", `{"data":{"n":3},"group":"g"}`)
	poll := s.poll(context.Background(), "t", "?wait_seconds=30")
	s.waiting("t", 1)
	mustCommit(t, tx) // the ack wakes the receiver
	second := s.await(poll)
	checkDiff(t, "received", []int{2}, numbers(second))
	s.must(204, "PUT", "/messages/"+second[0].ID+"/ack", "")
	third := s.receive("t", "")
	checkDiff(t, "received", []int{3}, numbers(third))

	tx = s.transaction()
	checkDiff(t, "nacked", []string{"true"}, mustSelect(t, tx, "SELECT queued.nack($1)", third[0].ID))
	s.must(201, "POST", "/queues/t/messages", `{"data":{"n":5},"group":"g"}`)
	poll = s.poll(context.Background(), "t", "?wait_seconds=30")
	s.waiting("t", 1)
	mustCommit(t, tx)
	checkDiff(t, "received", []int{3}, numbers(s.await(poll)))
}

// Two commits that lock the same groups do not deadlock, whatever the order of their messages
// and the collation of the database.
func TestCommitLocksGroupsInTheOrderOfTheServers(t *testing.T) {
	t.Parallel()
	s := newPlainTestServer(t)
	s.mustTopic("t")
	for _, group := range []string{"B", "a", "z", "ä"} {
		s.must(201, "POST", "/queues/t/messages", fmt.Sprintf(`{"data":{},"group":%q}`, group))
	}
	first := s.begin("SELECT FROM queued.groups WHERE id = 'B' FOR UPDATE")
	tx := s.transaction()
	for _, group := range []string{"ä", "z", "a", "B", "a"} {
		mustSelect(t, tx, "SELECT queued.send('t', '{}', group_id => $1)", group)
	}
	committed := make(chan error, 1)
	go func() { committed <- tx.Commit() }()
	s.waitForLocks(1)
	others := s.transaction()
	checkDiff(t, "groups that are free", 3, len(mustSelect(t, others, "SELECT id FROM queued.groups WHERE id <> 'B' FOR UPDATE NOWAIT")))
	others.Rollback()
	first.Rollback()
	if err := <-committed; err != nil {
		t.Error(err)
	}
	checkDiff(t, "messages", 9, s.messagesIn("t"))
}

func TestAckAndNackOfSQL(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("q", `"dead_queue_id":"dead","message_max_deliveries":2`)
	db := s.plainDB("")
	call := func(statement string, args ...any) string {
		t.Helper()
		return strings.Join(mustSelect(t, db, "SELECT queued."+statement, args...), " ")
	}
	unknown := newID()
	checkDiff(t, "ack of an unknown message", "false", call("ack($1)", unknown))
	checkDiff(t, "nack of an unknown message", "false", call("nack($1)", unknown))

	for _, group := range []string{"null", `"g"`} {
		s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":`+group+`}`)
		id := s.idOf("q")
		checkDiff(t, "nack of a waiting message", "false", call("nack($1)", id))
		m := s.receive("q", "?wait_seconds=30")[0]
		checkDiff(t, "nack in another lease", "false", call("nack($1, NULL, '2026-01-01')", id))
		checkDiff(t, "nack with a delay", "true", call("nack($1, '1 h', $2, error => 'broken')", id, m.ScheduledAt+"Z"))
		checkDiff(t, "last_error", "broken", s.inspected("q").LastError)
		checkDiff(t, "received before the delay", 0, len(s.receive("q", "")))
		checkDiff(t, "nack without a delay", "true", call("nack($1)", id))
		m = s.receive("q", "?wait_seconds=30")[0]
		checkDiff(t, "attempts", 2, m.DeliveryAttempts)
		poll := s.poll(context.Background(), "dead", "?wait_seconds=30")
		s.waiting("dead", 1)
		checkDiff(t, "nack after the last delivery", "true", call("nack($1, error => repeat('é', 2000))", id))
		dead := s.await(poll)
		past := s.inspected("dead")
		checkDiff(t, "source", "q", past.SourceQueueID)
		checkDiff(t, "last_error", strings.Repeat("é", maxError/2), past.LastError)
		if len(dead) != 1 || dead[0].ID != id || dead[0].DeliveryAttempts != 1 {
			t.Fatalf("the dead queue has %v", dead)
		}
		checkDiff(t, "left", 0, s.messagesIn("q"))
		checkDiff(t, "ack in another lease", "false", call("ack($1, '2026-01-01')", id))
		checkDiff(t, "ack in the lease", "true", call("ack($1, $2)", id, dead[0].ScheduledAt+"Z"))
		checkDiff(t, "ack of an acked message", "false", call("ack($1)", id))
		s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1},"group":`+group+`}`)
		checkDiff(t, "ack of a waiting message", "true", call("ack($1)", s.idOf("q")))
	}
}

func TestNackOfSQLLeavesWhatOneOfHTTPLeaves(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead", `"delivery_delay_seconds":7`)
	s.mustQueue("q", `"dead_queue_id":"dead","message_max_deliveries":3`)
	s.must(201, "POST", "/queues/q/messages/batch", `{"messages":[{"data":{"n":1},"attributes":{"a":"b"},"group":"g"},{"data":{"n":1},"attributes":{"a":"b"},"group":"h"}]}`)
	for _, v := range []struct{ body, args string }{
		{`{"delay_seconds":0,"error":"` + strings.Repeat("é", 1025) + `"}`, "'0 s', error => repeat('é', 1025)"},
		{`{}`, "error => ''"},
		{`{"error":"broken"}`, "error => 'broken'"},
	} {
		all := s.receive("q", "?limit=2&wait_seconds=30")
		if len(all) != 2 {
			t.Fatalf("received %v", all)
		}
		s.must(204, "PUT", "/messages/"+all[0].ID+"/nack", v.body)
		mustSelect(t, s.plainDB(""), "SELECT queued.nack($1, "+v.args+")", all[1].ID)
		want, got := s.storedRow(all[0].ID), s.storedRow(all[1].ID)
		want["group_id"], got["group_id"] = "", ""
		checkDiff(t, v.body, want, got)
	}
	checkDiff(t, "in the dead queue", 2, s.messagesIn("dead"))
}

// delivered returns the n of messages that queued.receive returns.
func delivered(t testing.TB, db querier, args string) string {
	t.Helper()
	return strings.Join(mustSelect(t, db, "SELECT data->>'n' FROM queued.receive("+args+")"), " ")
}

func TestReceiveOfSQLLeasesMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	db := s.plainDB("")
	checkDiff(t, "of an empty queue", "", delivered(t, db, "'t'"))
	s.publish("t", 1, 2, 3, 4)
	s.must(204, "PUT", "/queues/t/pause", "")
	checkDiff(t, "of a paused queue", "", delivered(t, db, "'t'"))
	s.must(204, "PUT", "/queues/t/resume", "")
	checkDiff(t, "one", "1", delivered(t, db, "'t'"))
	tx := s.transaction()
	checkDiff(t, "in a transaction", "2", delivered(t, tx, "'t'"))
	checkDiff(t, "by another transaction", "3", delivered(t, db, "'t'"))
	tx.Rollback()
	checkDiff(t, "after the rollback", "2 4", delivered(t, db, "'t', 1000, '2 h'"))
	checkDiff(t, "by a server", 0, len(s.receive("t", "?limit=10")))
	checkDiff(t, "leases", []string{"1 60", "2 7200", "3 60", "4 7200"}, mustSelect(t, db,
		"SELECT (data->>'n') || ' ' || extract(epoch FROM scheduled_at - updated_at)::integer FROM queued.messages ORDER BY data->>'n'"))
	s.endLeases()
	var m message
	err := db.QueryRow("SELECT id, queue_id, data, attributes, group_id, delivery_attempts, scheduled_at, expired_at, created_at, updated_at FROM queued.receive('t')").
		Scan(&m.ID, &m.QueueID, &m.Data, &m.Attributes, (*nullText)(&m.Group), &m.DeliveryAttempts, &m.ScheduledAt, &m.ExpiredAt, &m.CreatedAt, &m.UpdatedAt)
	if err != nil {
		t.Fatal(err)
	}
	m.State = "in_flight"
	checkDiff(t, "the message of its id", s.must(200, "GET", "/messages/"+m.ID, ""), string(m.appendJSON(nil, showAll)))
	checkDiff(t, "attempts", 2, m.DeliveryAttempts)
	checkDiff(t, "ack by a server", "", s.must(204, "PUT", "/messages/"+m.ID+"/ack?scheduled_at="+m.ScheduledAt.UTC().Format(timestampLayout), ""))
}

func TestReceiveOfSQLRespectsLimitsAndGroups(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("q", `"dead_queue_id":"dead","message_max_deliveries":1,"ordered":true`)
	db := s.plainDB("")
	for _, args := range []string{`'{"n":1}'`, `'{"n":2}', group_id => 'a'`, `'{"n":3}', group_id => 'a'`, `'{"n":4}', group_id => 'b'`, `'{"n":5}', delay => '30 min'`} {
		mustSelect(t, db, "SELECT queued.send('q', "+args+")")
	}
	got := strings.Fields(delivered(t, db, "'q', 1000"))
	slices.Sort(got)
	checkDiff(t, "received", []string{"1", "2", "4"}, got)
	checkDiff(t, "the next of a group in flight", "", delivered(t, db, "'q', 1000"))
	s.endLeases()
	s.makeGroupsReady()
	checkDiff(t, "exhausted messages", "", delivered(t, db, "'q', 1000"))
	second := mustSelect(t, db, "SELECT id FROM queued.messages WHERE data->>'n' = '2'")[0]
	checkDiff(t, "acked", []string{"true"}, mustSelect(t, db, "SELECT queued.ack($1)", second))
	checkDiff(t, "the next of the group", "3", delivered(t, db, "'q', 1000"))

	for range 3 {
		mustSelect(t, db, `SELECT queued.send('dead', format('{"n":7,"a":"%s"}', repeat('a', 1000000))::json), queued.send('dead', format('{"n":7,"a":"%s"}', repeat('a', 1000000))::json, group_id => 'g') FROM generate_series(1, 2)`)
	}
	checkDiff(t, "received of 12 MB", 8, len(strings.Fields(delivered(t, db, "'dead', 1000"))))
}

func TestDuplicateOfSQLIsNotStored(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`)
	db := s.plainDB("")
	const publish = `SELECT queued.publish('t', '{"n":1}', deduplication_id => 'order-17')`
	first := mustSelect(t, db, publish)
	checkDiff(t, "the same again", first, mustSelect(t, db, publish))
	checkDiff(t, "the same in a queue", first[:1], mustSelect(t, db, `SELECT queued.send('t', '{"n":2}', deduplication_id => 'order-17')`))
	checkDiff(t, "the same with HTTP", first[0], s.publishWithID("t", "order-17", 3).ID)
	s.publishWithID("u", "order-16", 3)
	checkDiff(t, "the same after HTTP", []string{s.publishWithID("u", "order-16", 3).ID}, mustSelect(t, db, `SELECT queued.send('u', '{"n":4}', deduplication_id => 'order-16')`))
	s.exec("DELETE FROM queued.deduplications WHERE id = 'order-16'")
	checkDiff(t, "windows", []string{"300", "300"}, mustSelect(t, db, "SELECT extract(epoch FROM expires_at - created_at)::integer FROM queued.deduplications"))
	for _, id := range mustSelect(t, db, "SELECT id FROM queued.messages") {
		mustSelect(t, db, "SELECT queued.ack($1)", id)
	}
	checkDiff(t, "the same after the ack", first, mustSelect(t, db, publish))
	checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.messages"))

	s.exec("UPDATE queued.deduplications SET expires_at = now() WHERE message_id = $1", first[0])
	s.exec("UPDATE queued.queues SET deduplication_window_seconds = 60")
	again := mustSelect(t, db, publish)
	if again[0] == first[0] || again[1] != first[1] {
		t.Errorf("after the window of one queue: %v, first %v", again, first)
	}
	checkDiff(t, "windows", []string{"60", "300"}, mustSelect(t, db, "SELECT extract(epoch FROM expires_at - created_at)::integer FROM queued.deduplications ORDER BY 1"))

	tx := s.transaction()
	id := mustSelect(t, tx, `SELECT queued.send('t', '{"n":3}', deduplication_id => 'order-18')`)
	same := make(chan []string, 1)
	go func() {
		ids, err := selectRows(db, `SELECT queued.send('t', '{"n":4}', deduplication_id => 'order-18')`)
		if err != nil {
			t.Error(err)
		}
		same <- ids
	}()
	s.waitForLocks(1)
	mustCommit(t, tx)
	checkDiff(t, "the same at the same time", id, <-same)
}

var publicFunctions = []string{"ack", "nack", "publish", "receive", "send"}

// A role that may call the functions for applications can do nothing else in the schema.
func TestRoleOfAnApplicationMayOnlyCallTheFunctions(t *testing.T) {
	t.Parallel()
	role := newTestRole(t)
	s := newPlainTestServer(t)
	s.mustTopic("t")
	app := s.plainDB(role)
	if _, err := selectRows(app, "SELECT queued.send('t', '{}')"); !denied(err) {
		t.Errorf("without grants: %v", err)
	}
	s.exec("GRANT USAGE ON SCHEMA queued TO " + role)
	if _, err := selectRows(app, "SELECT queued.send('t', '{}')"); !denied(err) {
		t.Errorf("with access to the schema: %v", err)
	}
	s.exec("GRANT EXECUTE ON FUNCTION queued." + strings.Join(publicFunctions, ", queued.") + " TO " + role)
	for _, group := range []string{"NULL", "'g'"} {
		mustSelect(t, app, "SELECT queued.publish('t', '{}', group_id => "+group+", deduplication_id => 'a' || coalesce("+group+", ''))")
		for _, settle := range []string{"nack", "ack"} {
			checkDiff(t, settle, []string{"true"}, mustSelect(t, app, "SELECT queued."+settle+"(id, scheduled_at => scheduled_at) FROM queued.receive('t')"))
		}
	}
	for _, relation := range mustSelect(t, s.store.db, "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'queued'::regnamespace AND relkind IN ('r', 'v', 'S')") {
		for _, statement := range []string{"SELECT FROM %s", "DELETE FROM %s", "TRUNCATE %s", "LOCK TABLE %s", "DROP TABLE %s", "CREATE TRIGGER x AFTER INSERT ON %s EXECUTE FUNCTION suppress_redundant_updates_trigger()"} {
			if _, err := app.Exec(fmt.Sprintf(statement, relation)); err == nil {
				t.Errorf("the role may %s", fmt.Sprintf(statement, relation))
			}
		}
	}
	for _, statement := range []string{"INSERT INTO queued.topics (id) VALUES ('x')", "UPDATE queued.queues SET id = 'x'", "CREATE TABLE queued.x ()", "SELECT nextval('queued.messages_seq_seq')",
		"CREATE OR REPLACE FUNCTION queued.new_id() RETURNS uuid LANGUAGE sql AS 'SELECT gen_random_uuid()'"} {
		if _, err := app.Exec(statement); !denied(err) && !strings.Contains(fmt.Sprint(err), "must be owner") {
			t.Errorf("%s: %v", statement, err)
		}
	}
	checkDiff(t, "functions that the role may call", publicFunctions, mustSelect(t, app,
		"SELECT proname::text FROM pg_proc WHERE pronamespace = 'queued'::regnamespace AND has_function_privilege(oid, 'EXECUTE') ORDER BY 1"))
	for _, call := range []string{"new_id()", "wake('t')", "matches(NULL, NULL)", "comparable('{}')", "change_group(NULL, NULL, NULL, NULL)", "queue_named('t')", "store_copy(NULL, '{}', NULL, NULL, NULL, NULL, now())"} {
		if _, err := selectRows(app, "SELECT queued."+call); !denied(err) {
			t.Errorf("%s: %v", call, err)
		}
	}
}

func denied(err error) bool {
	var refused *pq.Error
	return errors.As(err, &refused) && refused.Code == "42501"
}

func TestSQLFunctionsWorkUnderAnySettings(t *testing.T) {
	t.Parallel()
	role := newTestRole(t)
	s := newPlainTestServer(t)
	s.exec(hostile)
	for name, value := range map[string]string{
		"search_path": "hostile, pg_catalog", "standard_conforming_strings": "off", "backslash_quote": "off", "array_nulls": "off", "transform_null_equals": "on",
		"TimeZone": "'Asia/Kathmandu'", "DateStyle": "'SQL, DMY'", "IntervalStyle": "sql_standard", "bytea_output": "escape", "extra_float_digits": "-15",
		"default_transaction_isolation": "serializable", "enable_indexscan": "off", "enable_nestloop": "off", "enable_tidscan": "off", "enable_material": "off", "plan_cache_mode": "force_custom_plan",
	} {
		s.exec("ALTER ROLE " + role + " SET " + name + " = " + value)
	}
	s.mustTopic("t")
	s.mustQueue("b", `"topic_id":"t","message_filters":{"b":["\u0000\\"]}`)
	app := s.plainDB(role)
	for _, group := range []string{"NULL", "'g'"} {
		mustSelect(t, app, `SELECT queued.publish('t', '{"a":1}', E'{"b":"\\u0000\\u005c"}', group_id => `+group+`)`)
		for _, queueID := range []string{"t", "b"} {
			if got := s.receive(queueID, "?wait_seconds=30"); len(got) != 1 {
				t.Fatalf("received %v", got)
			}
		}
		s.endLeases()
		s.makeGroupsReady()
		checkDiff(t, "acked", []string{"true"}, mustSelect(t, app, "SELECT queued.ack(id) FROM queued.receive('t')"))
		checkDiff(t, "nacked", []string{"true"}, mustSelect(t, app, "SELECT queued.nack(id) FROM queued.receive('b')"))
		mustSelect(t, app, "SELECT queued.ack(id) FROM queued.receive('b')")
	}
}

func TestSQLFunctionsHaveTheLimitsOfTheFlags(t *testing.T) {
	t.Parallel()
	dsn := newTestDatabase(t, "queued")
	for _, window := range []string{"90s", "2m"} {
		r := runServer(t, "-database-url", dsn, "-deduplication-window", window, "-max-body", "100")
		r.client().must(200, "GET", "/readyz", "")
	}
	db := newTestDB(t, dsn)
	mustSelect(t, db, "INSERT INTO queued.queues (id, ack_deadline_seconds, message_retention_seconds) VALUES ('q', 30, 600)")
	_, err := selectRows(db, `SELECT queued.send('q', format('{"a":"%s"}', repeat('a', 93))::json)`)
	if err == nil || !strings.Contains(err.Error(), "at most 100 bytes") {
		t.Errorf("a message of 101 bytes: %v", err)
	}
	mustSelect(t, db, `SELECT queued.send('q', format('{"a":"%s"}', repeat('a', 92))::json, deduplication_id => 'a')`)
	checkDiff(t, "window", []string{"120"}, mustSelect(t, db, "SELECT extract(epoch FROM expires_at - created_at)::integer FROM queued.deduplications"))
}

// The plans of the functions do not depend on statistics, nor on the settings of the caller.
func TestSQLFunctionsReadFewRowsOfALargeTable(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("full", `"ordered":true`)
	db := s.plainDB("")
	db.SetMaxOpenConns(1) // the plans of an empty table are cached
	use := func(commits bool) {
		for _, group := range []string{"NULL", "'g'"} {
			mustSelect(t, db, "SELECT queued.publish('t', '{}', group_id => "+group+", deduplication_id => $1)", newID())
			if group == "NULL" || commits { // a group can be received from after the commit
				checkDiff(t, "nacked", []string{"true"}, mustSelect(t, db, "SELECT queued.nack(id) FROM queued.receive('t')"))
				checkDiff(t, "acked", []string{"true"}, mustSelect(t, db, "SELECT queued.ack(id) FROM queued.receive('t')"))
			}
		}
	}
	for range 8 {
		use(true)
	}
	s.analyze("queued.messages, queued.groups") // which has few rows then
	s.fill("full", 3000)
	s.fillGroups("full", 3000)
	reads := func() map[string]int {
		mustSelect(t, db, "SELECT pg_stat_clear_snapshot()::text")
		all := map[string]int{}
		for _, line := range mustSelect(t, db, "SELECT relname || ' ' || coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE schemaname = 'queued' AND relname IN ('messages', 'groups')") {
			var name string
			var n int
			if _, err := fmt.Sscan(line, &name, &n); err != nil {
				t.Fatal(err)
			}
			all[name] = n
		}
		return all
	}
	if _, err := db.Exec("BEGIN"); err != nil {
		t.Fatal(err)
	}
	use(false)
	if _, err := db.Exec("SET CONSTRAINTS ALL IMMEDIATE"); err != nil { // as at the commit
		t.Fatal(err)
	}
	use(true)
	for name, n := range reads() {
		if n > 1000 {
			t.Errorf("the functions read %d rows of %s", n, name)
		}
	}
	if _, err := db.Exec("COMMIT"); err != nil {
		t.Fatal(err)
	}
}

func TestEverythingInTheSchemaHasAComment(t *testing.T) {
	t.Parallel()
	s := newTestStoreOn(t, newPlainDatabase(t, "queued"))
	checkDiff(t, "without a comment", []string(nil), mustSelect(t, s.db, `
SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = 'queued'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL
UNION ALL
SELECT 'table ' || relname FROM pg_class WHERE relnamespace = 'queued'::regnamespace AND relkind IN ('r', 'v') AND obj_description(oid, 'pg_class') IS NULL`))
}

// Two serializable transactions read what the other one changes, so PostgreSQL refuses the second
// commit, at its very end. On a cluster that is when the nodes have prepared theirs.
func TestSQLChangesAreUndoneIfTheCommitFails(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("acked")
	s.mustQueue("sent")
	id := s.messages(s.must(201, "POST", "/queues/acked/messages", `{"data":{}}`))[0].ID
	s.exec("CREATE TABLE public.totals (name text, n integer)")
	db := s.plainDB("")
	var all []*sql.Tx
	for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
		tx, err := db.BeginTx(context.Background(), &sql.TxOptions{Isolation: sql.LevelSerializable})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		mustSelect(t, tx, "INSERT INTO public.totals SELECT $1, count(*) FROM public.totals WHERE name = $2 RETURNING n", names[0], names[1])
		all = append(all, tx)
	}
	checkDiff(t, "acked", []string{"true"}, mustSelect(t, all[1], "SELECT queued.ack($1)", id))
	mustSelect(t, all[1], "SELECT queued.send('sent', '{}')")
	if err := all[0].Commit(); err != nil {
		t.Fatal(err)
	}
	if err := all[1].Commit(); pq.As(err, "40001") == nil {
		t.Fatalf("the second commit: %v, want a serialization failure", err)
	}
	checkDiff(t, "messages", "1 0", fmt.Sprint(s.messagesIn("acked"), s.messagesIn("sent")))
}
