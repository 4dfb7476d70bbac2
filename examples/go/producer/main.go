// Producer publishes each line of its input, a JSON object: producer QUEUE < FILE
package main

import (
	"bufio"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

var (
	url    = cmp.Or(os.Getenv("QUEUED_URL"), "http://localhost:8000")
	client = http.Client{Timeout: 15 * time.Second}
)

// publish publishes a message and returns its id. It tries for up to two minutes, which
// has to be less than the deduplication window of the queue (5 minutes).
func publish(queue, data string) (id string, err error) {
	key := rand.Text() // the same in each attempt: the message is stored once
	for delay := time.Second; ; delay *= 2 {
		id, retryAfter, err := attempt(queue, data, key)
		if err == nil || delay > 16*time.Second || retryAfter < 0 {
			return id, err
		}
		retryAfter = cmp.Or(retryAfter, delay)
		log.Printf("publish: %v; next attempt in %v", err, retryAfter)
		time.Sleep(retryAfter)
	}
}

// attempt sends the request once. retryAfter is negative if no attempt can succeed, and 0
// if the server does not say when to repeat the request.
func attempt(queue, data, key string) (id string, retryAfter time.Duration, err error) {
	r, err := http.NewRequest("POST", url+"/queues/"+queue+"/messages", strings.NewReader(`{"data": `+data+`}`))
	if err != nil {
		return "", -1, err
	}
	r.Header.Set("Authorization", "Bearer "+os.Getenv("QUEUED_TOKEN"))
	r.Header.Set("Idempotency-Key", key)
	response, err := client.Do(r)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	var body struct {
		Data   []struct{ ID string }
		Detail any
	}
	err = json.NewDecoder(response.Body).Decode(&body)
	switch {
	case response.StatusCode == 429 || response.StatusCode >= 500:
		seconds, _ := strconv.Atoi(response.Header.Get("Retry-After"))
		return "", time.Duration(seconds) * time.Second, fmt.Errorf("%s: %v", response.Status, body.Detail)
	case response.StatusCode != 201:
		return "", -1, fmt.Errorf("%s: %v", response.Status, body.Detail)
	case err != nil: // the response is incomplete
		return "", 0, err
	}
	return body.Data[0].ID, 0, nil
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		id, err := publish(os.Args[1], lines.Text())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(id)
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}
