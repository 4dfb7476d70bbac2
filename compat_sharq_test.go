package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// These are the requests and responses in SharQ's documentation.
func TestSharQRespondsLikeSharQ(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	const job = `{"job_id":"cea84623-be35-4368-90fa-7736570dabc4","payload":{"message":"hello, world"},"interval":1000}`
	invalid := func(name string) string {
		return fmt.Sprintf("{\"status\":\"failure\",\"message\":\"`%s` has an invalid value.\"}", name)
	}
	missing := func(name string) string {
		return fmt.Sprintf("{\"status\":\"failure\",\"message\":\"`%s` is a mandatory parameter.\"}", name)
	}
	const failure, success = `{"status":"failure"}`, `{"status":"success"}`
	s.play([]step{
		{"GET", "/", "", 200, `{"message":"Hello, SharQ!"}`},
		{"GET", "/deepstatus/", "", 200, success},
		{"GET", "/dequeue/", "", 404, failure},
		{"GET", "/dequeue/sms/", "", 404, failure},
		{"POST", "/enqueue/sms/johndoe/", job, 201, `{"status":"queued"}`},
		{"POST", "/enqueue/sms/johndoe", strings.Replace(job, "cea", "dea", 1), 201, `{"status":"queued"}`},
		{"GET", "/dequeue/sms/", "", 200, `{"status":"success","queue_id":"johndoe","job_id":"UUID","payload":{"message":"hello, world"},"requeues_remaining":-1,"current_queue_length":1}`},
		{"GET", "/dequeue/sms/", "", 404, failure},
		{"POST", "/finish/sms/johndoe/dea84623-be35-4368-90fa-7736570dabc4/", "", 404, failure},
		{"POST", "/finish/sms/johndoe/cea84623-be35-4368-90fa-7736570dabc4/", "", 200, success},
		{"POST", "/finish/sms/johndoe/cea84623-be35-4368-90fa-7736570dabc4/", "", 404, failure},
		{"POST", "/interval/sms/johndoe/", `{"interval":5000}`, 200, success},
		{"POST", "/interval/sms/unknown/", `{"interval":5000}`, 404, failure},
		{"POST", "/interval/none/unknown/", `{"interval":5000}`, 404, failure},
		{"GET", "/metrics/sms/", "", 200, `{"status":"success","queue_ids":["johndoe"]}`},
		{"GET", "/metrics/none/", "", 200, `{"status":"success","queue_ids":[]}`},
		{"DELETE", "/deletequeue/sms/johndoe/", "", 200, `{"status":"Success","message":"Successfully removed all queued calls"}`},
		{"DELETE", "/deletequeue/sms/johndoe/", `{"purge_all":true}`, 200, `{"status":"Failure","message":"No queued calls found"}`},
		{"DELETE", "/deletequeue/none/johndoe/", "", 200, `{"status":"Failure","message":"No queued calls found"}`},
		{"POST", "/enqueue/sms/johndoe/", job, 201, `{"status":"queued"}`},
		{"DELETE", "/deletequeue/sms/johndoe/", `{"purge_all":true}`, 200, `{"status":"Success","message":"Successfully removed all queued calls and purged related resources"}`},

		{"POST", "/enqueue/sms/johndoe/", `{"payload":{},"interval":1}`, 400, missing("job_id")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":"a","payload":{}}`, 400, missing("interval")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":"a","interval":1}`, 400, missing("payload")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":"a b","payload":{},"interval":1}`, 400, invalid("job_id")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":7,"payload":{},"interval":1}`, 400, invalid("job_id")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":"a","payload":{},"interval":-1}`, 400, invalid("interval")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":"a","payload":{},"interval":1.5}`, 400, invalid("interval")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":"a","payload":{},"interval":"1"}`, 400, invalid("interval")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":"a","payload":{},"interval":null}`, 400, invalid("interval")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":"a","payload":{},"interval":1,"requeue_limit":-2}`, 400, invalid("requeue_limit")},
		{"POST", "/enqueue/sms/johndoe/", `{"job_id":"a","payload":{"max_queued_length":"x"},"interval":1}`, 400, invalid("max_queued_length")},
		{"POST", "/enqueue/s.s/johndoe/", job, 400, invalid("queue_type")},
		{"POST", "/enqueue/sms/" + strings.Repeat("a", 101) + "/", job, 400, invalid("queue_id")},
		{"POST", "/enqueue/sms/johndoe/", `[1]`, 400, `{"status":"failure","message":"[body]: value is not a valid dict"}`},
		{"POST", "/enqueue/sms/johndoe/", ``, 400, `{"status":"failure","message":"[body]: field required"}`},
		{"POST", "/interval/sms/johndoe/", `{"interval":"x"}`, 400, invalid("interval")},
		{"POST", "/interval/sms/johndoe/", `{}`, 400, missing("interval")},
		{"DELETE", "/deletequeue/sms/johndoe/", `[1]`, 400, `{"status":"failure","message":"[body]: value is not a valid dict"}`},
		{"GET", "/dequeue/s.s/", "", 400, invalid("queue_type")},
		{"GET", "/dequeue/sms/?wait_seconds=x", "", 422, `{"status":"failure","message":"[query wait_seconds]: value is not a valid float"}`},
		{"POST", "/finish/s.s/johndoe/a/", "", 400, invalid("queue_type")},
		{"GET", "/status/s.s/johndoe/a/", "", 400, invalid("queue_type")},
	})
	if v := s.do("GET", "/metrics", ""); !strings.Contains(v.body, "http_requests_total") {
		t.Errorf("/metrics is not Prometheus's: %.200s", v.body)
	}
}

