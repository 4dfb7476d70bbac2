package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

// nodbMessage is a message as the API of queued shows it.
type nodbMessage struct {
	ID               string            `json:"id"`
	QueueID          string            `json:"queue_id"`
	Data             json.RawMessage   `json:"data"`
	Attributes       map[string]string `json:"attributes"`
	DeliveryAttempts int               `json:"delivery_attempts"`
	ExpiredAt        string            `json:"expired_at"`
	ScheduledAt      string            `json:"scheduled_at"`
	CreatedAt        string            `json:"created_at"`
	UpdatedAt        string            `json:"updated_at"`
}

type nodbDraft struct {
	Data       json.RawMessage   `json:"data"`
	Attributes map[string]string `json:"attributes"`
}

// serveNoDB serves the requests of queued bench with the same JSON as queued. It keeps
// messages in a channel. So it measures the cost of net/http and encoding/json without a
// database.
func serveNoDB(l net.Listener) error {
	messages := make(chan nodbMessage, 10_000_000)
	newMessage := func(queueID string, d nodbDraft) nodbMessage {
		var id [16]byte
		rand.Read(id[:])
		now := time.Now().UTC().Format("2006-01-02T15:04:05.000000")
		return nodbMessage{fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]),
			queueID, d.Data, d.Attributes, 0, now, now, now, now}
	}
	respond := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	data := func(all []nodbMessage) any { return map[string]any{"data": all} }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(200) })
	mux.HandleFunc("POST /queues", func(w http.ResponseWriter, r *http.Request) {
		for len(messages) > 0 {
			<-messages
		}
		w.WriteHeader(201)
	})
	mux.HandleFunc("DELETE /queues/{id}", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("POST /queues/{id}/messages", func(w http.ResponseWriter, r *http.Request) {
		var d nodbDraft
		if err := json.NewDecoder(r.Body).Decode(&d); err != nil {
			respond(w, 422, err.Error())
			return
		}
		m := newMessage(r.PathValue("id"), d)
		messages <- m
		respond(w, 201, data([]nodbMessage{m}))
	})
	mux.HandleFunc("POST /queues/{id}/messages/batch", func(w http.ResponseWriter, r *http.Request) {
		var batch struct{ Messages []nodbDraft }
		if err := json.NewDecoder(r.Body).Decode(&batch); err != nil {
			respond(w, 422, err.Error())
			return
		}
		var all []nodbMessage
		for _, d := range batch.Messages {
			m := newMessage(r.PathValue("id"), d)
			messages <- m
			all = append(all, m)
		}
		respond(w, 201, data(all))
	})
	receive := func(limit int, seconds float64) []nodbMessage {
		all := []nodbMessage{}
		timer := time.NewTimer(time.Duration(seconds * float64(time.Second)))
		defer timer.Stop()
		select {
		case m := <-messages:
			all = append(all, m)
		case <-timer.C:
		}
		for len(all) > 0 && len(all) < limit {
			select {
			case m := <-messages:
				all = append(all, m)
				continue
			default:
			}
			break
		}
		return all
	}
	mux.HandleFunc("GET /queues/{id}/messages", func(w http.ResponseWriter, r *http.Request) {
		limit, _ := strconv.Atoi(r.FormValue("limit"))
		seconds, _ := strconv.ParseFloat(r.FormValue("wait_seconds"), 64)
		respond(w, 200, data(receive(limit, seconds)))
	})
	mux.HandleFunc("POST /queues/{id}/messages/receive", func(w http.ResponseWriter, r *http.Request) {
		var v struct {
			Limit       int
			WaitSeconds float64 `json:"wait_seconds"`
			Ack         []string
		}
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			respond(w, 422, err.Error())
			return
		}
		respond(w, 200, map[string]any{"data": receive(v.Limit, v.WaitSeconds), "conflicts": []string{}})
	})
	mux.HandleFunc("PUT /messages/{id}/ack", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("PUT /messages/ack", func(w http.ResponseWriter, r *http.Request) {
		var ids struct{ IDs []string }
		if err := json.NewDecoder(r.Body).Decode(&ids); err != nil {
			respond(w, 422, err.Error())
			return
		}
		w.WriteHeader(204)
	})
	return http.Serve(l, mux)
}
