package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// runWorker is the program of a worker, in a process of its own.
func runWorker(server string) {
	db, err := sql.Open("postgres", os.Getenv("QUEUED_TEST_WORKER_DATABASE"))
	if err != nil {
		log.Fatal(err)
	}
	work(context.Background(), server, db)
}

// The code up to fillPageQueues is on docs/sql.md.

// order is a message of the queue "orders".
type order struct {
	ID          string
	Data        json.RawMessage
	ScheduledAt string `json:"scheduled_at"` // the lease token, in UTC
}

// work receives orders and writes their invoices until the context ends.
func work(ctx context.Context, server string, db *sql.DB) {
	for ctx.Err() == nil {
		orders, err := receiveOrders(ctx, server)
		if err != nil {
			log.Print(err)
			select {
			case <-time.After(time.Second): // before it tries again
			case <-ctx.Done():
			}
		}
		for _, o := range orders {
			if err := writeInvoice(ctx, db, o); err != nil {
				log.Printf("message %s: %v", o.ID, err)
				db.ExecContext(ctx, "SELECT queued.nack($1, '1 s', $2, $3)", o.ID, o.ScheduledAt+"Z", err.Error())
			}
		}
	}
}

func receiveOrders(ctx context.Context, server string) ([]order, error) {
	r, err := http.NewRequestWithContext(ctx, "GET", server+"/queues/orders/messages?wait_seconds=20", nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != 200 {
		return nil, fmt.Errorf("receive: %s", response.Status)
	}
	var received struct{ Data []order }
	err = json.NewDecoder(response.Body).Decode(&received)
	return received.Data, err
}

// writeInvoice acks an order and writes its invoice in one transaction. If the order was
// delivered again in the meantime, it does nothing.
func writeInvoice(ctx context.Context, db *sql.DB, o order) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // has no effect after a commit
	var acked bool
	err = tx.QueryRowContext(ctx, "SELECT queued.ack($1, $2)", o.ID, o.ScheduledAt+"Z").Scan(&acked)
	if err != nil || !acked {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO invoices (data) VALUES ($1)", string(o.Data)); err != nil {
		return err
	}
	return tx.Commit()
}

// fillPageQueues creates the topic and the queues that docs/sql.md mentions, with messages in
// each state.
func (s *testServer) fillPageQueues() {
	s.t.Helper()
	s.mustTopic("orders")
	s.mustQueue("emails-dead")
	s.mustQueue("emails", `"dead_queue_id":"emails-dead","message_max_deliveries":2`)
	emails := func(delay int, groups ...string) {
		for _, group := range groups {
			s.must(201, "POST", "/queues/emails/messages", fmt.Sprintf(`{"data":{},"group":%q,"delay_seconds":%d}`, group, delay))
		}
	}
	emails(0, "bob")
	for range 2 {
		s.must(204, "PUT", "/messages/"+s.receive("emails", "?wait_seconds=20")[0].ID+"/nack", "")
	}
	emails(0, "bob", "eve", "ada", "ada")
	emails(60, "ada")
	s.receive("emails", "?limit=1")
	s.exec("UPDATE queued.messages m SET created_at = now() - interval '8 days' FROM queued.queues q WHERE q.key = m.queue_key AND q.id = 'emails-dead'")
}

// The blocks of SQL on docs/sql.md and in the README run one after the other. Each query finds
// something.
func TestSQLPageWorksAsPrinted(t *testing.T) {
	t.Parallel()
	role := newTestRole(t)
	s := newPlainTestServer(t)
	s.fillPageQueues()
	db := s.plainDB("")
	db.SetMaxOpenConns(1)
	n := 0
	for _, path := range []string{"docs/sql.md", "README.md"} {
		for _, b := range blocksOf(mustRead(t, path)) {
			if b.language != "sql" || b.marked {
				continue
			}
			n++
			text := strings.ReplaceAll(b.text, "my_app", role)
			if !strings.HasPrefix(text, "SELECT") || strings.Count(text, ";") > 1 {
				if _, err := db.Exec(text); err != nil {
					t.Errorf("%s:%d: %v\n%s", path, b.line+1, err, text)
				}
			} else if rows, err := selectRows(db, text); err != nil || len(rows) == 0 {
				t.Errorf("%s:%d: the query finds %v, %v\n%s", path, b.line+1, rows, err, text)
			}
		}
	}
	if n < 15 {
		t.Errorf("the pages have only %d blocks of SQL", n)
	}
	checkDiff(t, "published by calls and by the trigger", []string{"2", "1 Ada Lovelace UPDATE", "2 Ada INSERT"}, mustSelect(t, db, `
		SELECT count(*)::text FROM queued.messages WHERE data->>'order' = '1'
		UNION ALL
		(SELECT concat_ws(' ', data->'order'->>'id', data->'order'->>'customer', attributes->>'operation') FROM queued.messages WHERE json_typeof(data->'order') = 'object' ORDER BY seq)`))
	checkDiff(t, "left of the group", 0, s.count("SELECT count(*) FROM queued.message_states WHERE queue_id = 'emails' AND group_id = 'ada' AND state <> 'in_flight'"))
	checkDiff(t, "left in the dead queue", 0, s.messagesIn("emails-dead"))
}

// The worker of docs/sql.md writes an invoice exactly if it acks the order.
func TestWorkerOfSQLPage(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("orders")
	s.exec("CREATE TABLE public.invoices (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data json NOT NULL)")
	db := s.plainDB("")
	ctx := t.Context()
	received := func() order {
		t.Helper()
		orders, err := receiveOrders(ctx, s.url)
		if err != nil || len(orders) != 1 {
			t.Fatalf("received %v, %v", orders, err)
		}
		return orders[0]
	}
	invoices := func() int {
		return s.count("SELECT count(*) FROM public.invoices")
	}
	s.publish("orders", 1)
	first := received()
	s.endLeases()
	second := received()
	if err := writeInvoice(ctx, db, first); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "invoices of a worker that lost its lease", 0, invoices())

	s.exec("ALTER TABLE public.invoices ADD CONSTRAINT broken CHECK (id < 0)")
	if err := writeInvoice(ctx, db, second); err == nil {
		t.Error("the invoice was written")
	}
	checkDiff(t, "orders after an error", 1, s.messagesIn("orders"))

	// Now the whole worker: it nacks, and writes the invoice after the repair.
	s.endLeases()
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		work(ctx, s.url, db)
		close(ended)
	}()
	defer func() {
		stop()
		<-ended
	}()
	eventually(t, "the message shows the error", func() bool {
		return s.count("SELECT count(*) FROM queued.messages WHERE last_error LIKE '%broken%'") == 1
	})
	s.exec("ALTER TABLE public.invoices DROP CONSTRAINT broken")
	eventually(t, "the invoice is written", func() bool { return invoices() == 1 })
	checkDiff(t, "orders", 0, s.messagesIn("orders"))
	checkDiff(t, "invoice", []string{`{"n":1}`}, mustSelect(t, db, "SELECT data FROM invoices"))
}
