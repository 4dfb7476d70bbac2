package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"queued/internal/flags"
)

func TestCreateCommandsCreateATopicAndQueues(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	checkDiff(t, "output", "created topic orders\n", s.mustShell("", "create", "topic", "orders"))
	checkDiff(t, "output", "created queue dead\n", s.mustShell("", "create", "queue", "dead"))
	checkDiff(t, "defaults", `{"topic_id":null,"dead_queue_id":null,"ack_deadline_seconds":60,"message_retention_seconds":345600,"message_filters":null,"message_max_deliveries":null,"delivery_delay_seconds":null}`,
		settingsOf(s.must(200, "GET", "/queues/dead", "")))
	printed := s.mustShell("", "create", "queue", "-json", "-topic", "orders", "-dead-queue", "dead", "-max-deliveries", "3", "-ack-deadline", "2m", "-retention", "1d12h",
		"-delay", "5s", "-filter", "country=fr", "-filter", "country=es", "-filter", "a=b=c", "-delivery-interval", "1500ms", "-ordered", "-consumed-retention", "2d", "-deduplication-window", "1m", "-max-messages", "9", "-retry-backoff", "5s, 1m", "bills")
	checkDiff(t, "settings", `{"topic_id":"orders","dead_queue_id":"dead","ack_deadline_seconds":120,"message_retention_seconds":129600,"message_filters":{"a":["b=c"],"country":["fr","es"]},"message_max_deliveries":3,"delivery_delay_seconds":5,"delivery_interval_ms":1500,"ordered":true,"consumed_retention_seconds":172800,"deduplication_window_seconds":60,"max_messages":9,"retry_backoff_seconds":[5,60]}`,
		settingsOf(printed))
	checkDiff(t, "printed queue", s.must(200, "GET", "/queues/bills", "")+"\n", printed)
	for args, want := range map[string]string{
		"topic orders":             `topic "orders": server ` + s.url + ` returned 422: This topic already exists`,
		"queue dead":               `queue "dead": server ` + s.url + ` returned 422: This queue already exists`,
		"queue -topic no q":        `-topic "no": server ` + s.url + ` returned 404: Topic not found`,
		"queue -dead-queue no q":   `-dead-queue "no": server ` + s.url + ` returned 404: Queue not found`,
		"queue -ack-deadline 1d q": `queue "q": server ` + s.url + ` returned 422: body ack_deadline_seconds: ensure this value is less than`,
	} {
		if out, _, err := s.shell(nil, "create", strings.Fields(args)...); err == nil || out != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("create %s = %v, want %q", args, err, want)
		}
	}
}

// settingsOf returns the settings of a queue in JSON.
func settingsOf(queue string) string {
	queue = regexp.MustCompile(`"id":"[^"]*",`).ReplaceAllString(queue, "")
	return regexp.MustCompile(`,"created_at".*\n?`).ReplaceAllString(queue, "}")
}

