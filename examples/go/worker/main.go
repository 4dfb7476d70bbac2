// Worker processes the messages of a queue until SIGTERM or Ctrl-C: worker QUEUE
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
	ID          string          `json:"id"`
	ScheduledAt string          `json:"scheduled_at"` // the lease token
	Data        json.RawMessage `json:"data,omitempty"`
	Error       string          `json:"error,omitempty"`
}

// work is your work. It may take longer than the lease, and an error is a failed
// delivery. The context ends with the lease, if that could not be extended.
func work(ctx context.Context, data json.RawMessage) error {
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

// call sends a request and decodes the response.
func call(method, path string, body map[string]any, to any) error {
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
	if b, err = io.ReadAll(response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, b)
	}
	return json.Unmarshal(b, to)
}

// process works on a message, and extends its lease meanwhile.
func process(m *message) error {
	ctx, cancel := context.WithCancel(context.Background()) // not that of SIGTERM: the work ends first
	defer cancel()
	length := time.Duration(lease) * time.Second
	end := time.AfterFunc(length, cancel)
	done := make(chan error, 1)
	go func() { done <- work(ctx, m.Data) }()
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(length / 3):
		}
		var extended message // has a new lease token
		err := call("PUT", "/messages/"+m.ID+"/extend?scheduled_at="+m.ScheduledAt, map[string]any{"ack_deadline_seconds": lease}, &extended)
		if err != nil {
			log.Printf("extend: %v", err)
			continue
		}
		m.ScheduledAt = extended.ScheduledAt
		end.Reset(length)
	}
}

func main() {
	stopping, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	acks, nacks := []message{}, []message{} // of the last message, which are sent with the next receive
	for len(acks)+len(nacks) > 0 || stopping.Err() == nil {
		limit := 1
		if stopping.Err() != nil {
			limit = 0
		}
		receive := map[string]any{"limit": limit, "wait_seconds": wait, "ack_deadline_seconds": lease, "ack": acks, "nack": nacks}
		var received struct{ Data []message }
		if err := call("POST", "/queues/"+os.Args[1]+"/messages/receive", receive, &received); err != nil {
			log.Printf("receive: %v", err)
			time.Sleep(time.Second) // and repeat the ack or nack
			continue
		}
		acks, nacks = acks[:0], nacks[:0]
		for _, m := range received.Data {
			if err := process(&m); err != nil { // after the last delivery the message moves to the dead queue, with this text
				log.Printf("%s: %v", m.ID, err)
				nacks = append(nacks, message{ID: m.ID, ScheduledAt: m.ScheduledAt, Error: err.Error()})
			} else {
				acks = append(acks, message{ID: m.ID, ScheduledAt: m.ScheduledAt})
			}
		}
	}
}
