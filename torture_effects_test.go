//go:build unix

package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Workers in processes of their own run the code of docs/sql.md: they receive orders by HTTP,
// and write an invoice and ack the order in one transaction. Half of the orders are published
// by HTTP, half by SQL in transactions, some of which are rolled back. Meanwhile the test
// kills workers, servers and PostgreSQL. At the end there is one invoice for each order whose
// publish was committed, and none for the others.
func TestEachOrderGetsOneInvoiceWhateverIsKilled(t *testing.T) {
	t.Parallel()
	v := &effects{torture: newTorture(t), outcomes: make(map[int]outcome)}
	c := v.servers[0].client(t)
	c.must(201, "POST", "/topics", `{"id":"orders"}`)
	c.mustQueue("orders", `"ack_deadline_seconds":2`, `"topic_id":"orders"`)
	// The trigger waits while the test holds a lock.
	_, err := v.db.Exec(`
CREATE TABLE public.orders (n integer PRIMARY KEY);
CREATE TABLE public.invoices (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data json NOT NULL);
CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$;
CREATE TRIGGER wait BEFORE INSERT ON public.invoices FOR EACH ROW EXECUTE FUNCTION public.wait()`)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		v.startWorker(i)
	}

	var breaking, producing sync.WaitGroup
	calm := make(chan struct{})
	for _, faults := range [][]fault{v.serverFaults(), v.databaseFaults(), v.workerFaults()} {
		breaking.Go(func() { v.breakThings(faults, calm) })
	}
	for range 2 {
		producing.Go(func() { v.publishOrders(calm, v.orderByHTTP) })
		producing.Go(func() { v.publishOrders(calm, v.orderBySQL) })
	}
	<-v.over.Done()
	eventually(t, "a worker was killed between an ack and its commit, and orders had each outcome", v.hadEffects)
	close(calm)
	breaking.Wait()
	producing.Wait()
	v.awaitEmpty()
	v.endServers()
	v.checkInvoices()
	v.report(v.violations)
	t.Logf("faults: %v, %d workers killed between an ack and its commit", v.faults, v.interrupted)
	t.Logf("responses: %v", v.responses)
}

// effects is a torture of workers.
type effects struct {
	*torture
	workers     []*victim
	interrupted int             // number of workers killed between an ack and its commit
	outcomes    map[int]outcome // by number of the order
}

// outcome is what the publisher of an order knows.
type outcome struct {
	bySQL bool
	known string // committed, rolled back, or unknown
}

func (v *effects) startWorker(i int) {
	w := &victim{program: os.Args[0], output: newSyncBuffer(), env: []string{
		"QUEUED_TEST_WORKER=http://" + v.servers[i%len(v.servers)].address,
		fmt.Sprintf("QUEUED_TEST_WORKER_DATABASE=%s application_name=worker%d", v.dsn, i),
	}}
	if err := w.start(); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		w.signal(syscall.SIGKILL)
		w.await()
	})
	v.workers = append(v.workers, w)
}

func (v *effects) workerFaults() []fault {
	kill := func(w *victim) {
		w.signal(syscall.SIGKILL)
		w.await()
	}
	restart := func(w *victim) {
		if err := w.start(); err != nil {
			v.violate("a worker does not start: %v", err)
		}
	}
	return []fault{
		{"kill -9 a worker", func() {
			w := v.workers[rand.IntN(len(v.workers))]
			kill(w)
			restart(w)
		}},
		{"kill -9 a worker between an ack and its commit", func() {
			tx, err := v.db.Begin()
			if err != nil {
				return
			}
			defer tx.Rollback()
			if _, err := tx.Exec("SELECT pg_advisory_xact_lock(1)"); err != nil {
				return
			}
			const waitingSQL = "SELECT substr(application_name, 7) FROM pg_stat_activity WHERE application_name LIKE 'worker%' AND wait_event = 'advisory'"
			for end, tick := time.Now().Add(5*time.Second), time.Tick(time.Millisecond); time.Now().Before(end); <-tick {
				var i int
				if err := v.db.QueryRow(waitingSQL).Scan(&i); errors.Is(err, sql.ErrNoRows) {
					continue
				} else if err != nil {
					return // PostgreSQL has released the lock
				}
				kill(v.workers[i])
				if tx.Commit() == nil { // the lock was held, so the worker had not committed
					v.mu.Lock()
					v.interrupted++
					v.mu.Unlock()
				}
				restart(v.workers[i])
				return
			}
		}},
	}
}