func TestCommandsDeleteOnlyWithYes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("dead")
	s.must(201, "POST", "/queues/dead/messages", `{"data":{}}`)
	s.publish("t", 1, 2)
	id := s.receive("t", "?limit=1")[0].ID
	for _, v := range []struct{ args, question, done string }{
		{"redrive -to t dead", "Move 1 ready message of queue dead to queue t, at " + s.url + "?", "moved 1 message to t\n"},
		{"ack " + id, "Ack 1 message at " + s.url + "? An ack deletes the message.", "acked 1 message\n"},
		{"purge t", "Delete 2 messages of queue t at " + s.url + "?", "purged queue t\n"},
		{"delete queue t", "Delete queue t and its 0 messages at " + s.url + "?", "deleted queue t\n"},
		{"delete topic t", "Delete topic t at " + s.url + "? Its queues stay, without a topic.", "deleted topic t\n"},
	} {
		before := s.must(200, "GET", "/queues", "") + s.must(200, "GET", "/topics", "") + fmt.Sprint(s.count("SELECT count(*) FROM queued.messages"))
		words := strings.Fields(v.args)
		out, stderr, err := s.shell(strings.NewReader("y\n"), words[0], words[1:]...)
		if err == nil || !strings.Contains(err.Error(), v.question) || !strings.Contains(err.Error(), "set -yes") || !errors.As(err, new(flags.UsageError)) || out+stderr != "" {
			t.Errorf("%s without a terminal = %v, want %q", v.args, err, v.question)
		}
		checkDiff(t, "after "+v.args+" without -yes", before, s.must(200, "GET", "/queues", "")+s.must(200, "GET", "/topics", "")+fmt.Sprint(s.count("SELECT count(*) FROM queued.messages")))
		at := len(words) - 1
		checkDiff(t, v.args, v.done, s.mustShell("", words[0], slices.Insert(words[1:], at-1, "-yes")...))
	}
	checkDiff(t, "messages", 0, s.count("SELECT count(*) FROM queued.live_messages"))
	s.must(404, "GET", "/queues/t", "")
	s.must(404, "GET", "/topics/t", "")
	for _, args := range []string{"purge -yes nosuch", "delete queue -yes nosuch", "delete topic -yes nosuch", "redrive -yes -to dead nosuch", "redrive -yes -to nosuch dead", "peek nosuch"} {
		words := strings.Fields(args)
		if _, _, err := s.shell(nil, words[0], words[1:]...); err == nil || !strings.Contains(err.Error(), `"nosuch"`) || !strings.Contains(err.Error(), s.url+" returned 404") {
			t.Errorf("%s = %v", args, err)
		}
	}
}

func TestPauseAndResumeCommands(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("q")
	s.publish("q", 1)
	checkDiff(t, "pause", "paused queue q\n", s.mustShell("", "pause", "q"))
	checkDiff(t, "received while paused", 0, len(s.receive("q", "")))
	if _, stderr, err := s.shell(nil, "stats", "q"); err != nil || stderr != "queued: queue \"q\" is paused; queued resume q continues its delivery\n" {
		t.Errorf("stats of a paused queue = %v, prints %q", err, stderr)
	}
	paused := regexp.MustCompile(`(?m)^q .* yes +-$`)
	if printed := s.mustShell("", "queues"); !paused.MatchString(printed) {
		t.Errorf("queues does not show that it is paused:\n%s", printed)
	}
	checkDiff(t, "resume", "resumed queue q\n", s.mustShell("", "resume", "q"))
	if printed := s.mustShell("", "queues"); paused.MatchString(printed) {
		t.Errorf("queues shows that it is paused:\n%s", printed)
	}
	checkDiff(t, "received after resume", 1, len(s.receive("q", "")))
	s.mustShell("", "create", "queue", "-paused", "new")
	s.must(201, "POST", "/queues/new/messages", `{"data":{}}`)
	checkDiff(t, "received from the new queue", 0, len(s.receive("new", "")))
}

func TestRedriveAndDeleteCommandsTakeMessagesByTheirIDs(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t")
	s.mustQueue("q", `"topic_id":"t"`, `"dead_queue_id":"dead"`, `"message_max_deliveries":1`)
	s.publish("t", 1, 2, 3)
	var ids []string
	for _, m := range s.receive("q", "") {
		ids = append(ids, m.ID)
		s.must(204, "PUT", "/messages/"+m.ID+"/nack", "")
	}
	s.must(201, "POST", "/queues/dead/messages", `{"data":{"n":4}}`)
	if _, _, err := s.shell(nil, "redrive", "-ids", ids[0]); err == nil || !strings.Contains(err.Error(), "Move 1 message back to where they came from, at "+s.url+"?") {
		t.Errorf("redrive without -yes = %v", err)
	}
	checkDiff(t, "redrive -ids", "moved 1 message\n", s.mustShell("", "redrive", "-yes", "-ids", ids[0]))
	checkDiff(t, "redriven", []int{1}, numbers(s.receive("q", "")))
	checkDiff(t, "redrive -limit", "moved 1 message; 1 message stayed: in flight, or without a queue to go back to\n", s.mustShell("", "redrive", "-yes", "-limit", "1", "dead"))
	checkDiff(t, "redriven", []int{2}, numbers(s.receive("q", "")))
	checkDiff(t, "redrive", "moved 1 message; 1 message stayed: in flight, or without a queue to go back to\n", s.mustShell("", "redrive", "-yes", "dead"))
	checkDiff(t, "redriven", []int{3}, numbers(s.receive("q", "")))
	if out, _, err := s.shell(nil, "redrive", "-yes", "dead"); err == nil || out != "" || !strings.HasPrefix(err.Error(), `queue "dead": server `+s.url+" returned 422: ") || !strings.HasSuffix(err.Error(), ", with -to") {
		t.Errorf("redrive of messages without a source = %v", err)
	}
	checkDiff(t, "redrive -to", "moved 1 message to q\n", s.mustShell("", "redrive", "-yes", "-to", "q", "dead"))
	checkDiff(t, "delete message", "deleted 2 messages\n", s.mustShell(ids[0]+" "+ids[1]+"\n01a21621-9888-76d0-87d7-5e415e2cd797", "delete", "message", "-yes", "-"))
	s.must(404, "GET", "/messages/"+ids[0], "")
	s.must(200, "GET", "/messages/"+ids[2], "")
}