// Every route refuses the names and numbers that are invalid in SharQ's own tests.
func TestSharQRefusesWhatItsTestsRefuse(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	const queueType, queueID, jobID = "5m5_qu-eue", "queue_001-", "96c82500-9f88-11e3-bb98-22000ac6964a"
	refused := func(method, path, body, name string) {
		t.Helper()
		got := s.must(400, method, path, body)
		checkDiff(t, method+" "+path+" "+body, fmt.Sprintf("{\"status\":\"failure\",\"message\":\"`%s` has an invalid value.\"}", name), got)
	}
	everywhere := func(queueType, queueID, name string) {
		t.Helper()
		pair := queueType + "/" + queueID + "/"
		refused("POST", "/enqueue/"+pair, `{"job_id":"a","interval":1,"payload":{}}`, name)
		refused("POST", "/finish/"+pair+jobID+"/", "", name)
		refused("POST", "/interval/"+pair, `{"interval":5000}`, name)
		refused("GET", "/metrics/"+pair, "", name)
		refused("DELETE", "/deletequeue/"+pair, `{}`, name)
	}
	for _, v := range []string{"s!ms_queue", "s!ms%20queue"} {
		everywhere(v, queueID, "queue_type")
		refused("GET", "/dequeue/"+v+"/", "", "queue_type")
		refused("GET", "/metrics/"+v+"/", "", "queue_type")
	}
	for _, v := range []string{"queue%23002", "queue%20002"} {
		everywhere(queueType, v, "queue_id")
	}
	for _, v := range []string{"93 c8", "93)c8", ""} {
		refused("POST", "/enqueue/sms/a/", fmt.Sprintf(`{"job_id":%q,"interval":1,"payload":{}}`, v), "job_id")
		if v != "" {
			refused("POST", "/finish/sms/a/"+strings.ReplaceAll(v, " ", "%20")+"/", "", "job_id")
		}
	}
	for _, v := range []string{`"100"`, `"$#"`, `""`, `-1`} {
		refused("POST", "/enqueue/sms/a/", `{"job_id":"a","payload":{},"interval":`+v+`}`, "interval")
		refused("POST", "/interval/sms/a/", `{"interval":`+v+`}`, "interval")
	}
	for _, v := range []string{`"100"`, `"$#"`, `""`, `-2`} {
		refused("POST", "/enqueue/sms/a/", `{"job_id":"a","payload":{},"interval":1,"requeue_limit":`+v+`}`, "requeue_limit")
	}
	for i, v := range []string{"5", "0", "-1"} {
		s.must(201, "POST", "/enqueue/"+queueType+"/"+queueID+"/", fmt.Sprintf(`{"job_id":"j%d","payload":{},"interval":5000,"requeue_limit":%s}`, i, v))
	}
}

