// The program puts twenty jobs into a queue and takes them out: worker URL QUEUE
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
)

const (
	producer = "5c2f8a1e-6b0d-4e77-9a43"
	worker   = "e17d94b3-20fa-4c8b-8d56"
)

func main() {
	url, queue := os.Args[1], os.Args[2]
	for n := 1; n <= 20; n++ {
		status, text := call("POST", url+"/in/"+queue, producer, fmt.Sprintf(`{"context": "job %d"}`, n))
		if status != 200 || text != "" {
			log.Fatalf("job %d: %d %s", n, status, text)
		}
	}
	for {
		status, job := call("GET", url+"/out/"+queue, worker, "")
		if status == 404 {
			return
		}
		if status != 200 {
			log.Fatalf("out: %d %s", status, job)
		}
		fmt.Println(queue, job)
	}
}

// call makes a request, and returns the status and the body of the response.
func call(method, url, token, body string) (int, string) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	return response.StatusCode, string(text)
}