func TestTopicsCommandShowsSubscribers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"empty"}`)
	s.mustTopic("t")
	s.mustQueue("u", `"topic_id":"t"`)
	for i := range 120 {
		s.must(201, "POST", "/topics", fmt.Sprintf(`{"id":"u%d"}`, i))
	}
	for _, maxLimit := range []int{1000, 50} {
		s.limits.maxLimit = maxLimit
		printed := s.mustShell("", "topics")
		for _, want := range []string{`^TOPIC +CREATED +QUEUES$`, `^empty +\d\d\d\d-\S+ +-$`, `^t +\S+ +t u$`, `^u119 `} {
			if !regexp.MustCompile("(?m)" + want).MatchString(printed) {
				t.Errorf("topics does not show %s:\n%s", want, printed)
			}
		}
	}
	checkDiff(t, "topics -json", 122, strings.Count(s.mustShell("", "topics", "-json"), "\n"))
}

func TestPeekAndMessageCommandsShowMessages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q", `"consumed_retention_seconds":600`)
	s.must(201, "POST", "/queues/q/messages", `{"data":{"a": "`+strings.Repeat("é", 100)+`\u001b[2J"},"group":"g\u001b"}`)
	s.must(201, "POST", "/queues/q/messages", `{"data":{"b": 2}}`)
	m := s.receive("q", "?limit=1")[0]
	checkDiff(t, "nack", "nacked 1 message\n", s.mustShell("", "nack", "-delay", "10m", "-error", "out of\npaper\x1b", m.ID))
	lines := strings.Split(s.mustShell("", "peek", "q"), "\n")
	checkDiff(t, "columns", "ID STATE ATTEMPTS CREATED DUE GROUP ERROR DATA", strings.Join(strings.Fields(lines[0]), " "))
	table := strings.Join(lines, "\n")
	for _, want := range []string{m.ID + "  delayed  1 ", "  out of paper?  ", "  g?  ", `{"a": "` + strings.Repeat("é", 52) + "…", `  -  `, `{"b": 2}`} {
		if !strings.Contains(table, want) {
			t.Errorf("peek does not show %q:\n%s", want, table)
		}
	}
	if strings.Contains(table, "\x1b") || len(lines) != 4 {
		t.Errorf("peek prints %q", table)
	}
	checkDiff(t, "peek -json", strings.Count(s.mustShell("", "peek", "-json", "-limit", "1", "q"), "\n"), 1)
	checkDiff(t, "message -json", s.must(200, "GET", "/messages/"+m.ID, "")+"\n", s.mustShell("", "message", "-json", m.ID))
	shown := s.mustShell("", "message", m.ID)
	for _, want := range []string{`(?m)^ID +` + m.ID + `$`, `(?m)^STATE +delayed$`, `(?m)^LAST ERROR +out of paper\?$`, `(?m)^ATTRIBUTES +-$`} {
		if !regexp.MustCompile(want).MatchString(shown) {
			t.Errorf("message does not show %s:\n%s", want, shown)
		}
	}
	s.must(200, "GET", "/queue/q", "") // consumes the other message
	checkDiff(t, "consumed", 2, strings.Count(s.mustShell("", "peek", "-consumed", "q"), "\n"))
	const failure, firstAndLast = "exit status 1: Traceback (most recent call last):\n  File \"bill.py\", line 98\nTaxError: no tax rate in the country XK", "  exit status 1: Trace…TaxError: no tax rate in the country XK  "
	s.mustShell("", "nack", "-error", failure, m.ID)
	if table := s.mustShell("", "peek", "q"); !strings.Contains(table, firstAndLast) {
		t.Errorf("peek does not show %q:\n%s", firstAndLast, table)
	}
	_, _, err := s.shell(nil, "message", "01a21621-9888-76d0-87d7-5e415e2cd797")
	if err == nil || !strings.Contains(err.Error(), `message "01a21621-9888-76d0-87d7-5e415e2cd797": server `+s.url+` returned 404`) {
		t.Errorf("message of an unknown id = %v", err)
	}
}

