// The program enqueues twenty jobs of three users and processes them: worker URL QUEUE_TYPE
//
// A user gets one job every 100 ms.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

// reply has the members of all responses.
type reply struct {
	Status            string
	QueueID           string `json:"queue_id"`
	JobID             string `json:"job_id"`
	Payload           struct{ Number int }
	RequeuesRemaining int `json:"requeues_remaining"`
	QueueLength       int `json:"queue_length"`
}

func main() {
	url, queueType := os.Args[1], os.Args[2]
	for n := 1; n <= 20; n++ {
		body := fmt.Sprintf(`{"job_id": "job-%d", "interval": 100, "payload": {"number": %d}, "requeue_limit": 5}`, n, n)
		status, queued := call("POST", fmt.Sprintf("%s/enqueue/%s/user-%d/", url, queueType, n%3), body)
		if status != 201 || queued.Status != "queued" {
			log.Fatalf("enqueue %d: %d %+v", n, status, queued)
		}
	}
	for finished := 0; finished < 20; {
		status, job := call("GET", url+"/dequeue/"+queueType+"/", "")
		if status == 404 { // none is ready yet
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if status != 200 || job.Status != "success" {
			log.Fatalf("dequeue: %d %+v", status, job)
		}
		fmt.Println(job.QueueID, job.Payload.Number, job.RequeuesRemaining)
		status, done := call("POST", url+"/finish/"+queueType+"/"+job.QueueID+"/"+job.JobID+"/", "")
		if status != 200 || done.Status != "success" {
			log.Fatalf("finish %s: %d %+v", job.JobID, status, done)
		}
		finished++
	}
	for user := range 3 {
		status, metrics := call("GET", fmt.Sprintf("%s/metrics/%s/user-%d/", url, queueType, user), "")
		if status != 200 || metrics.QueueLength != 0 {
			log.Fatalf("metrics of user %d: %d %+v", user, status, metrics)
		}
	}
}

// call makes a request, and returns the status and the JSON of the response.
func call(method, url, body string) (status int, v reply) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&v); err != nil {
		log.Fatalf("%s %s: %s, %v", method, url, response.Status, err)
	}
	return response.StatusCode, v
}