// publishOrders publishes orders one by one, until calm.
func (v *effects) publishOrders(calm <-chan struct{}, publish func(n int, group string) outcome) {
	for {
		select {
		case <-calm:
			return
		case <-time.After(10 * pace):
		}
		v.mu.Lock()
		n := v.next
		v.next++
		v.mu.Unlock()
		known := publish(n, fmt.Sprint("group ", n%5))
		v.mu.Lock()
		v.outcomes[n] = known
		v.mu.Unlock()
	}
}

func (v *effects) orderByHTTP(n int, group string) outcome {
	status, _ := v.send(context.Background(), "POST", "/topics/orders/messages", map[string]any{"data": map[string]int{"n": n}, "group": group})
	if status == 201 {
		return outcome{known: "committed"}
	}
	return outcome{known: "unknown"}
}

// orderBySQL publishes an order in the transaction that inserts it.
func (v *effects) orderBySQL(n int, group string) outcome {
	rolledBack := outcome{bySQL: true, known: "rolled back"}
	tx, err := v.db.Begin()
	if err != nil {
		return rolledBack
	}
	defer tx.Rollback()
	for _, statement := range []string{
		"INSERT INTO public.orders (n) VALUES ($1)",
		"SELECT queued.publish('orders', json_build_object('n', $1::integer))",
		"SELECT queued.publish('orders', json_build_object('n', -$1::integer - 1), group_id => '" + group + "')",
	} {
		if _, err := tx.Exec(statement, n); err != nil {
			return rolledBack
		}
	}
	v.send(context.Background(), "GET", "/queues/orders/stats", nil) // the transaction is open meanwhile
	if rand.IntN(3) == 0 {
		return rolledBack
	}
	if tx.Commit() != nil {
		return outcome{bySQL: true, known: "unknown"}
	}
	return outcome{bySQL: true, known: "committed"}
}

// hadEffects reports whether the test has seen all that it is about.
func (v *effects) hadEffects() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	seen := map[outcome]bool{}
	for _, o := range v.outcomes {
		seen[o] = true
	}
	return v.interrupted > 0 && seen[outcome{false, "committed"}] && seen[outcome{false, "unknown"}] && seen[outcome{true, "committed"}] && seen[outcome{true, "rolled back"}]
}

// checkInvoices reports orders without exactly one invoice, and invoices without an order.
// The table of orders decides whether a transaction with an unknown outcome was committed.
func (v *effects) checkInvoices() {
	stored, invoices := map[int]bool{}, map[int]int{}
	read := func(query string, scan func(n, count int)) {
		rows, err := v.db.Query(query)
		if err != nil {
			v.t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var n, count int
			if err := rows.Scan(&n, &count); err != nil {
				v.t.Fatal(err)
			}
			scan(n, count)
		}
		if err := rows.Err(); err != nil {
			v.t.Fatal(err)
		}
	}
	read("SELECT n, 1 FROM public.orders", func(n, _ int) { stored[n] = true })
	read("SELECT (data->>'n')::integer, count(*) FROM public.invoices GROUP BY 1", func(n, count int) { invoices[n] = count })

	outcomes := map[outcome]int{}
	for n, o := range v.outcomes {
		outcomes[o]++
		counts := []int{invoices[n]}
		if o.bySQL {
			counts = append(counts, invoices[-n-1])
			if o.known != "unknown" && stored[n] != (o.known == "committed") {
				v.violate("the transaction of order %d was %s, but its row says otherwise", n, o.known)
			}
		}
		for _, count := range counts {
			switch {
			case count > 1:
				v.violate("order %d has %d invoices", n, count)
			case count == 0 && (stored[n] || o.known == "committed"):
				v.violate("order %d, which was committed, has no invoice", n)
			case count == 1 && o.bySQL && !stored[n]:
				v.violate("order %d has an invoice, but its transaction was not committed", n)
			}
		}
		delete(invoices, n)
		if o.bySQL {
			delete(invoices, -n-1)
		}
	}
	for n := range invoices {
		v.violate("there is an invoice for %d, which is no order", n)
	}
	v.t.Logf("orders: %v", outcomes)
}