// A client may send null for an optional parameter.
func TestSharQTakesNullForWhatIsLeftOut(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.limits.requeueLimit = 3
	enqueueJob(s, "g", "j", `,"requeue_limit":null`)
	checkDiff(t, "remaining", 3, dequeueJob(s).RequeuesRemaining)
	s.must(201, "POST", "/enqueue/default/g/", `{"job_id":"k","interval":0,"payload":{"max_queued_length":null}}`)
	checkDiff(t, "removed", `{"status":"Success","message":"Successfully removed all queued calls"}`, s.must(200, "DELETE", "/deletequeue/default/g/", `{"purge_all":null}`))
}

func TestSharQGivesAPairOneJobInItsInterval(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, id := range []string{"a", "b"} {
		s.must(201, "POST", "/enqueue/default/g/", fmt.Sprintf(`{"job_id":%q,"payload":{"to":"1000000000"},"interval":2000}`, id))
	}
	checkDiff(t, "first", sharQReply{"success", "g", "a", json.RawMessage(`{"to":"1000000000"}`), -1, 1}, dequeueJob(s))
	checkDiff(t, "within the interval", "failure", dequeueJob(s).Status)
	s.exec("UPDATE queued.groups SET ready_at = now(), limited_until = now()")
	checkDiff(t, "after it", "b", dequeueJob(s).JobID)
}

func TestSharQJobWithoutALimitComesBackForEver(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	enqueueJob(s, "g", "j", `,"requeue_limit":-1`)
	for range 4 {
		v := dequeueJob(s)
		checkDiff(t, "job", "j -1", fmt.Sprint(v.JobID, " ", v.RequeuesRemaining))
		expireJobs(s)
	}
}

// SharQ forgets an interval when the job expires, which may be earlier.
func TestSharQIntervalIsKeptBeyondTheDeadline(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/enqueue/default/g/", `{"job_id":"a","payload":{},"interval":3600000}`)
	dequeueJob(s)
	s.endLeases() // the deadline of 60 s has passed
	checkDiff(t, "within the interval", "failure", dequeueJob(s).Status)
}

func TestSharQMetricsAreThoseOfItsTests(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	check := func(when string, types, ids []string, length int, in, out int64) {
		t.Helper()
		var queues, groups, group struct {
			Types  []string `json:"queue_types"`
			IDs    []string `json:"queue_ids"`
			Length int      `json:"queue_length"`
		}
		mustDecode(t, s.must(200, "GET", "/metrics/", ""), &queues)
		mustDecode(t, s.must(200, "GET", "/metrics/default/", ""), &groups)
		mustDecode(t, s.must(200, "GET", "/metrics/default/g/", ""), &group)
		checkDiff(t, "queue types "+when, types, queues.Types)
		checkDiff(t, "queue ids "+when, ids, groups.IDs)
		checkDiff(t, "queue length "+when, length, group.Length)
		for _, path := range []string{"/metrics/", "/metrics/default/g/"} {
			checkDiff(t, path+" "+when, [2]int64{in, out}, sumOfCounts(&s.client, path))
		}
	}
	check("at first", []string{}, []string{}, 0, 0, 0)
	dequeueJob(s)
	check("after an empty dequeue", []string{}, []string{}, 0, 0, 0)
	enqueueJob(s, "g", "j", "")
	check("while it waits", []string{"default"}, []string{"g"}, 1, 1, 0)
	dequeueJob(s)
	check("in flight", []string{"default"}, []string{"g"}, 0, 1, 1)
	s.must(200, "POST", "/finish/default/g/j/", "")
	check("when it is finished", []string{}, []string{}, 0, 1, 1)
}

