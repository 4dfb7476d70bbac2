package browser

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
)

func TestEmptyServerShowsCommandsThatWork(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	p := open(t, s.url())
	p.seeText("main", "There are no queues yet")
	p.seeText("#status", "Live")
	for _, command := range js[[]string](p, "[...document.querySelectorAll('.steps pre')].map((e) => e.textContent)") {
		out, err := exec.Command("sh", "-c", command+" -s -S -f").CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	p.seeText("tr[data-id=invoices]", "topic orders") // without a reload
	p.see("the first steps disappear", "!document.querySelector('.steps')")
	p.seeText("tr[data-id=invoices] td[data-label='In flight']", "1")
}

// rowIDs evaluates to the ids of the queues in the table, in its order.
const rowIDs = "[...document.querySelectorAll('.queues tbody tr')].map((e) => e.dataset.id).join(' ')"

func TestQueuesAreShownLive(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.must("POST", "/topics", `{"id":"orders"}`)
	s.queue("dead")
	s.queue("mails", `"topic_id":"orders"`, `"dead_queue_id":"dead"`, `"message_max_deliveries":3`)
	s.queue("audit", `"ordered":true`)
	p := open(t, s.url())
	p.seeText("tr[data-id=dead]", "dead queue of mails")
	p.seeText("tr[data-id=audit]", "ordered")

	for range 3 {
		s.must("POST", "/topics/orders/messages", `{"data":{}}`)
	}
	s.must("POST", "/queues/audit/messages", `{"data":{},"delay_seconds":600}`)
	cell := func(queue, column string) string {
		return fmt.Sprintf("tr[data-id=%s] td[data-label=%q]", queue, column)
	}
	p.seeText(cell("mails", "Ready"), "3")
	p.seeText(cell("audit", "Delayed"), "1")
	p.see("a rate of publishes", fmt.Sprintf("parseFloat(document.querySelector(%q).innerText) > 0", cell("mails", "Published/s")))
	p.see("a chart of the ready messages", "parseFloat(document.querySelector('tr[data-id=mails] .charted polyline').getAttribute('points').split(',').at(-1)) < 15")

	waiting := make(chan struct{})
	go func() {
		defer close(waiting)
		http.Get(s.url() + "/queues/dead/messages?wait_seconds=20")
	}()
	p.seeText(cell("dead", "Waiting consumers"), "1")
	s.must("POST", "/queues/dead/messages", `{"data":{}}`)
	<-waiting
	p.seeText(cell("dead", "In flight"), "1")
	p.run("document.querySelector('thead th.id button').click()")
	p.see("sorted by name", rowIDs+" === 'audit dead mails'")
	p.click("Ready", "//thead")
	p.see("sorted by ready messages", rowIDs+" === 'mails audit dead'")
	p.see("the column head names the order", "document.querySelector('th[aria-sort=descending]').innerText.startsWith('Ready')")
	p.click("Ready", "//thead")
	p.see("sorted in reverse order", rowIDs+" === 'audit dead mails'")
	p.fillIn("input[type=search]", "ORD mai")
	p.see("only the matching queue", rowIDs+" === 'mails'")
	p.seeText(".tools", "1 of 3")
	p.fillIn("input[type=search]", "ORD nothing")
	p.seeText("main", "No queues match.")
	p.fillIn("input[type=search]", "")
	p.size(390, 800)
	p.choose("[aria-label='Reverse order']") // narrow windows have no column heads
	p.see("sorted in the first order again", rowIDs+" === 'mails audit dead'")
	p.size(1280, 900)
	p.run("const s = document.querySelector('.tools select'); s.value = 'dead'; s.dispatchEvent(new Event('change'))")
	p.see("only dead queues", rowIDs+" === 'dead'")

	other := open(t, js[string](p, "location.href"))
	other.see("the same behind a link", rowIDs+" === 'dead'")
	other.see("and in the same order", "document.querySelector('th[aria-sort=descending]').innerText.startsWith('Ready')")
}

func TestProblemsComeFirst(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("a-fine")
	s.queue("b-dead")
	s.queue("c-forgotten", `"dead_queue_id":"b-dead"`, `"message_max_deliveries":9`)
	s.queue("d-failing")
	s.must("POST", "/queues/b-dead/messages/batch", `{"messages":[{"data":{}},{"data":{}}]}`)
	s.must("POST", "/queues/c-forgotten/messages/batch", `{"messages":[{"data":{}},{"data":{}},{"data":{}}]}`)
	p := open(t, s.url())
	p.see("the queue without consumer at the top", rowIDs+" === 'c-forgotten b-dead a-fine d-failing'")
	p.seeText("tr[data-id=c-forgotten]", "no consumer, 3 waiting")
	p.seeText("tr[data-id=b-dead]", "2 dead")
	p.see("no mark at the others", "document.querySelectorAll('.mark').length === 2")
	p.seeText(".tile.ready", "3") // without the dead
	p.seeText(".tile.dead", "2")
	p.see("the number of queues without consumer", "document.querySelector('.tile.idle b').innerText === '1'")

	s.must("POST", "/queues/d-failing/messages", `{"data":{}}`)
	for range 3 {
		received := s.receive("d-failing", "?wait_seconds=20")
		s.must("PUT", "/messages/"+received[0]+"/nack", "")
	}
	p.see("the failing queue at the top", rowIDs+" === 'd-failing c-forgotten b-dead a-fine'")
	p.see("what fails", "/failing: [0-9.]+\\/s nacked/.test(document.querySelector('tr[data-id=d-failing]').innerText)")
	s.must("POST", "/queues/a-fine/messages", `{"data":{}}`)
	s.must("GET", "/queues/a-fine/messages?ack_deadline_seconds=1", "")
	s.must("GET", "/queues/a-fine/messages?wait_seconds=20", "")
	p.see("that no consumer acks", "/not acked: [0-9.]+\\/s again/.test(document.querySelector('tr[data-id=a-fine]').innerText)")
	p.choose(".tile.dead")
	p.see("the dead queues", rowIDs+" === 'b-dead'")
}

// A queue whose few messages fail, with pauses between their deliveries, is failing also on a
// page that has seen none of it.
func TestSlowFailuresAreAProblem(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("a-fine")
	s.queue("slow", `"retry_backoff_seconds":[600]`)
	for range 2 {
		s.must("POST", "/queues/slow/messages", `{"data":{}}`)
		received := s.receive("slow", "")
		s.must("PUT", "/messages/"+received[0]+"/nack", "")
	}
	p := open(t, s.url())
	p.see("the failing queue at the top", rowIDs+" === 'slow a-fine'")
	p.see("how many failed", "/failing: 2 nacked in [0-9]+ (s|min)/.test(document.querySelector('tr[data-id=slow]').innerText)")
	s.must("PUT", "/queues/slow/pause", "")
	p.seeText("tr[data-id=slow] .problem", "paused")
}

func TestDeadMessageTellsItsStory(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("dead")
	s.queue("mails", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.must("POST", "/queues/mails/messages", `{"data":{}}`)
	received := s.receive("mails", "")
	failure, err := json.Marshal("Traceback:\n" + strings.Repeat("  a line of the code\n", 20) + "no such address")
	if err != nil {
		t.Fatal(err)
	}
	s.must("PUT", "/messages/"+received[0]+"/nack", `{"error":`+string(failure)+`}`)
	p := open(t, s.url()+"/#/queues/dead")
	p.seeText(".story", "from mails after 1 delivery, ")
	p.seeText(".story", "no such address")
	p.choose(".message summary")
	p.seeText("dl", "1 in mails, 0 here")
	p.seeText("dl", "  a line of the code\n  a line of the code\nno such address")
	p.click("Delete…", `//li[@class="message"]`)
	p.seeText("dialog", "permanently deleted.")
	p.click("Cancel")
	p.click("Retry")
	p.seeText("#notifications", "moved back to mails")
	p.seeText(".tab-content", "No messages.")
	if states := s.states("mails"); states != "ready" {
		t.Errorf("in mails: %s", states)
	}
	p.see("nothing to move", `[...document.querySelectorAll('button')].find((b) => b.textContent === 'Redrive…').disabled`)
	p.goTo("#/queues/mails")
	p.seeText(".title .buttons", "Move messages…")
	s.must("POST", "/queues/dead/messages", `{"data":{}}`)
	p.seeText(".title a.mark", "1 dead")
}

// A link may lead to a dead queue, which the page knows from the overview only.
func TestMessageOfADeadQueueIsNotAcked(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("dead")
	s.queue("mails", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.must("POST", "/queues/dead/messages", `{"data":{}}`)
	target, err := url.Parse(s.url())
	if err != nil {
		t.Fatal(err)
	}
	server := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	var peeks atomic.Int64
	released := make(chan struct{})
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/overview" {
			select {
			case <-released:
			case <-r.Context().Done():
			}
		}
		if strings.HasSuffix(r.URL.Path, "/peek") && peeks.Add(1) > 1 {
			w.WriteHeader(http.StatusServiceUnavailable) // the row stays as it is
			return
		}
		server.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	p := open(t, proxy.URL+"/#/queues/dead")
	p.see("no button to press yet", "document.querySelector('.message > .buttons button:last-child').disabled")
	close(released)
	p.see("no ack", "(b => b.innerText === 'Delete…' && !b.disabled)(document.querySelector('.message > .buttons button:last-child'))")
}

func TestSomeMessagesAreRetriedOrDeleted(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("dead")
	s.queue("mails", `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.must("POST", "/queues/mails/messages/batch", `{"messages":[{"data":{}},{"data":{}},{"data":{}},{"data":{}}]}`)
	received := s.receive("mails", "?limit=4")
	for _, id := range received {
		s.must("PUT", "/messages/"+id+"/nack", "")
	}
	p := open(t, s.url()+"/#/queues/dead")
	p.see("all messages", "document.querySelectorAll('.message').length === 4")
	p.seeNo(".tools button")
	p.choose(".message:nth-child(1) input")
	p.choose(".message:nth-child(3) input")
	p.click("Retry 2")
	p.seeText("#notifications", "2 messages moved back to where they came from.")
	p.see("the others", "document.querySelectorAll('.message').length === 2")
	if states := s.states("mails"); states != "ready ready" {
		t.Errorf("in mails: %s", states)
	}
	p.choose("[aria-label='Select all messages of this page']")
	p.click("Delete 2…")
	p.seeText("dialog", "2 messages will be permanently deleted.")
	p.click("Delete 2 messages")
	p.seeText("#notifications", "2 messages deleted.")
	p.seeText(".tab-content", "No messages.")
}

func TestMessagesAreSearched(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	for n, m := range []string{`"attributes":{"country":"fr"}`, `"attributes":{"country":"es"},"group":"acme"`, `"group":"acme"`, `"delay_seconds":600`} {
		s.must("POST", "/queues/mails/messages", fmt.Sprintf(`{"data":{"order":%d,"to":"Ann %d"},%s}`, n, n, m))
	}
	p := open(t, s.url()+"/#/queues/mails")
	found := func(orders string) {
		t.Helper()
		p.see("orders "+orders, fmt.Sprintf("[...document.querySelectorAll('.message')].map((e) => /\"order\":(\\d)/.exec(e.textContent)?.[1]).join(' ') === %q", orders))
	}
	found("0 1 2 3")
	p.choose(".message:nth-child(2) .tag") // its group
	found("1 2")
	other := open(t, js[string](p, "location.href"))
	other.see("the same behind a link", "document.querySelectorAll('.message').length === 2 && document.querySelector('[aria-label=Group]').value === 'acme'")
	p.fillIn("[aria-label^=Attribute]", "country=es")
	found("1")
	p.fillIn("[aria-label=Group]", "")
	p.fillIn("[aria-label^=Attribute]", "")
	p.fillIn("[aria-label^=Text]", "ann 2")
	found("2")
	p.fillIn("[aria-label^=Text]", `{"order": 3}`)
	found("3")
	p.fillIn("[aria-label^=Text]", "elsewhere")
	p.seeText(".tab-content", "No message matches.")
	p.fillIn("[aria-label^=Text]", "")
	found("0 1 2 3")
	p.run("const s = document.querySelector('[aria-label=State]'); s.value = 'delayed'; s.dispatchEvent(new Event('change'))")
	found("3")
}

func TestConsumersAreListed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	p := open(t, s.url()+"/#/queues/mails/consumers")
	p.seeText(".tab-content", "No consumer has received from this queue in the last hour.")
	s.must("POST", "/queues/mails/messages/batch", `{"messages":[{"data":{}},{"data":{}}]}`)
	s.must("GET", "/queues/mails/messages?limit=2&wait_seconds=20", "")
	p.see("the consumer", `[...document.querySelectorAll('tbody tr > *')].map((e) => e.innerText).join().replace(/\d+ s ago/, 'now') === '127.0.0.1,now,2,2,2'`)
	s.must("POST", "/queues/mails/messages/batch", `{"messages":[`+strings.Repeat(`{"data":{}},`, 99)+`{"data":{}}]}`)
	s.must("GET", "/queues/mails/messages?limit=100&wait_seconds=20", "")
	p.seeText("tbody tr :nth-child(3)", "100 or more")
}

func TestFullQueueIsAProblem(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails", `"max_messages":2`)
	s.must("POST", "/queues/mails/messages/batch", `{"messages":[{"data":{}},{"data":{}}]}`)
	p := open(t, s.url())
	p.seeText("tr[data-id=mails] .mark", "full: 2, refuses publishes")
}

func TestMessageIsFoundByItsID(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	var published struct{ Data []struct{ ID string } }
	if err := json.Unmarshal([]byte(s.must("POST", "/queues/mails/messages", `{"data":{"n":1}}`)), &published); err != nil {
		t.Fatal(err)
	}
	id := published.Data[0].ID
	p := open(t, s.url())
	p.expect("status of 404")
	p.fillIn("input[type=search]", " "+id)
	p.seeText(".message pre", `"n": 1`)
	p.seeText(".title", "in queue mails")
	p.see("the address", "location.hash === '#/messages/"+id+"'")
	p.click("Ack…")
	p.click("Ack message")
	p.seeText("main", "No queue has a message with this id.")
}

// A body that is no JSON object is shown as it was sent, not in the object that stores it.
func TestTextIsShownAsText(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails.fifo", `"ordered":true`)
	s.must("POST", "/queues/mails.fifo/messages", `{"data":{"content_type":"text/plain; charset=utf-8","body":"first \"line\"\nsecond"}}`)
	p := open(t, s.url()+"/#/queues/mails.fifo/messages")
	p.seeText("h1 + .tags", "FIFO")
	p.seeText(".message .preview", `first "line"`)
	p.see("no object", "!document.querySelector('.message .preview').textContent.includes('content_type')")
	p.choose(".message summary")
	p.seeText(".message pre", "first \"line\"\nsecond")
	p.seeText(".message dl", "text/plain; charset=utf-8")
}

// sqs calls an action of SQS's API, which must succeed.
func (s *server) sqs(action, body string) string {
	s.t.Helper()
	r, err := http.NewRequest("POST", s.url()+"/", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.0")
	r.Header.Set("X-Amz-Target", "AmazonSQS."+action)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 {
		s.t.Fatalf("%s = %d %s, %v", action, response.StatusCode, b, err)
	}
	return string(b)
}

// A message of SQS's API has attributes with types, and its queue has attributes besides the
// settings of the native API.
func TestQueueOfSQSIsShown(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.sqs("CreateQueue", `{"QueueName":"dead.fifo","Attributes":{"FifoQueue":"true"}}`)
	s.sqs("CreateQueue", `{"QueueName":"mails.fifo","tags":{"team":"post"},"Attributes":{"FifoQueue":"true","VisibilityTimeout":"0","ContentBasedDeduplication":"true","MaximumMessageSize":"2048",
		"RedrivePolicy":"{\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:dead.fifo\",\"maxReceiveCount\":3}"}}`)
	s.sqs("SendMessage", `{"QueueUrl":"mails.fifo","MessageBody":"first","MessageGroupId":"g1","MessageDeduplicationId":"d1","MessageAttributes":{"amount":{"DataType":"Number.euro","StringValue":"1.50"},
		"name":{"DataType":"String","StringValue":"Ann"},"blob":{"DataType":"Binary","BinaryValue":"AP8="}}}`)
	p := open(t, s.url()+"/#/queues/mails.fifo/messages")
	p.see("the tags", `[...document.querySelectorAll('.message .tag')].map((e) => e.innerText).join() === 'group g1,amount: 1.50 (Number.euro),name: Ann,blob: AP8= (Binary)'`)
	p.seeText(".message .preview", "first")
	p.choose(".message summary")
	p.see("the deduplication id", `document.querySelector('.message dl').innerText.replace(/\s+/g, ' ').includes('Deduplication id d1')`)
	p.seeText("h1 + .tags", "dead queue after 3 deliveries: dead.fifo")
	p.click("Settings")
	p.see("the ack deadline", `document.querySelector('[name=ack_deadline_seconds]')?.value === '0 seconds'`)
	p.seeText("summary", "Attributes in Amazon SQS's API")
	p.choose(".tab-content summary")
	for _, text := range []string{"FifoQueue true", "VisibilityTimeout 0", "ContentBasedDeduplication true", "MaximumMessageSize 2048", "QueueArn arn:aws:sqs:us-east-1:000000000000:mails.fifo", `"maxReceiveCount":3`, "Tag team post"} {
		p.see(text, fmt.Sprintf(`document.querySelector('.tab-content dl').innerText.replace(/\s+/g, ' ').includes(%q)`, text))
	}
	p.see("no counts", `!document.querySelector('.tab-content dl').innerText.includes('Approximate')`)
}

func TestServerPageShowsDelaysAndServers(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	s.must("POST", "/queues/mails/messages", `{"data":{}}`)
	s.must("GET", "/queues/mails/messages?wait_seconds=20", "")
	p := open(t, s.url())
	p.click("Server")
	p.seeText("main", "Database")
	p.see("the version of PostgreSQL", "/PostgreSQL\\s+1[0-9]/.test(document.querySelector('.tiles').innerText)")
	p.seeText("[aria-label=Delays] tbody", "From due to delivered")
	s.must("POST", "/queues/mails/messages", `{"data":{}}`) // for later scrapes, which have what came after the first
	s.must("GET", "/queues/mails/messages?wait_seconds=20", "")
	p.see("a delay", "/(ms|s)$/.test(document.querySelector('[aria-label=Delays] tbody td:last-child').innerText)")
	p.see("the server", "document.querySelectorAll('tbody code').length === 1")
	p.goTo("#/")
	p.goTo("#/server") // a page that was just opened shows all since the start of the server
	p.see("those that take most time", "document.querySelectorAll('[aria-label=Delays] tbody tr').length === 13")
	p.click(js[string](p, "document.querySelector('[aria-label=Delays] button').innerText"))
	p.see("all", "document.querySelectorAll('[aria-label=Delays] tbody tr').length > 13 && document.querySelector('[aria-label=Delays] button').hidden")
}

func TestMessageIsPublishedAgain(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	s.must("POST", "/queues/mails/messages", `{"data":{"n":12345678901234567890},"attributes":{"country":"fr"},"group":"acme"}`)
	p := open(t, s.url()+"/#/queues/mails")
	p.choose(".message summary")
	p.click("Publish again, edited…")
	p.see("the message", `document.querySelector('dialog [name=data]').value === '{\n  "n": 12345678901234567890\n}' && document.querySelector('dialog [name=group]').value === 'acme'`)
	p.fill("attributes", `{"country": "es"}`)
	p.choose("dialog button[type=submit]")
	p.seeText("#notifications", "Published to mails.")
	p.see("both messages", "document.querySelectorAll('.message').length === 2")
	p.seeText(".message:nth-child(2)", "country: es")
	p.seeText(".message:nth-child(2)", "12345678901234567890")
}

func TestQueueIsPausedAndResumed(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	p := open(t, s.url()+"/#/queues/mails")
	p.click("Pause")
	p.seeText("h1 + .tags", "paused")
	if q := s.must("GET", "/queues/mails", ""); !strings.Contains(q, `"paused":true`) {
		t.Errorf("the queue is %s", q)
	}
	p.goTo("#/")
	p.seeText("tr[data-id=mails] .mark", "paused")
	p.goTo("#/queues/mails")
	p.click("Resume")
	p.see("no tag", "!document.querySelector('h1 + .tags').innerText.includes('paused')")
	if q := s.must("GET", "/queues/mails", ""); strings.Contains(q, `"paused"`) {
		t.Errorf("the queue is %s", q)
	}
}

func TestSettingsAreSavedAndErrorsShowAtTheirFields(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.must("POST", "/topics", `{"id":"orders"}`)
	s.queue("dead")
	s.queue("mails", `"message_filters":{"country":["fr"]}`)
	p := open(t, s.url()+"/#/queues/mails")
	p.seeText("h1 + .tags", "filtered") // nothing moves from here on
	p.click("Settings")
	p.see("the settings", `document.querySelector('[name=message_filters]')?.value === '{"country":["fr"]}'`)
	p.fill("ack_deadline_seconds", "0")
	p.fill("message_retention_seconds", "soon")
	p.fill("message_filters", `{"country": "fr"}`)
	p.click("Save")
	mistake := func(field, text string) {
		t.Helper()
		p.see(text+" at "+field, fmt.Sprintf(`(() => {
			const f = document.querySelector('[name=%s]')
			return f.getAttribute('aria-invalid') === 'true' && document.getElementById(f.getAttribute('aria-describedby').split(' ')[0]).textContent.includes(%q)
		})()`, field, text))
	}
	p.expect("status of 422")
	p.expect("status of 404")
	mistake("ack_deadline_seconds", "Ack deadline must be at least 1 second.")
	mistake("message_retention_seconds", "Retention must be a time, such as 30s, 5 minutes or 4d.")
	mistake("message_filters", "country: Filters must have lists")
	p.fill("message_filters", `{"country": `)
	p.click("Save")
	mistake("message_filters", "This is not JSON")
	p.fill("ack_deadline_seconds", "90")
	p.fill("message_retention_seconds", "2h")
	p.fill("message_filters", "")
	p.fill("topic_id", "nosuch")
	p.click("Save")
	mistake("topic_id", "There is no such topic.")
	p.fill("topic_id", "orders")
	p.fill("dead_queue_id", "dead")
	p.click("Save")
	mistake("message_max_deliveries", "Enter after how many deliveries")
	p.fill("message_max_deliveries", "5")
	p.fill("delivery_interval_ms", "250")
	p.fill("max_messages", "1000")
	p.fill("retry_backoff_seconds", "5s, 30, 5 min")
	p.choose("[name=ordered]")
	p.click("Save")
	p.seeText("#notifications", "Settings saved.")
	p.seeText("h1 + .tags", "dead queue after 5 deliveries: dead")
	var got map[string]any
	if err := json.Unmarshal([]byte(s.must("GET", "/queues/mails", "")), &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "created_at")
	delete(got, "updated_at")
	want := "map[ack_deadline_seconds:90 dead_queue_id:dead delivery_delay_seconds:<nil> delivery_interval_ms:250 id:mails max_messages:1000 message_filters:<nil> message_max_deliveries:5 message_retention_seconds:7200 ordered:true retry_backoff_seconds:[5 30 300] topic_id:orders]"
	if fmt.Sprint(got) != want {
		t.Errorf("the queue is\n%v, want\n%s", got, want)
	}
}

func TestQueueIsCreatedAndDeleted(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	p := open(t, s.url())
	p.click("create a queue here")
	p.fill("id", "in/valid")
	p.expect("status of 422")
	p.click("Create queue")
	p.seeText("dialog .error:not(:empty)", "Name may have only letters")
	p.press(escape)
	p.seeNo("dialog")
	p.click("create a queue here")
	p.fill("id", "mails")
	p.press(enter)
	p.seeText("h1", "mails") // the page of the new queue
	s.must("POST", "/queues/mails/messages/batch", `{"messages":[{"data":{}},{"data":{}},{"data":{},"delay_seconds":60}]}`)
	p.click("Delete…")
	p.seeText("dialog", "3 messages (2 ready, 1 delayed)")
	p.click("Cancel")
	p.seeNo("dialog")
	p.click("Delete…")
	p.click("Delete queue")
	p.seeText("main", "There are no queues yet")
	p.click("create a queue here")
	p.fill("id", "mails")
	p.choose("[name=with_dead]")
	p.press(enter)
	p.seeText("h1 + .tags", "dead queue after 5 deliveries: mails-dead")
	for _, id := range []string{"mails", "mails-dead"} {
		s.must("DELETE", "/queues/"+id, "")
	}
	if queues := s.must("GET", "/queues", ""); queues != `{"data":[]}` {
		t.Errorf("queues = %s", queues)
	}
}

func TestMessagesAreShownPublishedNackedAndAcked(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	p := open(t, s.url()+"/#/queues/mails")
	p.seeText(".tab-content", "No messages.")
	p.click("Publish", `//*[@class="tabs"]`)
	p.expect("status of 422")
	p.fill("data", `{"n": 1`)
	p.choose(".tab-content button[type=submit]")
	p.seeText(".tab-content .error:not(:empty)", "This is not JSON")
	p.fill("data", `[1]`)
	p.choose(".tab-content button[type=submit]")
	p.seeText(".tab-content .error:not(:empty)", "Data must be a JSON object")
	p.fill("data", `{"n": 12345678901234567890.12345678901, "z": {"a": [1, "two"]}}`)
	p.fill("attributes", `{"country": "fr"}`)
	p.fill("group", "acme")
	p.choose(".tab-content button[type=submit]")
	p.seeText("#notifications", "Published to mails.")
	p.fill("data", `{"late": true}`)
	p.fill("group", "")
	p.fill("delay_seconds", "600")
	p.choose(".tab-content button[type=submit]")
	p.see("two notifications", "document.querySelectorAll('#notifications .notification').length === 2")

	p.click("Messages")
	p.see("both messages", "document.querySelectorAll('.message').length === 2")
	const first, second = ".message:nth-child(1)", ".message:nth-child(2)"
	p.seeText(first, "ready")
	p.seeText(first, "group acme")
	p.seeText(first, "country: fr")
	p.seeText(first, "0 deliveries · published")
	p.seeText(second, "delayed")
	p.seeText(second, "due in 9 min")
	p.choose(first + " summary")
	p.see("the data with all its digits, indented", fmt.Sprintf("document.querySelector('%s pre').textContent === %q", first, "{\n  \"n\": 12345678901234567890.12345678901,\n  \"z\": {\n    \"a\": [\n      1,\n      \"two\"\n    ]\n  }\n}"))

	received := s.must("GET", "/queues/mails/messages", "")
	p.seeText(".message .state.in_flight", "in flight")
	p.see("the details stay open", "document.querySelector('.message:has(.in_flight) details').open")
	p.seeText(".message:has(.in_flight)", "1 delivery")
	p.seeText(".message:has(.in_flight)", "lease ends in")
	p.click("Nack", `//li[.//*[contains(@class,"in_flight")]]`)
	p.seeText(first+" .state", "ready")
	p.seeText(second+" .state", "delayed")

	// Another consumer receives the message, and the page shows its lease.
	s.must("GET", "/queues/mails/messages?limit=1", "")
	p.see("the message in flight", "document.querySelectorAll('.message .in_flight').length === 1")
	p.click("Ack…", `//li[.//*[contains(@class,"in_flight")]]`)
	p.seeText("dialog", "permanently deleted")
	p.click("Ack message")
	p.see("one message left", "document.querySelectorAll('.message').length === 1")
	p.click("Ack…")
	p.click("Ack message")
	p.seeText(".tab-content", "No messages.")
	if left := s.states("mails"); left != "" {
		t.Errorf("messages left: %s of %s", left, received)
	}
}

func TestMessageInAnotherLeaseIsNotAcked(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	s.must("POST", "/queues/mails/messages", `{"data":{}}`)
	received := s.receive("mails", "")
	p := open(t, s.url()+"/#/queues/mails")
	p.click("Ack…")
	s.must("PUT", "/messages/"+received[0]+"/nack", "")
	s.must("GET", "/queues/mails/messages", "") // another consumer
	p.expect("status of 409")
	// The page polls, so it may already have the new lease token. The test replaces the
	// token by an old one, which the server has to reject.
	p.run(`const real = window.fetch
		window.fetch = (target, options) => real(target.replace(/scheduled_at=[^&]*/, 'scheduled_at=2020-01-01T00:00:00.000000'), options)`)
	p.click("Ack message")
	p.seeText("dialog .error", "the lease has ended")
	if states := s.states("mails"); states != "in_flight" {
		t.Errorf("the message is %q", states)
	}
}

func TestMessagesArePaged(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	var batch []string
	for n := range 60 {
		batch = append(batch, fmt.Sprintf(`{"data":{"n":%d,"long":%q}}`, n, strings.Repeat("x", 30_000)))
	}
	s.must("POST", "/queues/mails/messages/batch", `{"messages":[`+strings.Join(batch, ",")+`]}`)
	p := open(t, s.url()+"/#/queues/mails")
	p.seeText(".tab-content", "1 to 25")
	p.click("Next")
	p.seeText(".tab-content", "26 to 50")
	p.seeText(".message", `{"n":25,`)
	open(t, js[string](p, "location.href")).seeText(".tab-content", "26 to 50")
	p.click("Next")
	p.seeText(".tab-content", "51 to 60")
	p.see("the last page", `document.evaluate('//button[.="Next"]', document).iterateNext().disabled`)
	p.click("Previous")
	p.seeText(".tab-content", "26 to 50")
	p.choose(".message summary")
	p.see("the first part of long data", "document.querySelector('.message pre').textContent.length === 20002")
	p.click("Show all")
	p.see("all of the data", "document.querySelector('.message pre').textContent.length > 30000")

	// A response has at most 8 MiB, so these messages do not fit into one.
	s.queue("large")
	for n := range 12 {
		s.must("POST", "/queues/large/messages", fmt.Sprintf(`{"data":{"n":%d,"long":%q}}`, n, strings.Repeat("x", 900_000)))
	}
	p.goTo("#/queues/large")
	p.seeText(".tab-content", "1 to 9")
	p.click("Next")
	p.seeText(".tab-content", "10 to 12")
	p.seeText(".message:last-child", `{"n":11,`)
	p.click("Previous")
	p.seeText(".tab-content", "1 to 9")
}

func TestPurgeAndRedriveShowTheNumberOfMessages(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("dead")
	s.queue("mails", `"dead_queue_id":"dead"`, `"message_max_deliveries":3`)
	s.must("POST", "/queues/dead/messages/batch", `{"messages":[{"data":{}},{"data":{}},{"data":{}},{"data":{},"delay_seconds":900}]}`)
	p := open(t, s.url()+"/#/queues/dead")
	p.seeText("h1 + .tags", "dead queue of")
	p.click("Redrive…")
	p.seeText("dialog", "3 messages can be moved")
	p.see("the source queue as destination", "document.querySelector('[name=destination_queue_id]').value === 'mails'")
	p.expect("status of 404")
	p.fill("destination_queue_id", "nosuch")
	p.click("Move up to 3 messages")
	p.seeText("dialog .error:not(:empty)", "There is no such queue.")
	p.fill("destination_queue_id", "mails")
	p.fill("limit", "2")
	p.click("Move up to 3 messages")
	p.seeText("#notifications", "2 messages moved from dead to mails.")
	p.seeNo("dialog")
	if states := s.states("mails"); states != "ready ready" {
		t.Errorf("in mails: %s", states)
	}
	p.click("Purge…")
	p.seeText("dialog", "2 messages (1 ready, 1 delayed)")
	p.click("Cancel")
	p.click("Purge…")
	p.click("Delete 2 messages")
	p.seeText("#notifications", "Queue dead purged.")
	p.seeText(".tab-content", "No messages.")
	if states := s.states("dead"); states != "" {
		t.Errorf("in dead: %s", states)
	}
}

func TestTopicsAreCreatedPublishedToAndDeleted(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("dead")
	p := open(t, s.url()+"/#/topics")
	p.seeText("main", "There are no topics yet")
	p.click("New topic")
	p.fill("id", "orders")
	p.press(enter)
	p.seeText("section[aria-label='Topic orders']", "no queue: messages are discarded")
	p.click("New queue")
	p.see("the topic of the card", "document.querySelector('dialog [name=topic_id]').value === 'orders'")
	p.fill("id", "south")
	p.choose("dialog .more summary")
	p.fill("message_filters", `{"country": ["fr", "es"]}`)
	p.fill("dead_queue_id", "dead")
	p.fill("message_max_deliveries", "2")
	p.click("Create queue")
	p.seeText("h1", "south")
	p.click("Topics")
	for _, text := range []string{"south", "country: fr or es", "dead queue after 2 deliveries: dead"} {
		p.seeText("section[aria-label='Topic orders'] .tree", text)
	}
	p.see("the dead queue only beside its queue", "!document.querySelector('main').innerText.includes('Queues without a topic')")
	p.click("Publish…")
	p.choose("dialog button[type=submit]")
	p.seeText("#notifications", "no queue matched")
	p.click("Publish…")
	p.fill("attributes", `{"country": "es"}`)
	p.choose("dialog button[type=submit]")
	p.seeText("#notifications", "Published to south.")
	p.seeText(".tree", "no consumer, 1 waiting")
	p.click("Delete…")
	p.seeText("dialog", "One queue subscribes to it")
	p.click("Delete topic")
	p.seeText("main", "There are no topics yet")
	if states := s.states("south"); states != "ready" {
		t.Errorf("south has %s", states)
	}
}

func TestGroupsAreShownAndLimited(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails", `"delivery_interval_ms":60000`)
	s.must("POST", "/queues/mails/messages/batch", `{"messages":[{"data":{},"group":"acme"},{"data":{},"group":"acme"},{"data":{},"group":"a/b?c#d"}]}`)
	p := open(t, s.url()+"/#/queues/mails/groups")
	row := func(id string) string { return fmt.Sprintf("//tr[th=%q]", id) }
	p.seeText("tbody", "acme")
	s.must("GET", "/queues/mails/messages", "")
	p.seeText("tbody", "limited for")
	p.click("Interval…", row("acme"))
	p.expect("status of 422")
	p.fill("delivery_interval_ms", "-1")
	p.click("Save")
	p.seeText("dialog .error:not(:empty)", "Interval in milliseconds must be at least 0.")
	p.fill("delivery_interval_ms", "250")
	p.click("Save")
	p.seeText("tbody", "250 ms")
	p.click("Delete…", row("a/b?c#d"))
	p.seeText("dialog", "1 message of the group, and its own interval, will be permanently deleted")
	p.click("Delete 1 message")
	p.see("the group disappears", "!document.querySelector('tbody').innerText.includes('a/b?c#d')")

	if n := len(strings.Fields(s.states("mails"))); n != 2 {
		t.Errorf("there are %d messages, want 2", n)
	}
}

// A browser would resolve such ids as path segments and request another path.
func TestPathsThatABrowserCannotRequestAreRefused(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	open(t, s.url()+"/#/queues/..").seeText("main", "A browser cannot request")
}

func TestDashboardReconnectsAfterAnOutage(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	s.must("POST", "/queues/mails/messages", `{"data":{}}`)
	p := open(t, s.url())
	p.expect("ERR_CONNECTION_REFUSED")
	p.expect("ERR_EMPTY_RESPONSE")
	p.expect("ERR_CONNECTION_RESET")
	p.seeText("tr[data-id=mails] td[data-label=Ready]", "1")
	s.stop()
	p.seeText("#status", "Cannot reach the server. Retrying…")
	p.seeText("tr[data-id=mails]", "mails") // the last known state stays visible
	p.click("New queue")
	p.seeText("#notifications", "Cannot reach the server.")
	s.start()
	p.seeText("#status", "Live")
	s.must("POST", "/queues/mails/messages", `{"data":{}}`)
	p.seeText("tr[data-id=mails] td[data-label=Ready]", "2")
}

// writeTokens writes a token file and returns its path.
func writeTokens(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "tokens.json")
	text := `{"tokens": [
		{"name": "operator", "token": "the-secret-of-the-operator", "admin": true},
		{"name": "worker", "token": "the-secret-of-the-worker-it-is", "get": ["mails"]}
	]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTokenIsRequestedAndKeptForTheTab(t *testing.T) {
	t.Parallel()
	s := newServer(t, "-token-file", writeTokens(t))
	s.token = "the-secret-of-the-operator"
	s.queue("mails")
	s.queue("others")
	p := open(t, s.url())
	p.expect("status of 401")
	p.expect("status of 403")
	p.seeText("h1", "Token required")
	p.seeText("#status", "No valid token")
	p.see("no token to forget", "document.getElementById('forget-token').hidden")
	p.fill("token", "not a tökén")
	p.press(enter)
	p.seeText("form .error:not(:empty)", "printable ASCII characters")
	p.fill("token", "not-a-valid-one")
	p.press(enter)
	p.seeText("form .error:not(:empty)", "Invalid token")
	p.see("an invalid token is not kept", "sessionStorage.length === 0")
	p.fill("token", "the-secret-of-the-operator")
	p.press(enter)
	p.see("all queues", rowIDs+" === 'mails others'")
	p.see("the token is kept in this tab only", "sessionStorage.length === 1 && localStorage.length === 0 && document.cookie === ''")
	p.do(chromedp.Reload())
	p.see("all queues after a reload", rowIDs+" === 'mails others'")
	p.click("Forget token")
	p.seeText("h1", "Token required")

	p.fill("token", "the-secret-of-the-worker-it-is")
	p.press(enter)
	p.see("only the queue of the token", rowIDs+" === 'mails'")
	p.seeNo(".tools .admin")
	p.click("mails")
	p.seeText(".tab-content", "No messages.")
	p.seeNo("main .title .buttons")
	p.click("Settings")
	p.seeText(".tab-content", "Your token does not allow you to change these settings.")
	p.see("read-only fields", "document.querySelector('[name=ack_deadline_seconds]').disabled")
	p.click("Publish", `//*[@class="tabs"]`)
	p.choose(".tab-content button[type=submit]")
	p.seeText(".tab-content .error:not(:empty)", "requires post")

	// The token becomes invalid.
	if err := os.WriteFile(s.args[1], []byte(`{"tokens": [{"name": "operator", "token": "another-secret-of-the-operator", "admin": true}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.stop()
	p.expect("ERR_")
	s.start()
	p.seeText("main", "The server rejected the token")
	p.see("the token field has the focus", "document.activeElement.name === 'token'")
}

func TestTokenWithoutQueuesSeesNoFirstSteps(t *testing.T) {
	t.Parallel()
	s := newServer(t, "-token-file", writeTokens(t))
	p := open(t, s.url())
	p.expect("status of 401")
	p.fill("token", "the-secret-of-the-worker-it-is")
	p.press(enter)
	p.seeText("main", "Your token has no permission for any queue.")
	p.see("no commands", "!document.querySelector('.steps')")
}

// Behind a load balancer with round robin, consecutive responses come from different
// servers, each of which counts only its own requests.
func TestRatesOfSeveralServersAreAddedUp(t *testing.T) {
	t.Parallel()
	a := newServer(t)
	b := newServer(t, "-database-url", "host="+filepath.Join(a.data, "run")+" user=queued dbname=queued")
	a.queue("mails")
	var turn atomic.Int64
	var servers []*httputil.ReverseProxy
	for _, s := range []*server{a, b} {
		target, err := url.Parse(s.url())
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }})
	}
	balancer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int64(0)
		if r.URL.Path == "/overview" {
			n = turn.Add(1) % 2
		}
		servers[n].ServeHTTP(w, r)
	}))
	t.Cleanup(balancer.Close)
	p := open(t, balancer.URL)
	p.seeText("tr[data-id=mails]", "mails")
	for _, s := range []*server{a, b} {
		go http.Get(s.url() + "/queues/mails/messages?wait_seconds=20")
	}
	p.seeText("tr[data-id=mails] td[data-label='Waiting consumers']", "2")
	for range 20 { // to both servers in turn
		s := []*server{a, b}[turn.Load()%2]
		s.must("POST", "/queues/mails/messages", `{"data":{}}`)
	}
	p.see("a rate", "parseFloat(document.querySelector(`tr[data-id=mails] td[data-label='Published/s']`).innerText) > 0")
}

func TestFocusSurvivesUpdates(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.must("POST", "/topics", `{"id":"orders"}`)
	s.queue("dead")
	s.queue("mails", `"topic_id":"orders"`, `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	p := open(t, s.url()+"/#/topics")
	p.seeText(".tree", "dead")
	p.run("document.querySelector('.tree .tag').focus()")
	s.must("POST", "/queues/mails/messages", `{"data":{}}`)
	s.must("POST", "/queues/dead/messages", `{"data":{}}`)
	p.seeText(".tree", "no consumer, 1 waiting")
	p.see("the link keeps the focus", "document.activeElement.textContent === 'dead'")
	p.press(enter)
	p.seeText("h1", "dead")
	p.see("the new page has the focus", "document.activeElement.id === 'main'")
	p.see("the title of the queue", "document.title === 'dead · queued'")
	p.click("Topics")
	p.see("the title of the topics", "document.title === 'Topics · queued'")
}

func TestRowsKeepTheirPlacesUnderThePointer(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("b")
	s.queue("c")
	p := open(t, s.url())
	p.see("both queues", rowIDs+" === 'b c'")
	at := js[[]float64](p, "(() => { const r = document.querySelector('tbody tr').getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()")
	p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, at[0], at[1]))
	p.see("the pointer is over the table", "document.querySelector('tbody').matches(':hover')")
	s.must("DELETE", "/queues/c", "")
	s.queue("a")
	p.see("the new queue at the end", rowIDs+" === 'b a'")
	p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, 1, 1))
	p.see("the new queue in its place", rowIDs+" === 'a b'")
}

// A response with all queues may be older than the queue whose page is open.
func TestNewQueueIsNotReportedMissing(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("a")
	p := open(t, s.url())
	p.see("the queue", rowIDs+" === 'a'")
	p.run(`const real = window.fetch
		window.held = []
		window.fetch = async (target, options) => {
			const response = await real(target, options)
			if (target === '/overview') await new Promise((resolve) => held.push(resolve))
			return response
		}
		window.missing = false
		new MutationObserver(() => { missing ||= [...document.querySelectorAll('p.panel')].some((e) => e.checkVisibility() && e.innerText.includes('Queue not found')) })
			.observe(document.body, { subtree: true, childList: true, attributes: true })`)
	p.see("a response on its way", "held.length === 1")
	p.click("New queue")
	p.fill("id", "b")
	p.click("Create queue")
	p.seeText("h1", "b")
	p.run("held.shift()()") // a response without the new queue
	p.see("the next response", "held.length === 1")
	p.run("held.shift()()")
	p.see("the page of the queue", "document.querySelector('.tiles').checkVisibility()")
	if js[bool](p, "missing") {
		t.Error("the page says that the queue was not found")
	}
}

func TestConcurrentChangesOfSettingsPersist(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails", `"ordered":true`)
	p := open(t, s.url()+"/#/queues/mails/settings")
	p.see("the form", "document.querySelector('[name=delivery_delay_seconds]')")
	s.must("PUT", "/queues/mails", `{"ack_deadline_seconds":77,"message_retention_seconds":7200,"message_filters":{"a":["b"]}}`)
	p.fill("delivery_delay_seconds", "5")
	p.click("Save")
	p.see("the current setting", "document.querySelector('[name=ack_deadline_seconds]').value === '77 seconds'")
	p.see("the button keeps the focus", "document.activeElement.textContent === 'Save'")
	queue := s.must("GET", "/queues/mails", "")
	for _, part := range []string{`"ack_deadline_seconds":77`, `"message_retention_seconds":7200`, `"message_filters":{"a":["b"]}`, `"delivery_delay_seconds":5`, `"ordered":true`} {
		if !strings.Contains(queue, part) {
			t.Errorf("the queue is %s, want %s", queue, part)
		}
	}
	p.fill("message_filters", `{"n": [12345678901234567890, 1.10]}`)
	p.click("Save")
	p.see("the filters as the server stores them", `document.querySelector('[name=message_filters]').value === '{"n":["12345678901234567890","1.1"]}'`)
}

func TestTwoClicksOpenOneDialog(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	p := open(t, s.url()+"/#/queues/mails")
	p.see("the button Purge", "[...document.querySelectorAll('button')].some((b) => b.textContent === 'Purge…' && b.checkVisibility())")
	p.run(`const real = window.fetch
		window.responses = 0
		window.fetch = async (target, options) => {
			const response = await real(target, options)
			if (target.includes('/stats')) setTimeout(() => responses++)
			return response
		}
		const button = [...document.querySelectorAll('button')].find((b) => b.textContent === 'Purge…')
		button.click()
		button.click()`)
	p.see("both responses and a dialog", "responses === 2 && document.querySelector('dialog')")
	if n := js[int](p, "document.querySelectorAll('dialog').length"); n != 1 {
		t.Errorf("%d dialogs are open", n)
	}
}

func TestListsAreReadWithALowLimit(t *testing.T) {
	t.Parallel()
	s := newServer(t, "-max-limit", "15")
	s.queue("mails")
	var batch []string
	for n := range 24 {
		batch = append(batch, fmt.Sprintf(`{"data":{},"group":"group-%02d"}`, n))
		s.must("POST", "/topics", fmt.Sprintf(`{"id":"topic-%02d"}`, n))
		s.queue(fmt.Sprintf("queue-%02d", n))
	}
	s.must("POST", "/queues/mails/messages/batch", `{"messages":[`+strings.Join(batch, ",")+`]}`)
	p := open(t, s.url())
	p.expect("status of 422")
	p.see("all queues", "document.querySelectorAll('.queues tbody tr').length === 25")
	p.goTo("#/topics")
	p.see("all topics", "document.querySelectorAll('.cards .card').length === 24")
	p.goTo("#/queues/mails/groups")
	p.seeText("tbody", "group-09")
	p.click("Next")
	p.seeText("tbody", "group-19")
	p.click("Previous")
	p.seeText("tbody", "group-00")
}

func TestMarkupAndScriptDoNotRun(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	const attack = `<img src=x onerror=window.pwned=1><script>window.pwned=1</script>"'>{{7*7}}javascript:window.pwned=1`
	quoted, _ := json.Marshal(attack)
	s.must("POST", "/topics", `{"id":"t"}`)
	s.queue("q", `"topic_id":"t"`, fmt.Sprintf(`"message_filters":{%s:[%s]}`, quoted, quoted))
	s.must("POST", "/queues/q/messages", fmt.Sprintf(`{"data":{%s:%s},"attributes":{%s:%s},"group":%s}`, quoted, quoted, quoted, quoted, quoted))
	p := open(t, s.url())
	p.seeText("tr[data-id=q]", "filtered")
	elements := func() {
		t.Helper()
		if n := js[int](p, "document.querySelectorAll('main img, main script, main iframe, [onerror]').length"); n != 0 {
			t.Errorf("%d elements were created from text", n)
		}
	}
	for _, hash := range []string{"#/queues/q", "#/queues/q/groups", "#/topics"} {
		p.goTo(hash)
		p.seeText("main", "<img src=x onerror=window.pwned=1><script>")
		if hash == "#/queues/q" {
			p.choose("summary")
			p.seeText("pre", "{{7*7}}")
		}
		elements()
	}
	p.goTo("#/queues/q/settings")
	p.see("the filter", "document.querySelector('[name=message_filters]')?.value.includes('onerror')")
	p.goTo("#/queues/q/groups")
	p.click("Delete…", "//tbody")
	p.seeText("dialog h2", "<img src=x")
	p.click("Cancel")
	p.expect("status of 404")
	p.goTo("#/queues/" + strings.ReplaceAll(attack, "/", "%2F") + "/messages")
	p.seeText("h1", "<img src=x")
	elements()

	// The Content-Security-Policy stops attacks that get past the scripts.
	p.expect("Content Security Policy")
	p.expect("requires 'Trusted")
	for _, attempt := range []string{
		"document.querySelector('main').innerHTML = '<b>'",
		"document.createElement('script').text = 'window.pwned = 1'",
		"document.createElement('script').src = '/dashboard/main.js'",
		"document.write('<script>window.pwned = 1</script>')",
	} {
		if js[string](p, "(() => { try { "+attempt+"; return 'done' } catch (e) { return 'refused' } })()") != "refused" {
			t.Errorf("%s was not refused", attempt)
		}
	}
	p.run(`const e = document.createElement('a')
		e.href = 'javascript:window.pwned = 1'
		document.body.append(e)
		e.click()`)
	for _, attempt := range []string{"https://example.com/", "http://127.0.0.1:1/"} {
		if js[string](p, fmt.Sprintf("fetch(%q).then(() => 'done', () => 'refused')", attempt)) != "refused" {
			t.Errorf("a request to %s was not refused", attempt)
		}
	}
	if js[bool](p, "'pwned' in window") {
		t.Error("a script ran")
	}
}

func TestKeyboardIsEnough(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.queue("mails")
	p := open(t, s.url())
	p.seeText("tr[data-id=mails]", "mails")
	focused := "document.activeElement"
	p.press(tab)
	p.see("the link that skips to the content", focused+".className === 'skip'")
	p.press(enter)
	p.see("the content", focused+".id === 'main'")
	p.press(tab)
	p.see("the dead queues", focused+".className === 'tile dead'")
	p.press(tab, tab, tab)
	p.see("the filter", focused+".type === 'search'")
	for range 20 {
		if js[string](p, focused+".textContent") == "mails" {
			break
		}
		p.press(tab)
	}
	p.press(enter)
	p.seeText("h1", "mails")
	p.run("[...document.querySelectorAll('button')].find((b) => b.textContent === 'Purge…').focus()")
	p.press(enter)
	p.see("the dialog has the focus", "document.querySelector('dialog')?.contains(document.activeElement)")
	p.press(escape)
	p.seeNo("dialog")
	p.see("the button has the focus again", focused+".textContent === 'Purge…'")
}

// accessibilityProblems lists controls without a name for screen readers, tables without
// heads, text with too little contrast (WCAG 2.2, 1.4.3), and a page wider than the
// window.
const accessibilityProblems = `(() => {
	const problems = []
	for (const e of document.querySelectorAll('button, a, input, select, textarea')) {
		if (!e.checkVisibility()) continue
		const name = e.getAttribute('aria-label') || (e.labels?.length ? e.labels[0].textContent : '') || e.textContent
		if (!name.trim()) problems.push('no name: ' + e.outerHTML)
	}
	for (const e of document.querySelectorAll('table')) if (!e.querySelector('th')) problems.push('no heads: ' + e.outerHTML)
	const parsed = new Map()
	const parse = (color) => {
		if (!parsed.has(color)) {
			const c = document.createElement('canvas').getContext('2d')
			c.fillStyle = color
			c.fillRect(0, 0, 1, 1)
			parsed.set(color, [...c.getImageData(0, 0, 1, 1).data])
		}
		return parsed.get(color)
	}
	const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] / 255 + below[i] * (1 - top[3] / 255)).concat(255)
	const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
	for (let n; (n = walk.nextNode()); ) {
		const e = n.parentElement
		if (!n.data.trim() || !e.checkVisibility({ visibilityProperty: true }) || e.closest('svg, noscript, :disabled, .visually-hidden, .skip, option')) continue
		const backgrounds = []
		for (let at = e; at; at = at.parentElement) backgrounds.push(parse(getComputedStyle(at).backgroundColor))
		const background = backgrounds.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 255])
		const [a, b] = [luminance(over(parse(getComputedStyle(e).color), background)), luminance(background)].sort((a, b) => b - a)
		if ((a + 0.05) / (b + 0.05) < 4.5) problems.push('contrast ' + ((a + 0.05) / (b + 0.05)).toFixed(2) + ': ' + n.data)
	}
	const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth
	if (wide > 0) problems.push('wider than the window by ' + wide + ' pixels')
	return problems.slice(0, 10)
})()`

var screenshots = flag.String("screenshots", "", "`directory` to write screenshots of all pages to")

func TestEveryPageIsReadableOnEveryScreen(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.must("POST", "/topics", `{"id":"orders"}`)
	s.must("POST", "/topics", `{"id":"users.with-a_rather.long-name-that-a-client-chose-to-give-to-a-topic"}`)
	s.queue("orders-dead")
	s.queue("invoices", `"topic_id":"orders"`, `"dead_queue_id":"orders-dead"`, `"message_max_deliveries":2`)
	s.queue("a-queue-with-a-name-"+strings.Repeat("as.long-as_names-can-be.", 4), `"topic_id":"orders"`, `"message_filters":{"country":["fr","es"]}`, `"ordered":true`)
	s.queue("mails", `"delivery_interval_ms":600000`)
	p := open(t, s.url())
	p.seeText("tr[data-id=invoices]", "invoices")
	for n := range 30 {
		s.must("POST", "/topics/orders/messages", fmt.Sprintf(`{"data":{"order":%d,"customer":{"name":"Ann %s"},"items":[{"sku":"A-1","n":2}]},"attributes":{"country":"fr"}}`, n, strings.Repeat("x", n*20)))
	}
	s.must("POST", "/queues/mails/messages/batch", `{"messages":[{"data":{"mail":1},"group":"acme"},{"data":{"mail":2},"group":"acme"},{"data":{"mail":3},"group":"`+strings.Repeat("zeta ", 40)+`"}]}`)
	s.must("POST", "/queues/invoices/messages", `{"data":{"later":true},"delay_seconds":600}`)
	s.must("GET", "/queues/invoices/messages?limit=2", "")
	s.must("GET", "/queues/mails/messages?limit=1", "")
	for name, v := range map[string]struct{ hash, shows string }{
		"queues":    {"#/", "invoices"},
		"topics":    {"#/topics", "orders-dead"},
		"messages":  {"#/queues/invoices", "published"},
		"consumers": {"#/queues/invoices/consumers", "last hour"},
		"publish":   {"#/queues/invoices/publish", "Attributes"},
		"settings":  {"#/queues/invoices/settings", "Save"},
		"groups":    {"#/queues/mails/groups", "acme"},
		"server":    {"#/server", "From due to delivered"},
	} {
		p.goTo(v.hash)
		p.seeText("main", v.shows)
		for _, theme := range []string{"light", "dark"} {
			p.theme(theme)
			for size, width := range map[string]int64{"desktop": 1280, "phone": 390, "small": 320, "wide": 1600, "737": 737, "900": 900, "1050": 1050} {
				if theme == "dark" && width != 1280 && width != 390 {
					continue // a theme has colors only
				}
				p.size(width, 844)
				for _, problem := range js[[]string](p, accessibilityProblems) {
					t.Errorf("%s, %s, %s: %s", name, theme, size, problem)
				}
				if *screenshots != "" {
					p.screenshot(filepath.Join(*screenshots, fmt.Sprintf("%s-%s-%s.png", name, theme, size)))
				}
			}
		}
	}
	p.goTo("#/queues/invoices")
	p.size(1280, 844)
	for what, button := range map[string]string{"dialog-purge": "Purge…", "dialog-redrive": "Move messages…"} {
		p.click(button)
		p.seeText("dialog", "messages")
		for _, theme := range []string{"light", "dark"} {
			p.theme(theme)
			for size, width := range map[string]int64{"desktop": 1280, "phone": 390} {
				p.size(width, 844)
				for _, problem := range js[[]string](p, accessibilityProblems) {
					t.Errorf("%s, %s, %s: %s", what, theme, size, problem)
				}
				if *screenshots != "" {
					p.screenshot(filepath.Join(*screenshots, fmt.Sprintf("%s-%s-%s.png", what, theme, size)))
				}
			}
		}
		p.size(1280, 844)
		p.click("Cancel")
	}
}

func TestAxeFindsNothingInAnyState(t *testing.T) {
	t.Parallel()
	s := newServer(t, "-token-file", writeTokens(t))
	p := open(t, s.url())
	p.expect("status of 401")
	p.expect("ERR_")
	p.seeText("h1", "Token required")
	p.seeNoViolations("token")
	s.token = "the-secret-of-the-operator"
	p.fill("token", s.token)
	p.press(enter)
	p.seeText("main", "There are no queues yet")
	p.seeNoViolations("empty")

	s.must("POST", "/topics", `{"id":"orders"}`)
	s.queue("dead")
	s.queue("mails", `"topic_id":"orders"`, `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.queue("forgotten", `"topic_id":"orders"`, `"message_filters":{"country":["fr"]}`)
	s.must("POST", "/queues/mails/messages", `{"data":{}}`)
	received := s.receive("mails", "")
	s.must("PUT", "/messages/"+received[0]+"/nack", `{"error":"no such address"}`)
	for range 3 {
		s.must("POST", "/queues/forgotten/messages", `{"data":{"name":"مرحبا"},"attributes":{"country":"fr"},"group":"acme"}`)
	}
	s.must("GET", "/queues/forgotten/messages?limit=1", "")
	s.must("PUT", "/queues/forgotten/pause", "")
	for _, v := range []struct{ hash, shows string }{
		{"#/", "paused"},
		{"#/queues/dead", "no such address"},
		{"#/queues/forgotten?q=nothing", "No message matches."},
		{"#/queues/forgotten", "in flight"},
		{"#/queues/forgotten/publish", "Attributes"},
		{"#/queues/forgotten/settings", "Save"},
		{"#/queues/forgotten/groups", "acme"},
		{"#/queues/forgotten/consumers", "last hour"},
		{"#/queues/nosuch", "Queue not found"},
		{"#/topics", "dead queue after 1 delivery"},
		{"#/server", "From due to delivered"},
		{"#/messages/" + received[0], "in queue dead"},
	} {
		p.goTo(v.hash)
		p.seeText("main", v.shows)
		p.expect("status of 404")
		p.seeNoViolations(v.hash)
	}
	p.goTo("#/queues/dead")
	p.click("Redrive…")
	p.seeText("dialog", "Destination queue")
	p.seeNoViolations("redrive")
	p.press(escape)
	p.goTo("#/topics")
	p.click("New topic")
	p.press(enter)
	p.expect("status of 422")
	p.seeText("dialog .error:not(:empty)", "Name is required.")
	p.seeNoViolations("new topic")
	p.press(escape)
	p.goTo("#/")
	p.click("New queue")
	p.seeText("dialog", "More settings")
	p.choose("dialog .more summary")
	p.seeNoViolations("new queue")
	p.press(escape)
	s.stop()
	p.seeText("#status", "Retrying…")
	p.seeNoViolations("unreachable")
	s.start()
}

func TestDescriptionOfTheAPIBelongsToTheDashboard(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	p := open(t, s.url())
	p.expect("Password field is not contained in a form")
	p.click("API")
	p.seeText("h1", "queued")
	p.seeNoViolations("docs")
	p.fillIn("#find", "queues pause")
	links := "[...document.querySelectorAll('#contents a')].filter((e) => e.checkVisibility()).map((e) => e.textContent).join()"
	p.see("one operation", links+" === 'Pause the delivery of a queue'")
	p.size(320, 800)
	p.see("no wider than the window", "document.documentElement.scrollWidth <= innerWidth")
	p.click("Pause the delivery of a queue")
	p.see("the operation", "(() => { const { top } = document.getElementById('pauseQueue').getBoundingClientRect(); return top >= 0 && top < innerHeight })()")
	p.click("Topics", "//header")
	p.seeText("h1", "Topics")
}

func TestTwentyFiveQueuesFitOnALaptop(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for n := range 30 {
		s.queue(fmt.Sprintf("queue-%02d", n))
	}
	p := open(t, s.url())
	p.size(1280, 800)
	p.see("25 queues", "[...document.querySelectorAll('.queues tbody tr')].filter((e) => e.getBoundingClientRect().bottom <= innerHeight).length >= 25")
}

// newServerWithThousandQueues starts a server with a thousand queues.
func newServerWithThousandQueues(t testing.TB) *server {
	s := newServer(t)
	for n := range 1000 {
		s.queue(fmt.Sprintf("queue-%04d", n))
	}
	return s
}

// A thousand queues may change at once. Drawing rows takes most of the time, so the
// page draws only the visible ones.
func TestOnlyVisibleRowsAreDrawn(t *testing.T) {
	t.Parallel()
	s := newServerWithThousandQueues(t)
	p := open(t, s.url()+"/#/?sort=id&order=up")
	p.see("all queues", "document.querySelector('.tools').innerText.includes('1000')")
	p.seeText("tr[data-id=queue-0000] td[data-label=Ready]", "0")
	p.run(`window.touched = new Set()
		new MutationObserver((all) => all.forEach((m) => touched.add((m.target.closest ? m.target : m.target.parentElement).closest('tr')?.dataset.id)))
			.observe(document.querySelector('.queues tbody'), { childList: true, characterData: true, subtree: true })`)
	for n := range 1000 {
		s.must("POST", fmt.Sprintf("/queues/queue-%04d/messages", n), `{"data":{}}`)
	}
	p.seeText("tr[data-id=queue-0000] td[data-label=Ready]", "1")
	if n := js[int](p, "touched.size"); n < 5 || n > 60 {
		t.Errorf("%d rows were drawn, want only the visible ones", n)
	}
	p.see("the last queue after scrolling", `(() => {
		scrollTo(0, document.body.scrollHeight)
		return document.querySelector('tr[data-id=queue-0999] td[data-label=Ready]')?.innerText === '1'
	})()`)
}

// BenchmarkThousandQueues reports the longest time for which a page is busy when a third of
// a thousand queues change at once; 0 if it is never busy for 50 ms (W3C Long Tasks).
func BenchmarkThousandQueues(b *testing.B) {
	s := newServerWithThousandQueues(b)
	for _, v := range []struct{ name, path, drawn string }{
		{"Queues", "#/", "document.querySelector('.tools').innerText.includes('1000')"},
		{"Topics", "#/topics", "document.querySelector('main').innerText.includes('topic')"},
		{"Queue", "#/queues/queue-0500", "document.querySelector('h1').innerText.includes('queue-0500')"},
		{"Server", "#/server", "document.querySelector('main').innerText.includes('From due to delivered')"},
	} {
		b.Run(v.name, func(b *testing.B) {
			p := open(b, s.url()+"/"+v.path)
			p.see("the page", v.drawn)
			p.run(`window.longest = 0
				new PerformanceObserver((list) => list.getEntries().forEach((e) => { longest = Math.max(longest, e.duration) })).observe({ type: 'longtask' })
				window.responses = 0
				const real = window.fetch
				window.fetch = (...of) => { if (of[0].includes('/overview')) responses++; return real(...of) }`)
			if v.name == "Queues" {
				p.click("Ready", "//thead") // so that rows change their order
			}
			for round := 0; b.Loop(); round++ {
				before := js[int](p, "responses")
				for n := range 1000 {
					if (n+round)%3 == 0 {
						s.must("POST", fmt.Sprintf("/queues/queue-%04d/messages", n), `{"data":{}}`)
					}
				}
				p.see("the next response", fmt.Sprintf("responses > %d", before+1))
			}
			b.ReportMetric(js[float64](p, "longest"), "ms-longest-task")
			b.ReportMetric(0, "ns/op")
		})
	}
}
