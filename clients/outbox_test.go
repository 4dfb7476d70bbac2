package clients

import (
	"database/sql"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"testing"

	_ "github.com/lib/pq"
)

// Of the orders of the shop, number 13 asks for more than there is. Each other one has
// its number as the quantity.
const (
	shopOrders     = 20
	shopImpossible = 13
	shopStock      = 1000
)

// The shop is killed and repeats its orders, a worker is killed, and so are the server and
// its PostgreSQL: each order has one message and one shipment, and the one that cannot be
// shipped is in the dead queue.
func TestOrdersAreShippedExactlyOnce(t *testing.T) {
	t.Parallel()
	queued, dataDir, interpreter := mustBuild(t, ".."), newDataDir(t), python(t, "psycopg2")
	first := launch(t, queued, "-data-dir", dataDir)
	address := strings.TrimPrefix(first.url, "http://")
	database := "postgresql:///queued?user=queued&host=" + url.QueryEscape(dataDir+"/run")
	db, err := sql.Open("postgres", database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	schema, err := os.ReadFile("../examples/outbox/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(string(schema) + fmt.Sprintf("INSERT INTO products VALUES ('tea', %d)", shopStock)); err != nil {
		t.Fatal(err)
	}
	createQueue(t, first.url, "orders-dead", nil)
	createQueue(t, first.url, "orders", map[string]any{"ack_deadline_seconds": 4, "dead_queue_id": "orders-dead", "message_max_deliveries": 3})
	start := func(program string) *example {
		command := exec.Command(interpreter, "../examples/outbox/"+program)
		command.Env = append(os.Environ(), "QUEUED_URL="+first.url, "DATABASE_URL="+database)
		return startCommand(t, command)
	}

	shop := start("shop.py")
	shop.publish(t, shopOrder, 1, 8)
	if got, want := shop.read(t, 5), orderIDs(1, 5); !reflect.DeepEqual(got, want) {
		t.Fatalf("the shop stored %q, want %q", got, want)
	}
	shop.process.Process.Kill()
	shop = start("shop.py")
	shop.publish(t, shopOrder, 1, 10)
	shop.read(t, 10)

	killed := start("worker.py")
	killed.read(t, 1)
	worker := start("worker.py")
	killed.process.Process.Kill()
	shop.publish(t, shopOrder, 11, shopOrders-1)
	shop.read(t, 3)
	first.kill()
	server := launch(t, queued, "-data-dir", dataDir, "-listen", address).url
	shop.publish(t, shopOrder, shopOrders, shopOrders)
	shop.in.Close()
	if got, want := shop.rest(t), orderIDs(14, shopOrders); !reflect.DeepEqual(got, want) {
		t.Errorf("after the restart the shop stored %q, want %q", got, want)
	}

	for shipments := 0; shipments < shopOrders-1; {
		worker.read(t, 1)
		if err := db.QueryRow("SELECT count(*) FROM shipments").Scan(&shipments); err != nil {
			t.Fatal(err)
		}
	}
	dead := dataOf(t, send(t, http.MethodGet, server+"/queues/orders-dead/messages?wait_seconds=20", ""))
	if want := []string{strings.ReplaceAll(shopOrder(shopImpossible), " ", "")}; !reflect.DeepEqual(dead, want) {
		t.Errorf("the dead queue has %q, want %q", dead, want)
	}
	worker.process.Process.Signal(syscall.SIGTERM)
	worker.rest(t)
	want := [4]int{shopOrders, shopOrders - 1, shopOrders - 1, shopStock - shopOrders*(shopOrders+1)/2 + shopImpossible}
	var got [4]int
	err = db.QueryRow(`SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM shipments),
		(SELECT count(DISTINCT order_id) FROM shipments), (SELECT stock FROM products)`).Scan(&got[0], &got[1], &got[2], &got[3])
	if err != nil || got != want {
		t.Errorf("orders, shipments, shipped orders and stock are %v, want %v; %v", got, want, err)
	}
	if stats := send(t, http.MethodGet, server+"/queues/orders/stats?detail=true", ""); !strings.Contains(stats, `"ready":0,"delayed":0,"in_flight":0,"exhausted":0},"dead_queue_messages":1`) {
		t.Errorf("at the end the queue has %s", stats)
	}
}

func orderID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

func orderIDs(first, last int) (ids []string) {
	for n := first; n <= last; n++ {
		ids = append(ids, orderID(n))
	}
	return ids
}

func shopOrder(n int) string {
	quantity := n
	if n == shopImpossible {
		quantity = shopStock + 1
	}
	return fmt.Sprintf(`{"id": "%s", "product": "tea", "quantity": %d}`, orderID(n), quantity)
}
