package browser

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

var picture = flag.String("picture", "", "`file` to write the picture of the dashboard in the README to, which takes a minute")

// TestPictureOfTheDashboard shows the dashboard of a shop under load: most queues keep up, one
// has failing messages, one has no consumer and one is paused.
//
//	go test -run Picture -picture ../docs/dashboard.png .
func TestPictureOfTheDashboard(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.must("POST", "/topics", `{"id":"orders"}`)
	s.must("POST", "/topics", `{"id":"uploads"}`)
	s.queue("webhooks-dead")
	for id, settings := range map[string][]string{
		"invoices":   {`"topic_id":"orders"`},
		"emails":     {`"topic_id":"orders"`, `"message_filters":{"status":["paid","sent"]}`},
		"webhooks":   {`"topic_id":"orders"`, `"dead_queue_id":"webhooks-dead"`, `"message_max_deliveries":3`},
		"accounts":   {`"topic_id":"orders"`, `"ordered":true`},
		"thumbnails": {`"topic_id":"uploads"`},
		"audit":      {`"topic_id":"uploads"`},
		"reports":    nil,
	} {
		s.queue(id, settings...)
	}
	s.must("POST", "/queues/reports/messages/batch", `{"messages":[{"data":{"report":"weekly"}},{"data":{"report":"monthly"},"delay_seconds":600}]}`)
	s.must("PUT", "/queues/reports/pause", "")

	ended := make(chan struct{})
	var consumers sync.WaitGroup
	defer consumers.Wait()
	defer close(ended)
	consume := func(queueID string, batch, failing int) {
		consumers.Go(func() {
			shop := &shop{server: s.url()}
			for {
				select {
				case <-ended:
					return
				default:
					shop.consume(queueID, batch, failing)
				}
			}
		})
	}
	consume("invoices", 1, 0)
	consume("invoices", 1, 0)
	consume("emails", 10, 0)
	consume("webhooks", 10, 5)
	consume("accounts", 10, 0)
	consume("thumbnails", 1, 0)

	p := open(t, s.url())
	p.theme("light")
	p.size(1280, 424)
	rounds, most := 0, 20
	if *picture != "" {
		most = 700
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	producer := &shop{server: s.url()}
	for range ticker.C {
		if rounds++; rounds > most {
			break
		}
		var orders, uploads []map[string]any
		for i := range 4 + rounds/7%5 {
			status := []string{"new", "paid", "sent"}[(rounds+i)%3]
			orders = append(orders, map[string]any{"data": map[string]any{"order": rounds*10 + i}, "attributes": map[string]string{"status": status}, "group": fmt.Sprint("customer-", i)})
		}
		for i := range rounds / 11 % 3 {
			uploads = append(uploads, map[string]any{"data": map[string]any{"file": fmt.Sprint(rounds, "-", i, ".png")}})
		}
		producer.publish("orders", orders)
		producer.publish("uploads", uploads)
	}
	p.see("that messages are published", "parseFloat(document.querySelector('tr[data-id=invoices] [data-label=\"Published/s\"]').innerText) > 0")
	p.seeText("tr[data-id=audit]", "no consumer")
	p.seeText("tr[data-id=reports]", "paused")
	p.see("a chart of the rates", "document.querySelector('.totals svg polyline') !== null")
	if *picture != "" {
		p.run("const s = document.querySelector('[aria-label=\"Time span of the charts\"]'); s.selectedIndex = s.options.length - 1; s.dispatchEvent(new Event('change')); document.activeElement.blur()")
		p.screenshot(*picture)
	}
}

// shop sends requests of a shop. It ignores errors: the page shows what has happened.
type shop struct{ server string }

func (s *shop) post(path string, body, response any) {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	r, err := http.Post(s.server+path, "application/json", bytes.NewReader(text))
	if err != nil {
		return
	}
	defer r.Body.Close()
	json.NewDecoder(r.Body).Decode(response)
}

func (s *shop) publish(topic string, messages []map[string]any) {
	if len(messages) > 0 {
		s.post("/topics/"+topic+"/messages/batch", map[string]any{"messages": messages}, &struct{}{})
	}
}

// consume receives messages and acks them, except for every failing-th one, which it nacks.
func (s *shop) consume(queueID string, limit, failing int) {
	var received struct {
		Data []struct {
			ID   string `json:"id"`
			Data struct {
				Order int `json:"order"`
			} `json:"data"`
		} `json:"data"`
	}
	s.post("/queues/"+queueID+"/messages/receive", map[string]any{"limit": limit, "wait_seconds": 1}, &received)
	var ack []string
	nack := []map[string]string{}
	for _, m := range received.Data {
		if failing > 0 && m.Data.Order%failing == 0 {
			nack = append(nack, map[string]string{"id": m.ID, "error": "503 Service Unavailable"})
		} else {
			ack = append(ack, m.ID)
		}
	}
	s.post("/queues/"+queueID+"/messages/receive", map[string]any{"limit": 0, "ack": ack, "nack": nack}, &received)
}