func TestSharQTypesCreatedByUseHaveTheDefaultDeadline(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.limits.defaultAckDeadline = 300
	enqueueJob(s, "g", "j", "")
	var q struct {
		AckDeadline int `json:"ack_deadline_seconds"`
		Retention   int `json:"message_retention_seconds"`
	}
	mustDecode(t, s.must(200, "GET", "/queues/default", ""), &q)
	checkDiff(t, "settings", [2]int{300, noExpirySeconds}, [2]int{q.AckDeadline, q.Retention})
}

// enqueueJob enqueues a job, of the default type, whose payload is its id.
func enqueueJob(s *testServer, group, id, more string) {
	s.t.Helper()
	s.must(201, "POST", "/enqueue/default/"+group+"/", fmt.Sprintf(`{"job_id":%q,"payload":%q,"interval":0%s}`, id, id, more))
}

type sharQReply struct {
	Status            string
	QueueID           string `json:"queue_id"`
	JobID             string `json:"job_id"`
	Payload           json.RawMessage
	RequeuesRemaining int `json:"requeues_remaining"`
	Length            int `json:"current_queue_length"`
}

// dequeueJob returns the next job, or a failure if none is ready.
func dequeueJob(s *testServer) (v sharQReply) {
	s.t.Helper()
	got := s.do("GET", "/dequeue/", "")
	if err := json.Unmarshal([]byte(got.body), &v); err != nil {
		s.t.Fatal(err, got.body)
	}
	return v
}

// expireJobs ends all leases.
func expireJobs(s *testServer) {
	s.t.Helper()
	s.endLeases()
	s.makeGroupsReady()
}

func TestSharQJobThatSaysNothingComesBackAsOftenAsTheServerSays(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.server.limits.requeueLimit = 3
	enqueueJob(s, "g", "j", "")
	checkDiff(t, "remaining", 3, dequeueJob(s).RequeuesRemaining)
}

func TestSharQPayloadsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for i, payload := range []string{`{"a":1.50}`, `{}`, `[1, 2]`, `"text"`, `null`, `7`, `{"payload":1}`, `{"payload":{"payload":null}}`, `"\u0000"`} {
		s.must(201, "POST", "/enqueue/default/g/", fmt.Sprintf(`{"job_id":"j%d","interval":0,"payload":%s}`, i, payload))
		checkDiff(t, "payload", payload, string(dequeueJob(s).Payload))
	}
}

func TestSharQJobIsDroppedAfterItsRequeues(t *testing.T) {
	t.Parallel()
	for what, again := range map[string]func(s *testServer){
		"by its deadline": func(s *testServer) { expireJobs(s) },
		"by a nack": func(s *testServer) {
			var id string
			if err := s.store.db.QueryRow("SELECT id FROM queued.messages").Scan(&id); err != nil {
				s.t.Fatal(err)
			}
			s.must(204, "PUT", "/messages/"+id+"/nack", "")
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			enqueueJob(s, "g", "j", `,"requeue_limit":2`)
			for _, want := range []int{2, 1, 0} {
				v := dequeueJob(s)
				checkDiff(t, "remaining", want, v.RequeuesRemaining)
				checkDiff(t, "job", "j", v.JobID)
				again(s)
			}
			checkDiff(t, "then", "failure", dequeueJob(s).Status)
			s.mustCleanUp()
			checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.messages"))
			s.wantMetrics(`queued_messages_dropped_total{queue="default"} 1`)
		})
	}
}

