package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// sqs compares cycles and publishes through SQS's API with those through the native API.
func (s *suite) sqs() error {
	s.write(`
## Amazon SQS's API

64 + 64 clients run cycles of SendMessage, ReceiveMessage and DeleteMessage in the JSON protocol, and 64 clients run SendMessage
alone. The native API is used with a separate ack, so a cycle is three requests too. All use the same client, which does not
check the sums in SQS's responses. In the signed loads the server has a token file with an access key, and the client signs each
request, which costs the client about as much as the server.

`)
	const queue = "sqs"
	all := apisOf(queue)
	through := func(name string, load func(*api, *server, int, time.Duration) (*result, error)) func(*server) (*result, error) {
		return func(v *server) (*result, error) {
			if err := v.mustQueue(queue); err != nil {
				return nil, err
			}
			a := all[name]
			return load(&a, v, 64, s.seconds)
		}
	}
	throughSigned := func(load func(*api, *server, int, time.Duration) (*result, error)) func(*server) (*result, error) {
		return func(v *server) (*result, error) {
			a := signedAPI(queue)
			create := call{method: http.MethodPost, path: "/", action: "CreateQueue", body: `{"QueueName":"` + queue + `"}`, sign: signSQS}
			if _, _, err := create.send(http.DefaultClient, v.url, http.StatusOK); err != nil {
				return nil, err
			}
			return load(&a, v, 64, s.seconds)
		}
	}
	file := filepath.Join(s.dir, "tokens.json")
	if err := os.WriteFile(file, []byte(`{"tokens":[{"name":"bench","access_key_id":"`+accessKeyID+`","secret_access_key":"`+secretAccessKey+`","admin":true}]}`), 0o600); err != nil {
		return err
	}
	return s.compare("load", []comparison{
		{what: "cycle, native with a separate ack", load: through("native separate", (*api).load), base: true},
		{what: "cycle, SQS", load: through("SQS", (*api).load), goal: "0.85"},
		{what: "cycle, SQS, signed", load: throughSigned((*api).load), args: []string{"-token-file", file}},
		{what: "publish, native", load: through("native separate", (*api).loadPublishes), base: true},
		{what: "publish, SQS", load: through("SQS", (*api).loadPublishes), goal: "0.85"},
		{what: "publish, SQS, signed", load: throughSigned((*api).loadPublishes), args: []string{"-token-file", file}},
	})
}

const (
	accessKeyID     = "BENCH"
	secretAccessKey = "nJ4x0v2Yq8sT6wZb1LkR"
)

// signedAPI is SQS's API with signatures.
func signedAPI(queue string) api {
	unsigned := apisOf(queue)["SQS"]
	signed := func(c call) call {
		c.sign = signSQS
		return c
	}
	a := unsigned
	a.publish = func(n int, data string) call { return signed(unsigned.publish(n, data)) }
	a.receive = func(received string) call { return signed(unsigned.receive(received)) }
	a.ack = func(id string) call { return signed(unsigned.ack(id)) }
	return a
}

// signSQS signs a request with the access key (AWS Signature Version 4).
func signSQS(r *http.Request, body string) {
	at := time.Now().UTC()
	day, date := at.Format("20060102"), at.Format("20060102T150405Z")
	scope := day + "/us-east-1/sqs/aws4_request"
	const names = "content-type;host;x-amz-date;x-amz-target"
	r.Header.Set("X-Amz-Date", date)
	canonical := strings.Join([]string{r.Method, r.URL.Path, "", "content-type:" + r.Header.Get("Content-Type"), "host:" + r.URL.Host, "x-amz-date:" + date,
		"x-amz-target:" + r.Header.Get("X-Amz-Target"), "", names, sha256Hex(body)}, "\n")
	mac := hmacOf(signingKey(day), "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+sha256Hex(canonical))
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+accessKeyID+"/"+scope+", SignedHeaders="+names+", Signature="+hex.EncodeToString(mac))
}

// signingKeys has the key of each day, as SDKs remember it.
var signingKeys sync.Map

func signingKey(day string) []byte {
	if key, known := signingKeys.Load(day); known {
		return key.([]byte)
	}
	key := []byte("AWS4" + secretAccessKey)
	for _, part := range []string{day, "us-east-1", "sqs", "aws4_request"} {
		key = hmacOf(key, part)
	}
	signingKeys.Store(day, key)
	return key
}

func sha256Hex(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func hmacOf(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// loadPublishes publishes through the API.
func (a *api) loadPublishes(v *server, clients int, d time.Duration) (*result, error) {
	before, err := v.cost()
	if err != nil {
		return nil, err
	}
	client := clientFor(clients)
	defer client.CloseIdleConnections()
	var published atomic.Int64
	failures := make(chan error, clients)
	var producers sync.WaitGroup
	end := time.Now().Add(d)
	for range clients {
		producers.Go(func() {
			for time.Now().Before(end) {
				if _, _, err := a.publish(int(published.Load()), payload).send(client, v.url, a.published); err != nil {
					failures <- err
					return
				}
				published.Add(1)
			}
		})
	}
	producers.Wait()
	if len(failures) > 0 {
		return nil, <-failures
	}
	after, err := v.cost()
	messages := float64(published.Load())
	fmt.Fprintf(os.Stderr, "   published %.0f/s\n", messages/d.Seconds())
	return newResult(messages, d.Seconds(), after.since(before)), err
}
