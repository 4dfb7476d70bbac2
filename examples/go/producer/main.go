// Producer publishes each line of its input, a JSON object: producer QUEUE < FILE
package main

import (
	"bufio"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
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
		id, status, err := attempt(queue, data, key)
		final := status >= 400 && status < 500 && status != 429 // no attempt can succeed
		if err == nil || final || delay > 16*time.Second {
			return id, err
		}
		log.Printf("publish: %v; next attempt in %v", err, delay)
		time.Sleep(delay)
	}
}

// attempt sends the request once. The status is 0 if there is no response.
func attempt(queue, data, key string) (id string, status int, err error) {
	r, err := http.NewRequest("POST", url+"/queues/"+queue+"/messages", strings.NewReader(`{"data": `+data+`}`))
	if err != nil {
		return "", 0, err
	}
	r.Header.Set("Authorization", "Bearer "+os.Getenv("QUEUED_TOKEN"))
	r.Header.Set("Idempotency-Key", key)
	response, err := client.Do(r)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	var published struct{ Data [1]struct{ ID string } }
	if err == nil {
		err = json.Unmarshal(body, &published)
	}
	return published.Data[0].ID, response.StatusCode, err
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
