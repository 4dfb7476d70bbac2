// Worker processes the messages of a queue until SIGTERM: worker QUEUE
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const wait = 5 // seconds, less than the time from SIGTERM to SIGKILL, which is 10 s in Docker

var (
	url      = cmp.Or(os.Getenv("QUEUED_URL"), "http://localhost:8000")
	lease, _ = strconv.Atoi(cmp.Or(os.Getenv("LEASE_SECONDS"), "30")) // the time after a crash until a message is delivered again
	client   = http.Client{Timeout: (wait + 10) * time.Second}
)

type message struct {
	ID          string
	Data        json.RawMessage
	ScheduledAt string `json:"scheduled_at"` // the lease token
}

// process is your work. It may take longer than the lease, and an error is a failed
// delivery. The context ends if another worker got the message.
func process(ctx context.Context, data json.RawMessage) error {
	var mail struct {
		To      string
		Seconds int
	}
	if err := json.Unmarshal(data, &mail); err != nil {
		return err
	}
	if mail.To == "" {
		return errors.New("the message has no address")
	}
	fmt.Println(mail.To)
	select {
	case <-time.After(time.Duration(mail.Seconds) * time.Second):
	case <-ctx.Done():
	}
	return ctx.Err()
}

// statusError is a response that is not a success.
type statusError struct {
	status int
	body   []byte
}

func (e statusError) Error() string { return fmt.Sprintf("%d %s", e.status, e.body) }

// call sends a request up to the number of attempts, and decodes the response.
func call(attempts int, method, path string, body, to any) error {
	for n := 1; ; n++ {
		err := attempt(method, path, body, to)
		var response statusError
		final := errors.As(err, &response) && response.status < 500 && response.status != 429
		if err == nil || n == attempts || final {
			return err
		}
		time.Sleep(time.Duration(n) * time.Second)
	}
}

func attempt(method, path string, body, to any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(method, url+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+os.Getenv("QUEUED_TOKEN"))
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	b, err = io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= 300 {
		err = statusError{response.StatusCode, b}
	}
	if err != nil || len(b) == 0 {
		return err
	}
	return json.Unmarshal(b, to)
}

func (m *message) path(action string) string {
	return "/messages/" + m.ID + "/" + action + "?scheduled_at=" + m.ScheduledAt
}

// extend extends the lease until the context ends. If the lease has ended, it cancels the
// work.
func (m *message) extend(ctx context.Context, cancel func()) {
	ticker := time.NewTicker(time.Duration(lease) * time.Second / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var extended message // has a new lease token
		err := call(1, "PUT", m.path("extend"), map[string]int{"ack_deadline_seconds": lease}, &extended)
		var response statusError
		if err == nil {
			m.ScheduledAt = extended.ScheduledAt
		} else if log.Printf("extend: %v", err); errors.As(err, &response) && response.status < 500 {
			cancel()
		}
	}
}

func handle(m message) {
	ctx, cancel := context.WithCancel(context.Background()) // not that of SIGTERM: the work ends first
	var extending sync.WaitGroup
	extending.Go(func() { m.extend(ctx, cancel) })
	failure := process(ctx, m.Data)
	cancel()
	extending.Wait()
	action, body := "ack", map[string]string{}
	if failure != nil { // after the last delivery the message moves to the dead queue, with this text
		action, body = "nack", map[string]string{"error": failure.Error()}
	}
	// A 409 says that the lease has ended, and another worker may have the message.
	if err := call(5, "PUT", m.path(action), body, nil); err != nil {
		log.Printf("%s: %v", action, err)
	}
}

func main() {
	stopping, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	for stopping.Err() == nil {
		var received struct{ Data []message }
		err := call(1, "POST", "/queues/"+os.Args[1]+"/messages/receive", map[string]int{"limit": 1, "wait_seconds": wait, "ack_deadline_seconds": lease}, &received)
		if err != nil {
			log.Printf("receive: %v", err)
			time.Sleep(time.Second)
		}
		for _, m := range received.Data {
			handle(m)
		}
	}
}