func TestSharQJobIsNotQueuedTwiceWhileItWaits(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	enqueueJob(s, "g", "first", "")
	enqueueJob(s, "g", "second", "")
	s.must(201, "POST", "/enqueue/default/g/", `{"job_id":"first","payload":"new","interval":0}`)
	v := dequeueJob(s)
	checkDiff(t, "first, with the new payload", sharQReply{"success", "g", "first", json.RawMessage(`"new"`), -1, 1}, v)
	enqueueJob(s, "g", "first", "") // while the other is in flight
	s.must(200, "POST", "/finish/default/g/first/", "")
	s.must(404, "POST", "/finish/default/g/first/", "")
	checkDiff(t, "next", "second", dequeueJob(s).JobID)
	checkDiff(t, "queued anew", "first", dequeueJob(s).JobID)
	checkDiff(t, "no more", "failure", dequeueJob(s).Status)
}

func TestSharQJobsThatShareABatchHurtNoneOfThem(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	enqueueJob(s, "g", "a", "")
	dequeueJob(s)
	draftOf := func(id string, most *int) *publication {
		return &publication{queueID: "default", messages: []draft{{data: []byte(`{}`), group: "g", job: &job{id: id, maxWaiting: most}}}}
	}
	unknown := draftOf("x", nil)
	unknown.queueID = "unknown"
	session := newPinnedConn(s.store.db, s.server.metrics)
	defer session.close()
	batch := []*publication{draftOf("b", nil), draftOf("c", new(2)), unknown, draftOf("b", nil), draftOf("d", new(2)), draftOf("e", new(3)), {queueID: "default", messages: []draft{{data: []byte(`{}`)}}}}
	if err := s.engine.runPublications(session, batch); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range batch {
		got = append(got, fmt.Sprint(len(p.stored), " ", p.err))
	}
	checkDiff(t, "outcomes", []string{"1 <nil>", "1 <nil>", "0 queue not found", "1 <nil>", "0 2 messages wait in the group already", "1 <nil>", "1 <nil>"}, got)
	checkDiff(t, "the same job has one message", batch[0].stored[0].ID, batch[3].stored[0].ID)
	checkDiff(t, "messages", 5, s.count("SELECT count(*) FROM queued.messages"))
}

func TestSharQJobThatIsQueuedAgainIsKeptAsLongAsANewOne(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("default")
	enqueueJob(s, "g", "j", "")
	s.changeMessages("expired_at = now() + interval '1 second'")
	enqueueJob(s, "g", "j", "")
	checkDiff(t, "kept", 1, s.count("SELECT count(*) FROM queued.messages WHERE expired_at > now() + interval '59 minutes'"))
}

// An ack locks the message and then its group, and an enqueue locks the group first.
// They must not deadlock.
func TestSharQJobIsQueuedWhileTheSameJobIsFinished(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	enqueueJob(s, "g", "j", "")
	tx := s.begin("DELETE FROM queued.messages")
	enqueueJob(s, "g", "j", "")
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "job", "j", dequeueJob(s).JobID)
}

// Otherwise, each job of a group that fills up would cost all publishers a commit. The
// outcomes are those of one job after the other.
func TestSharQJobsOfOneGroupShareAStatement(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	enqueueJob(s, "g", "a", "")
	enqueueJob(s, "g", "b", "")
	session := newPinnedConn(s.store.db, s.server.metrics)
	defer session.close()
	var batch []*publication
	for _, id := range []string{"c", "b", "d", "e", "c", "f"} {
		batch = append(batch, &publication{queueID: "default", messages: []draft{{data: fmt.Appendf(nil, `{"n":%d}`, len(batch)), group: "g", job: &job{id: id, maxWaiting: new(4)}}}})
	}
	if err := s.engine.runPublications(session, batch); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range batch {
		got = append(got, fmt.Sprint(p.messages[0].job.id, " ", len(p.stored), " ", p.messages[0].job.waiting, " ", p.err))
	}
	const full = "4 messages wait in the group already"
	checkDiff(t, "outcomes", []string{"c 1 2 <nil>", "b 1 3 <nil>", "d 1 3 <nil>", "e 0 4 " + full, "c 1 4 <nil>", "f 0 4 " + full}, got)
	for _, want := range []string{`"a"`, `{"n":1}`, `{"n":4}`, `{"n":2}`, ""} {
		checkDiff(t, "payload", want, string(dequeueJob(s).Payload))
	}
	checkDiff(t, "transactions", 1, s.count("SELECT count(DISTINCT created_at) FROM queued.messages WHERE job_id IN ('c', 'd')"))
}