func TestPeekCommandReadsSeveralPages(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustShell(strings.Repeat("{}\n", 350), "publish", "-lines", "-to-queue", "t")
	var ids []string
	for _, limit := range []int{1, 301, 1000} {
		printed := strings.TrimSpace(s.mustShell("", "peek", "-json", "-limit", fmt.Sprint(limit), "t"))
		ids = uuidPattern.FindAllString(printed, -1)
		checkDiff(t, "messages", min(limit, 350), len(ids))
	}
	checkDiff(t, "acked", "acked 350 messages\n", s.mustShell(strings.Join(ids, "\n"), "ack", "-yes", "-"))
	checkDiff(t, "left", 0, s.count("SELECT count(*) FROM queued.live_messages"))
}

func TestPeekCommandSearches(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.must(201, "POST", "/queues/q/messages", `{"data":{"n":1,"text":"No Paper"},"attributes":{"a":"b=c","d":"e"},"group":"g"}`)
	old := s.messages(s.must(201, "POST", "/queues/q/messages", `{"data":{"n":2},"delay_seconds":60}`))[0].ID
	s.changeMessages("created_at = now() - interval '3 hours'", old)
	for args, want := range map[string]string{
		"-state delayed":        "2",
		"-group g":              "1",
		"-attr a=b=c -attr d=e": "1",
		"-attr a=b=c -attr d=f": "",
		`-contains {"n":2}`:     "2",
		"-q paper":              "1",
		"-after 2h":             "1",
		"-before 2h":            "2",
		"-after 2000-01-01T00:00:00 -before 2100-01-01T00:00:00+01:00": "1 2",
	} {
		var all []string
		for line := range strings.Lines(s.mustShell("", "peek", append(strings.Fields(args), "-json", "q")...)) {
			var m struct{ Data struct{ N int } }
			mustDecode(t, line, &m)
			all = append(all, fmt.Sprint(m.Data.N))
		}
		checkDiff(t, "peek "+args, want, strings.Join(all, " "))
	}
	if _, _, err := s.shell(nil, "peek", "-state", "gone", "q"); err == nil || !strings.Contains(err.Error(), "query state: value is not a state") {
		t.Errorf("peek -state gone = %v", err)
	}
	s.must(204, "PUT", "/queues/q/purge", "")
	s.fill("q", searchRows+600)
	printed := s.mustShell("", "peek", "-json", "-limit", "700", "-q", `"n"`, "q")
	checkDiff(t, "messages of several requests", 700, strings.Count(printed, "\n"))
	printed = s.mustShell("", "peek", "-json", "-contains", fmt.Sprintf(`{"n":%d}`, searchRows+600), "q")
	checkDiff(t, "messages beyond the bound of one request", 1, strings.Count(printed, "\n"))
}

func TestPublishCommandSaysThatNoQueueSubscribes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	for _, lines := range []bool{false, true} {
		out, stderr, err := s.shell(strings.NewReader("{}\n"), "publish", fmt.Sprintf("-lines=%v", lines), "t")
		if err != nil || out != "" || !strings.Contains(stderr, `topic "t" at `+s.url+`: no queue subscribes to it`) || !strings.Contains(stderr, "queued create queue -topic t") {
			t.Errorf("publish without a queue = %v, prints %q, %q", err, out, stderr)
		}
	}
	s.mustQueue("q", `"topic_id":"t"`)
	s.mustShell("{}", "publish", "t")
}

