package main

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"queued/internal/rawjson"
)

// benchAPI is how the load publishes and works off messages by another server's API,
// one in a request.
type benchAPI struct {
	publish  func(b *bench, number int) (path string, body []byte)
	accepted int // the status of a publish
	receive  func(queue string) (path string)
	empty    int                                            // the status of a receive that gets nothing
	data     string                                         // the member of its answer that was published; empty: all of it was
	finish   func(queue string, answer *form) (path string) // nil: what was received is gone
}

var benchAPIs = map[string]*benchAPI{
	"native": nil,
	"pgqueue": {
		publish: func(b *bench, number int) (string, []byte) {
			return "/message", fmt.Appendf(nil, `{"channel":%q,"message":%s}`, b.settings.queue, b.appendData(nil, number))
		},
		accepted: http.StatusCreated,
		receive:  func(queue string) string { return "/queue/" + queue },
		empty:    http.StatusNoContent,
		data:     "message",
	},
	"micro-queue": {
		publish: func(b *bench, number int) (string, []byte) {
			return "/in/" + b.settings.queue, b.appendData(nil, number)
		},
		accepted: http.StatusOK,
		receive:  func(queue string) string { return "/out/" + queue },
		empty:    http.StatusNotFound,
	},
	"sharq": {
		publish: func(b *bench, number int) (string, []byte) {
			group := strconv.Itoa(number % max(1, b.settings.groups))
			return "/enqueue/" + b.settings.queue + "/" + group + "/",
				fmt.Appendf(nil, `{"job_id":"%d","interval":0,"payload":%s}`, number, b.appendData(nil, number))
		},
		accepted: http.StatusCreated,
		receive:  func(queue string) string { return "/dequeue/" + queue + "/" },
		empty:    http.StatusNotFound,
		data:     "payload",
		finish: func(queue string, answer *form) string {
			group, _ := answer.find("queue_id")
			job, _ := answer.find("job_id")
			return "/finish/" + queue + "/" + rawjson.Unquote(group) + "/" + rawjson.Unquote(job) + "/"
		},
	},
}

// benchAPINames are those of benchAPIs, for people.
func benchAPINames() string {
	return strings.Join(slices.Sorted(maps.Keys(benchAPIs)), ", ")
}

// publishBy is publish for one message by another server's API.
func (b *bench) publishBy(api *benchAPI, due time.Time) bool {
	number := b.number(1, due)
	path, body := api.publish(b, number)
	status, _, err := b.request(http.MethodPost, b.settings.url+path, body)
	if err != nil || status != api.accepted {
		b.failed(status, err)
		return false
	}
	b.stored(number, 1, due)
	return true
}

// consumeBy is consume by another server's API.
func (b *bench) consumeBy(api *benchAPI) {
	for !b.drained.Load() {
		status, answer, err := b.request(http.MethodGet, fmt.Sprintf("%s%s?wait_seconds=%d", b.settings.from, api.receive(b.settings.queue), benchPoll), nil)
		if err == nil && status == api.empty {
			continue
		}
		if err != nil || status != http.StatusOK {
			b.failed(status, err)
			time.Sleep(benchPause)
			continue
		}
		f := parseBody(answer)
		data := answer
		if api.data != "" {
			data, _ = f.find(api.data)
		}
		if run, number := benchMark(data); run == b.run {
			b.arrived(number, time.Now())
		} else {
			b.foreign.Add(1)
		}
		if api.finish != nil {
			status, _, err = b.request(http.MethodPost, b.settings.from+api.finish(b.settings.queue, f), nil)
			if err != nil || status != http.StatusOK {
				b.failed(status, err)
				continue
			}
		}
		b.acked.Add(1)
	}
}