func TestSharQRefusesMoreThanAQueueHolds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	enqueue := func(id string, status int, want string) {
		t.Helper()
		got := s.must(status, "POST", "/enqueue/default/g/", fmt.Sprintf(`{"job_id":%q,"payload":{"max_queued_length":1},"interval":0}`, id))
		checkDiff(t, "response", want, got)
	}
	enqueue("a", 201, `{"status":"queued","current_queue_length":0}`)
	enqueue("b", 429, `{"status":"failure","message":"Max queue length reached","current_queue_length":1}`)
	dequeueJob(s)
	enqueue("b", 201, `{"status":"queued","current_queue_length":0}`)
	expireJobs(s)
	enqueue("c", 429, `{"status":"failure","message":"Max queue length reached","current_queue_length":2}`)
}

func TestSharQCountsJobsThatWaitForTheirRetry(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("default", `"retry_backoff_seconds":[100]`)
	enqueueJob(s, "g", "a", "")
	checkDiff(t, "first job", "a", dequeueJob(s).JobID)
	s.changeMessages(shift("lease_end", "-2 minutes")) // the lease has ended, and the retry is due later
	got := s.must(429, "POST", "/enqueue/default/g/", `{"job_id":"b","payload":{"max_queued_length":1},"interval":0}`)
	checkDiff(t, "response to an enqueue", `{"status":"failure","message":"Max queue length reached","current_queue_length":1}`, got)
	enqueueJob(s, "g", "b", "")
	s.makeGroupsReady()
	v := dequeueJob(s)
	checkDiff(t, "second job, with the jobs that wait", "b 1", fmt.Sprint(v.JobID, " ", v.Length))
}

// SharQ accepts any number as a maximum, and any value as a condition.
func TestSharQTakesNumbersAndConditionsAsPythonDoes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	const more, cleared, purged = `{"status":"queued","current_queue_length":1}`, "Successfully removed all queued calls", "Successfully removed all queued calls and purged related resources"
	full := func(waiting int) string {
		return fmt.Sprintf(`{"status":"failure","message":"Max queue length reached","current_queue_length":%d}`, waiting)
	}
	enqueueJob(s, "g", "a", "")
	for _, v := range []struct {
		most   string
		status int
		want   string
	}{{"-1", 429, full(1)}, {"0", 429, full(1)}, {"1.0", 429, full(1)}, {"1.5", 201, more}, {"2", 429, full(2)}, {"1e99", 201, strings.Replace(more, "1", "2", 1)}} {
		got := s.must(v.status, "POST", "/enqueue/default/g/", fmt.Sprintf(`{"job_id":"j%s","interval":0,"payload":{"max_queued_length":%s}}`, strings.ReplaceAll(v.most, ".", "_"), v.most))
		checkDiff(t, "response with "+v.most, v.want, got)
	}
	for value, want := range map[string]string{"true": purged, "1": purged, `"yes"`: purged, "false": cleared, "0": cleared, `""`: cleared} {
		enqueueJob(s, "h", "a", "")
		got := s.must(200, "DELETE", "/deletequeue/default/h/", `{"purge_all":`+value+`}`)
		checkDiff(t, "response to "+value, fmt.Sprintf(`{"status":"Success","message":%q}`, want), got)
	}
}

