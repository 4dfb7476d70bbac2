// The program inserts twenty messages, browses them and reads them: worker URL CHANNEL
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"slices"
	"strings"
)

type channel struct {
	Channel string
}

type message struct {
	ID      int64
	Channel string
	Message struct{ Seq int }
}

func main() {
	url, name := os.Args[1], os.Args[2]
	var ids []int64
	for seq := 1; seq <= 20; seq++ {
		var inserted struct {
			Status string
			ID     int64
		}
		body := fmt.Sprintf(`{"channel": %q, "message": {"seq": %d}}`, name, seq)
		status := call("POST", url+"/message", body, &inserted)
		if status != 201 || inserted.Status != "Message inserted!" {
			log.Fatalf("message %d: %d %+v", seq, status, inserted)
		}
		ids = append(ids, inserted.ID)
	}

	var channels []channel
	call("GET", url+"/channels", "", &channels)
	if !slices.Contains(channels, channel{name}) {
		log.Fatalf("%s is not among %v", name, channels)
	}
	var browsed []message
	call("GET", url+"/messages?offset=0&limit=25&channel="+name, "", &browsed)
	if !slices.EqualFunc(browsed, ids, func(m message, id int64) bool { return m.ID == id }) {
		log.Fatalf("a browse shows %v, want the ids %d", browsed, ids)
	}

	for {
		var m message
		if call("GET", url+"/queue/"+name, "", &m) == 204 {
			break
		}
		fmt.Println(m.Channel, m.Message.Seq)
	}

	if status := call("GET", url+"/messages?channel="+name, "", nil); status != 204 {
		log.Fatalf("a browse of nothing is %d", status)
	}
}

// call makes a request, decodes the response unless it is empty, and returns its status.
func call(method, url, body string, result any) (status int) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		if err := json.NewDecoder(response.Body).Decode(result); err != nil {
			log.Fatal(err)
		}
	}
	return response.StatusCode
}