func TestErrorsOfShellCommandsNameTheServerAndTheRemedy(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.must(201, "POST", "/topics", `{"id":"t"}`)
	s.mustQueue("q")
	closed := "http://" + freeAddress(t)
	for args, want := range map[string]string{
		"queues -url " + closed: "no response from " + closed + ": dial tcp " + strings.TrimPrefix(closed, "http://") + ": connect: connection refused; check that the server is running, and -url or $QUEUED_URL",
		"queues -url " + strings.Replace(closed, "http://", "http://me:secret@", 1): "no response from " + strings.Replace(closed, "http://", "http://me:xxxxx@", 1),
		"queues -url " + strings.Replace(s.url, "http:", "https:", 1):               "use http:// in -url",
		"stats nosuch":                `queue "nosuch": server ` + s.url + ` returned 404: Queue not found; list the queues with queued queues`,
		"publish nosuch":              `topic "nosuch": server ` + s.url + ` returned 404: Topic not found; list the topics with queued topics`,
		"publish q":                   "; a queue has this name: publish with -to-queue",
		"publish -to-queue t":         "; a topic has this name: publish without -to-queue",
		"receive nosuch":              `queue "nosuch": server ` + s.url + ` returned 404: Queue not found; list the queues with queued queues`,
		"queues -url " + s.url + "/x": "server " + s.url + "/x returned 404: Not Found; check -url",
	} {
		command, rest, _ := strings.Cut(args, " ")
		_, _, err := s.shell(strings.NewReader("{}"), command, strings.Fields(rest)...)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("queued %s = %v, want %q", args, err, want)
		}
	}
}

func TestErrorsOfShellCommandsNameARemedyOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	_, _, err := s.shell(strings.NewReader(`{"a":"`+strings.Repeat("x", 2<<20)+`"}`), "publish", "-to-queue", "q")
	checkDiff(t, "a large message", `queue "q": server `+s.url+` returned 413: request body is too large; see -max-body`, fmt.Sprint(err))
	s.ready.Store(false)
	_, _, err = s.shell(nil, "queues")
	checkDiff(t, "without a database", "server "+s.url+" returned 503: database unavailable; try again later", fmt.Sprint(err))
}

func TestCommandsThatDoNotExistAreNamed(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"pubish":                           `unknown command "pubish"; queued help lists the commands`,
		"help pubish":                      `unknown command "pubish"`,
		"help create foo":                  `unknown command "create foo"`,
		"create":                           "create what? expected queued create topic, or queued create queue; see queued help create",
		"create foo":                       "create what?",
		"delete":                           "delete what?",
		"completion":                       "missing argument: SHELL: bash, zsh or fish",
		"completion csh":                   `no completion for "csh"`,
		"ack":                              "missing argument: ID...",
		"ack x":                            `"x" is not a message id, which is a UUID; queued peek shows the ids`,
		"message x":                        `"x" is not a message id`,
		"nack -delay 1ms x":                "-delay: must be whole seconds",
		"nack -delay 4x x":                 "must be a duration such as 500ms, 20s, 1m30s or 4d",
		"redrive -to a/b q":                "-to: must be a valid queue id",
		"peek q -state ready":              "flags must precede the arguments: -state; see queued peek -help",
		"stats q -token=secret":            "flags must precede the arguments: -token; see queued stats -help",
		"delete message x -yes":            "flags must precede the arguments: -yes",
		"peek -- q -state":                 "too many arguments: expected QUEUE",
		"peek -contains order=17 q":        `-contains: must be a JSON object, such as {"order": 17}`,
		"peek -contains null q":            "-contains: must be a JSON object",
		"redrive q r":                      "too many arguments: expected QUEUE",
		"redrive -ids q":                   `"q" is not a message id`,
		"redrive -ids -limit 1 q":          "-limit: must not be set with -ids",
		"pause":                            "missing argument: QUEUE",
		"delete message x":                 `"x" is not a message id`,
		"redrive -to q -limit -1 q":        "-limit",
		"peek -limit 0 q":                  "-limit",
		"create queue -max-deliveries 2 q": "-max-deliveries: requires -dead-queue",
		"create queue -retention 1ms q":    "-retention: must be whole seconds",
		"create queue a/b":                 `"a/b" is not a valid queue id: it must have 1 to 128 letters`,
		"create topic a/b":                 `"a/b" is not a valid topic id`,
	} {
		err := run(context.Background(), strings.Fields(args), func(string) string { return "" }, strings.NewReader(""), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, new(flags.UsageError)) {
			t.Errorf("queued %s = %v, want wrong use: %s", args, err, want)
		}
	}
	for args, want := range map[string]string{
		"help":         "queued receive [flags] QUEUE",
		"help create":  "queued create queue [flags] ID",
		"create -help": "queued create queue [flags] ID",
		"help help":    "queued help [COMMAND]",
	} {
		var out bytes.Buffer
		if err := run(context.Background(), strings.Fields(args), func(string) string { return "" }, nil, &out, io.Discard); err != nil || !strings.Contains(out.String(), want) || strings.Contains(out.String(), "-listen\n") {
			t.Errorf("queued %s = %v, prints %s", args, err, out.String())
		}
	}
}

func TestQueuesCommandWatchesUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.must(201, "POST", "/queues/q/messages", `{"data":{}}`)
	ctx, stop := context.WithCancel(context.Background())
	out, stderr := newSyncBuffer(), newSyncBuffer()
	ended := make(chan error)
	go func() {
		ended <- run(ctx, []string{"queues", "-url", s.url, "-watch"}, func(string) string { return "" }, nil, out, stderr)
	}()
	shows := func(what, line string) {
		eventually(t, what, func() bool { return regexp.MustCompile("(?m)" + line).MatchString(out.String()) })
	}
	shows("no rates in the first table", `^q .* 0 +- +- +-$`)
	columns, _, _ := strings.Cut(out.String(), "\n")
	checkDiff(t, "last columns", "DEAD QUEUE WAITING PUBLISHED/S ACKED/S NACKED/S", strings.Join(strings.Fields(columns)[9:], " "))
	s.must(204, "PUT", "/messages/"+s.receive("q", "?limit=1")[0].ID+"/nack", "")
	shows("the rate of nacks", `^q .* 0 +0\.0 +0\.0 +0\.[1-9]$`)
	stop()
	if err := <-ended; err != nil || stderr.String() != "" {
		t.Errorf("queues -watch = %v, prints %s", err, stderr)
	}
}

func TestConsumersCommandShowsWhoReceived(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.must(201, "POST", "/queues/q/messages", `{"data":{}}`)
	s.receive("q", "?limit=1")
	if printed := s.mustShell("", "consumers", "q"); !regexp.MustCompile(`^CONSUMER +LAST RECEIVE +IN FLIGHT +LAST MINUTE +LAST HOUR\n127\.0\.0\.1 +\ds ago +1 +1 +1\n$`).MatchString(printed) {
		t.Errorf("consumers prints %s", printed)
	}
	if printed := s.mustShell("", "consumers", "-json", "q"); !strings.HasPrefix(printed, `{"token":null,"address":"127.0.0.1",`) || strings.Count(printed, "\n") != 1 {
		t.Errorf("consumers -json prints %s", printed)
	}
	s.fill("q", 150)
	s.receive("q", "?limit=150")
	if printed := s.mustShell("", "consumers", "q"); !regexp.MustCompile(`s ago +100 or more +151 +151\n$`).MatchString(printed) {
		t.Errorf("consumers with many messages in flight prints %s", printed)
	}
	_, _, err := s.shell(nil, "consumers", "no-such-queue")
	if err == nil || !strings.Contains(err.Error(), `queue "no-such-queue": server `+s.url+" returned 404: Queue not found; list the queues with queued queues") {
		t.Errorf("consumers of an unknown queue = %v", err)
	}
}

