// The program publishes twenty events and processes them: worker URL NAME
//
// The seventh fails the first time, and is delivered again.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
)

type message struct {
	ID               string         `json:"id"`
	QueueID          string         `json:"queue_id"`
	Data             map[string]int `json:"data"`
	DeliveryAttempts int            `json:"delivery_attempts"`
}

type object map[string]any

func main() {
	url, name := os.Args[1], os.Args[2]
	call("POST", url+"/topics", object{"id": name}, nil)
	call("POST", url+"/queues", object{
		"id":                        name,
		"topic_id":                  name,
		"ack_deadline_seconds":      30,
		"message_retention_seconds": 1209600,
	}, nil)
	for n := 1; n <= 20; n++ {
		call("POST", url+"/topics/"+name+"/messages", object{
			"data":       object{"number": n},
			"attributes": object{"event_name": "event1"},
		}, nil)
	}
	for {
		var received struct{ Data []message }
		call("GET", url+"/queues/"+name+"/messages", nil, &received)
		if len(received.Data) == 0 {
			return
		}
		for _, m := range received.Data {
			number := m.Data["number"]
			if number == 7 && m.DeliveryAttempts == 1 {
				call("PUT", url+"/messages/"+m.ID+"/nack", nil, nil)
				continue
			}
			fmt.Println(m.QueueID, number, m.DeliveryAttempts)
			call("PUT", url+"/messages/"+m.ID+"/ack", nil, nil)
		}
	}
}

// call makes a request, and decodes the response into a result unless that is nil.
func call(method, url string, body object, result any) {
	var in bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&in).Encode(body); err != nil {
			log.Fatal(err)
		}
	}
	request, err := http.NewRequest(method, url, &in)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		log.Fatalf("%s %s: %s", method, url, response.Status)
	}
	if result != nil {
		if err := json.NewDecoder(response.Body).Decode(result); err != nil {
			log.Fatal(err)
		}
	}
}