func TestSharQIntervalCountsFromTheLastDequeue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	enqueueJob(s, "g", "a", "")
	checkDiff(t, "first", "a", dequeueJob(s).JobID)
	s.must(201, "POST", "/enqueue/default/g/", `{"job_id":"b","payload":{},"interval":3600000}`)
	checkDiff(t, "the new interval counts", "failure", dequeueJob(s).Status)
	s.must(201, "POST", "/enqueue/default/g/", `{"job_id":"c","payload":{},"interval":0}`)
	checkDiff(t, "the newest interval counts", "b", dequeueJob(s).JobID)
	s.must(200, "POST", "/interval/default/g/", `{"interval":3600000}`)
	checkDiff(t, "a changed interval counts", "failure", dequeueJob(s).Status)
	poll := make(chan string, 1)
	go func() {
		v, err := s.send(context.Background(), "GET", "/dequeue/?wait_seconds=30", "")
		poll <- fmt.Sprint(v.body, err)
	}()
	s.waiting("default", 1)
	s.must(200, "POST", "/interval/default/g/", `{"interval":0}`)
	if got := <-poll; !strings.Contains(got, `"job_id":"c"`) {
		t.Errorf("a waiting dequeue returns %s", got)
	}
}

func TestSharQWaitsForTheFirstJobOfAType(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	poll := make(chan string, 1)
	go func() {
		v, err := s.send(context.Background(), "GET", "/dequeue/new/?wait_seconds=30", "")
		poll <- fmt.Sprint(v.body, err)
	}()
	s.waiting("new", 1)
	s.must(201, "POST", "/enqueue/new/g/", `{"job_id":"a","payload":{},"interval":0}`)
	if got := <-poll; !strings.Contains(got, `"job_id":"a"`) {
		t.Errorf("a waiting dequeue returns %s", got)
	}
}

// Each response shows what any server has confirmed before.
func TestSharQCountsAreThoseOfAllServers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := newTestServerOn(t, s.dsn)
	check := func(path string, in, out int64) {
		t.Helper()
		checkDiff(t, path, [2]int64{in, out}, sumOfCounts(&s.client, path))
		checkDiff(t, path+" at the other server", [2]int64{in, out}, sumOfCounts(&other.client, path))
	}
	enqueueJob(s, "g", "a", "")
	check("/metrics/", 1, 0)
	enqueueJob(other, "g", "b", "")
	check("/metrics/default/g/", 2, 0)
	s.must(201, "POST", "/enqueue/default/g/", `{"job_id":"b","interval":0,"payload":{"max_queued_length":9}}`)
	other.must(429, "POST", "/enqueue/default/g/", `{"job_id":"c","interval":0,"payload":{"max_queued_length":1}}`)
	enqueueJob(other, "h", "c", "")
	enqueueJob(other, "default", "d", "")
	s.must(201, "POST", "/enqueue/sms/g/", `{"job_id":"a","interval":0,"payload":{}}`)
	check("/metrics/", 6, 0)
	dequeueJob(other)
	check("/metrics/default/g/", 3, 1)
	dequeueJob(s)
	check("/metrics/default/h/", 1, 1)
	s.must(201, "POST", "/queues/default/messages", `{"data":{}}`)
	for range 3 {
		dequeueJob(s)
	}
	check("/metrics/default/default/", 1, 2) // with the message without a group
	check("/metrics/", 6, 5)
	check("/metrics/none/g/", 0, 0)
	if got := s.must(200, "GET", "/metrics/default/g/", ""); !strings.HasPrefix(got, `{"status":"success","queue_length":0,"enqueue_counts":{"`) {
		t.Errorf("metrics of a pair: %s", got)
	}
	if got := s.must(200, "GET", "/metrics/", ""); !strings.HasPrefix(got, `{"status":"success","queue_types":["default","sms"],`) {
		t.Errorf("metrics: %s", got)
	}
}

func TestSharQCountsAreKeptForTenMinutes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("default")
	// Without the ninth minute ago, which may be the tenth when the server looks.
	s.exec(`INSERT INTO queued.job_counts (home, minute, queue_key, group_id, dequeued, jobs)
		SELECT home, date_trunc('minute', now()) - make_interval(mins => n), key, 'g', true, n FROM queued.queues, generate_series(1, 12) AS n WHERE n <> 9`)
	checkDiff(t, "sum", [2]int64{0, 36}, sumOfCounts(&s.client, "/metrics/default/g/"))
	s.mustCleanUp()
	checkDiff(t, "sum after the cleanup", [2]int64{0, 36}, sumOfCounts(&s.client, "/metrics/default/g/"))
	checkDiff(t, "rows that stay", 8, s.count("SELECT count(*) FROM queued.job_counts"))
}