func TestInterruptedCommandsPrintNothing(t *testing.T) {
	t.Parallel()
	requested := make(chan bool, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requested <- true
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	for end, status := range map[os.Signal]int{os.Interrupt: 130, syscall.SIGTERM: 143} {
		cmd := exec.Command(os.Args[0], "stats", "-url", server.URL, "q")
		cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1")
		r := startCommand(t, cmd)
		<-requested
		cmd.Process.Signal(end)
		<-r.ended
		checkDiff(t, "exit status", status, cmd.ProcessState.ExitCode())
		checkDiff(t, "output", "", r.output.String())
	}
}

// Completion

// completions returns what queued completes, without descriptions.
func (s *client) completions(words ...string) string {
	var all []string
	for line := range strings.Lines(s.mustShell("", "complete", words...)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		all = append(all, word)
	}
	return strings.Join(all, " ")
}

func TestCompletionKnowsCommandsFlagsAndIDs(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("orders")
	s.mustQueue("orders-dead")
	s.mustQueue("mails")
	for i := range 20 {
		s.mustQueue(fmt.Sprintf("n%02d", i))
	}
	for words, want := range map[string]string{
		"re":                         "receive resume redrive",
		"cr":                         "create",
		"create ":                    "topic queue",
		"delete q":                   "queue",
		"help cr":                    "create",
		"help create ":               "topic queue",
		"stats -":                    "-json -tls-cert -token -url -help",
		"stats -json ord":            "orders orders-dead",
		"stats n":                    "n00 n01 n02 n03 n04 n05 n06 n07 n08 n09 n10 n11 n12 n13 n14 n15 n16 n17 n18 n19",
		"stats mails ":               "",
		"publish ":                   "orders",
		"publish -attr a=b ":         "orders",
		"publish -to-queue m":        "mails",
		"publish orders ":            ":files",
		"stats -tls-cert ":           ":files",
		"redrive -to m":              "mails",
		"redrive -yes -to mails or":  "orders orders-dead",
		"create queue -topic ":       "orders",
		"create queue -dead-queue m": "mails",
		"delete topic ":              "orders",
		"completion ":                "bash zsh fish",
		"ack ":                       "",
		"create topic ":              "",
		"nosuch ":                    "",
		"-token-":                    "-token-file",
		"-topology ":                 ":files",
		"stats -url http://" + freeAddress(t) + " ": "",
	} {
		checkDiff(t, "completions of "+words, want, s.completions(strings.Split(words, " ")...))
	}
	all := s.completions("")
	for _, c := range allCommands() {
		if word, _, _ := strings.Cut(c.Name, " "); word != "" && !strings.Contains(" "+all+" ", " "+word+" ") {
			t.Errorf("queued completes %s, without %s", all, word)
		}
	}
}

// The script of each shell is valid for that shell, where it is installed; bash always
// is. Bash also runs the script, as if a user pressed Tab.
func TestCompletionScriptsWorkInTheirShells(t *testing.T) {
	t.Parallel()
	program := mustBuild(t)
	s := newTestServer(t)
	s.mustQueue("mails")
	folder := t.TempDir()
	for _, name := range []string{"bash", "zsh", "fish"} {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(s.mustShell("", "completion", name)), 0o644); err != nil {
			t.Fatal(err)
		}
		found, err := exec.LookPath(name)
		if err != nil && name != "bash" {
			continue
		}
		if out, err := exec.Command(found, "-n", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s -n = %v\n%s", name, err, out)
		}
	}
	if fish, err := exec.LookPath("fish"); err == nil {
		cmd := exec.Command(fish, "--no-config", "-c", "source "+filepath.Join(folder, "fish")+`; complete -C "queued re"; complete -C "queued stats "; complete -C "queued stats -tl"`)
		cmd.Env = append(os.Environ(), "HOME="+folder, "QUEUED_URL="+s.url, "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if words := regexp.MustCompile(`(?m)\t.*$`).ReplaceAllString(string(out), ""); err != nil || words != "receive\nredrive\nresume\nmails\n-tls-cert\n" {
			t.Errorf("fish = %v, completes %s", err, out)
		}
	}
	script := `source ` + filepath.Join(folder, "bash") + `
press() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    compopt() { echo "compopt $*"; }
    _queued queued
    echo "${COMPREPLY[*]}"
}
complete -p queued
press queued re
press queued stats ""
press queued stats -tl
press queued publish mails ""
`
	cmd := exec.Command("bash", "--norc", "-c", script)
	cmd.Env = append(os.Environ(), "QUEUED_URL="+s.url, "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("bash = %v", err)
	}
	checkDiff(t, "completions in bash", "complete -F _queued queued\nreceive resume redrive\nmails\n-tls-cert\ncompopt -o default\n\n", string(out))
}