// sumOfCounts returns the numbers of enqueued and dequeued jobs in the last ten minutes.
func sumOfCounts(c *client, path string) (sum [2]int64) {
	c.t.Helper()
	var v struct {
		In  map[string]int64 `json:"enqueue_counts"`
		Out map[string]int64 `json:"dequeue_counts"`
	}
	mustDecode(c.t, c.must(200, "GET", path, ""), &v)
	for _, counts := range []map[string]int64{v.In, v.Out} {
		checkDiff(c.t, "minutes", countedMinutes, len(counts))
		for key := range counts {
			if !regexp.MustCompile(`^\d+0000$`).MatchString(key) {
				c.t.Errorf("key %s is not a minute", key)
			}
		}
	}
	for minute := range v.In {
		sum[0], sum[1] = sum[0]+v.In[minute], sum[1]+v.Out[minute]
	}
	return sum
}

func TestSharQJobsAreMessagesOfTheNativeAPI(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	enqueueJob(s, "g", "a", "")
	peeked := s.must(200, "GET", "/queues/default/messages/peek", "")
	if !strings.Contains(peeked, `"data":{"payload":"a"}`) || !strings.Contains(peeked, `"group":"g"`) {
		t.Errorf("peek shows %s", peeked)
	}
	state := func(job, want string) {
		t.Helper()
		checkDiff(t, "state", fmt.Sprintf(`{"status":"success","state":%q}`, want), s.must(200, "GET", "/status/default/g/"+job+"/", ""))
	}
	state("a", "ready")
	id := s.receive("default", "")[0].ID
	state("a", "in_flight")
	s.must(204, "PUT", "/messages/"+id+"/ack", "")
	s.must(404, "GET", "/status/default/g/a/", "")

	s.must(201, "POST", "/queues/default/messages", `{"group":"ä b","data":{"n":1}}`)
	s.must(201, "POST", "/queues/default/messages", `{"data":{"n":2}}`)
	for range 2 {
		v := dequeueJob(s)
		path := strings.ReplaceAll(v.QueueID, " ", "%20") + "/" + v.JobID + "/"
		checkDiff(t, "state", `{"status":"success","state":"in_flight"}`, s.must(200, "GET", "/status/default/"+path, ""))
		s.must(200, "POST", "/finish/default/"+path, "")
	}
	checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.messages"))
	s.wantMetrics(`http_requests_total{handler="/dequeue/",method="GET",status="2xx"} 2`, `queued_messages_acked_total{queue="default"} 3`, `queued_messages_published_total{queue="default"} 3`, `queued_messages_delivered_total{queue="default"} 3`)
}

func TestSharQReportsThatTheDatabaseIsUnavailable(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.ready.Store(false)
	v := s.do(http.MethodGet, "/deepstatus/", "")
	checkDiff(t, "status", 503, v.status)
	checkDiff(t, "body", `{"status":"failure","message":"database unavailable; try again later"}`, v.body)
	checkDiff(t, "others", 503, s.do("GET", "/dequeue/", "").status)
}

func TestSharQJobIsNotDroppedFromADeadQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustQueue("default", `"dead_queue_id":"dead"`, `"message_max_deliveries":100`)
	enqueueJob(s, "g", "j", `,"requeue_limit":0`)
	dequeueJob(s)
	expireJobs(s)
	s.mustCleanUp()
	for range 3 {
		all := s.receive("dead", "")
		if len(all) != 1 {
			t.Fatalf("the dead queue has %v", all)
		}
		s.must(204, "PUT", "/messages/"+all[0].ID+"/nack", "")
	}
	s.must(204, "PUT", "/queues/dead/redrive", `{"destination_queue_id":"default"}`)
	checkDiff(t, "redriven", "j", dequeueJob(s).JobID)
}
