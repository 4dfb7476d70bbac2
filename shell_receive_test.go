//go:build unix

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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// commands lets a test follow and end the commands of a worker.
type commands struct {
	t      testing.TB
	folder string
	ends   *os.File
}

// newCommands returns commands and the text of one: it reads its message, creates a
// file, and waits for end.
func newCommands(t testing.TB) (c *commands, command string) {
	t.Helper()
	c = &commands{t: t, folder: t.TempDir()}
	fifo := filepath.Join(c.folder, "ends")
	err := syscall.Mkfifo(fifo, 0o600)
	if err == nil {
		c.ends, err = os.OpenFile(fifo, os.O_RDWR, 0) // and not only to write: that would wait for a reader
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ends.Close() })
	return c, fmt.Sprintf(`cd %q && cat >$QUEUED_MESSAGE_ID && mv $QUEUED_MESSAGE_ID begun-$QUEUED_MESSAGE_ID && read status <ends && exit $status`, c.folder)
}

// begun returns the number of started commands.
func (c *commands) begun() int {
	all, err := filepath.Glob(filepath.Join(c.folder, "begun-*"))
	if err != nil {
		c.t.Fatal(err)
	}
	return len(all)
}

// end makes one of the waiting commands exit with a status.
func (c *commands) end(status int) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.ends, status); err != nil {
		c.t.Fatal(err)
	}
}

// startWorker starts queued receive in this process.
func (s *testServer) startWorker(args ...string) *running {
	s.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{t: s.t, output: newSyncBuffer(), ended: make(chan struct{}), stop: stop}
	go func() {
		r.err = run(ctx, append([]string{"receive", "-url", s.url}, args...), func(string) string { return "" }, nil, r.output, r.output)
		close(r.ended)
	}()
	s.t.Cleanup(func() {
		stop()
		if !s.t.Failed() { // after a failure its commands may wait for ever
			<-r.ended
		}
	})
	return r
}

func (s *testServer) unacked() int { return s.count("SELECT count(*) FROM queued.messages") }

func TestReceiveCommandPrintsAndAcks(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	s.must(201, "POST", "/queues/q/messages", `{"data":{"a": "\u0000<",`+"\n"+`"b": 1.0},"attributes":{"k": "v"},"group":"g"}`)
	s.tracing("a<", testTraceparent).must(201, "POST", "/queues/q/messages", `{"data":{},"group":"g"}`)
	out := s.mustShell("", "receive", "-wait", "0s", "q")
	checkDiff(t, "printed", `{"id":"UUID","queue_id":"q","data":{"a":"\u0000<","b":1.0},"attributes":{"k":"v"},"delivery_attempts":1,"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME","group":"g"}
{"id":"UUID","queue_id":"q","data":{},"attributes":null,"delivery_attempts":1,"expired_at":"TIME","scheduled_at":"TIME","created_at":"TIME","updated_at":"TIME","group":"g","request_id":"a<","traceparent":"`+testTraceparent+`"}
`, mask(out))
	checkDiff(t, "stored", 0, s.unacked())
}

func TestReceiveCommandEndsByCountWaitAndSignal(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", make([]int, 250)...)
	for _, mode := range [][]string{{"t"}, {"-exec", "cat", "-parallel", "3", "t"}} {
		out := s.mustShell("", "receive", append([]string{"-count", "5"}, mode...)...)
		checkDiff(t, "messages of -count 5", 5, strings.Count(out, "\n"))
	}
	checkDiff(t, "stored", 240, s.unacked())
	out := s.mustShell("", "receive", "-wait", "0s", "t")
	checkDiff(t, "messages of -wait 0s", 240, strings.Count(out, "\n"))

	r := s.startWorker("t")
	s.waiting("t", 1) // the worker does not end
	s.publish("t", 1)
	eventually(t, "the message is printed and acked", func() bool { return s.unacked() == 0 && strings.Count(r.output.String(), "\n") == 1 })
	s.waiting("t", 1)
	r.stop()
	if err := r.await(); err != nil {
		t.Errorf("receive that was stopped = %v", err)
	}
	s.waiting("t", 0)
}

// A worker that is stopped may have been sent messages that have not arrived yet.
func TestReceiveCommandReturnsWhatArrivesAfterItWasStopped(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	p := newProxy(t, "tcp", strings.TrimPrefix(s.url, "http://"))
	r := s.startWorker("-url", "http://"+p.address, "t")
	s.waiting("t", 1)
	p.freeze()
	s.publish("t", 1)
	eventually(t, "the message is leased", func() bool { return s.count("SELECT count(*) FROM queued.messages WHERE in_flight") == 1 })
	r.stop()
	eventually(t, "the worker has ended its request", func() bool { return p.endedByClient() == 1 })
	p.thaw()
	if err := r.await(); err != nil || r.output.String() != "" {
		t.Errorf("receive = %v\n%s", err, r.output)
	}
	checkDiff(t, "messages as if never received", 1, s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 0 AND NOT in_flight AND scheduled_at <= now()"))
}

func TestReceiveCommandReturnsWhatItCannotWrite(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.mustQueue("u")
	s.publish("t", 1, 2, 3)
	ctx, stop := context.WithCancel(context.Background())
	out := writerFunc(func(b []byte) (int, error) {
		stop() // at the first message
		return len(b), nil
	})
	if err := run(ctx, []string{"receive", "-url", s.url, "t"}, func(string) string { return "" }, nil, out, io.Discard); err != nil {
		t.Errorf("receive = %v", err)
	}
	checkDiff(t, "left", 2, s.count("SELECT count(*) FROM queued.messages WHERE scheduled_at <= now()"))

	// The reader of the output has exited.
	for _, v := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"receive", "t"}, 141, ""},
		{[]string{"publish", "-lines", "-to-queue", "u"}, 1, "broken pipe"},
	} {
		cmd := shellProcess(s.url, v.args...)
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		read.Close()
		stderr := newSyncBuffer()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("{}\n{}\n"), write, stderr
		err = cmd.Run()
		write.Close()
		exit := new(exec.ExitError)
		if !errors.As(err, &exit) || exit.ExitCode() != v.status || !strings.Contains(stderr.String(), v.says) || v.says == "" && stderr.String() != "" {
			t.Errorf("%v into a broken pipe = %v, %s, want exit status %d", v.args, err, stderr, v.status)
		}
	}
	eventually(t, "the server has noticed the disconnection", func() bool {
		return strings.Contains(s.must(200, "GET", "/queues/t/stats", ""), `"num_undelivered_messages":2`)
	})
	checkDiff(t, "left", []int{2, 3}, numbers(s.receive("t", "")))

	// The reader of the output has stopped reading.
	s.must(204, "PUT", "/queues/u/purge", "")
	s.must(201, "POST", "/queues/u/messages", `{"data":{"n":4,"long":"`+strings.Repeat("x", 500_000)+`"}}`)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := shellProcess(s.url, "receive", "u")
	cmd.Stdout = write
	r := startCommand(t, cmd)
	write.Close()
	if _, err := read.Read(make([]byte, 1)); err != nil { // the worker writes as much as the pipe holds
		t.Fatal(err)
	}
	r.endBySignals(s)
	if exit := new(exec.ExitError); !errors.As(r.err, &exit) || exit.ExitCode() != 1 || !strings.Contains(r.output.String(), "output blocked: its reader has stopped reading") {
		t.Errorf("receive into a pipe without a reader = %v, %s, want exit status 1", r.err, r.output)
	}
	checkDiff(t, "in flight", 0, s.count("SELECT count(*) FROM queued.messages JOIN queued.queues ON key = queue_key WHERE queues.id = 'u' AND in_flight"))
}

func TestReceiveCommandGivesTheMessageToACommand(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	const show = `cat; env | grep -a ^QUEUED_ | grep -v -e _TEST_ | sort; echo done >&2`
	s.must(201, "POST", "/queues/q/messages", `{"data":{"a": 1,`+"\n"+`"b": 2},"group":"g 1","attributes":{"Content-Type": "x y", "é": "ö", "k_1": "a=b", "nul": "\u0000", "K-1": "last", "long": "`+strings.Repeat("a", 65_537)+`"}}`)
	out, stderr, err := s.shell(nil, "receive", "-exec", show, "-count", "1", "q")
	if err != nil || stderr != "done\n" {
		t.Errorf("receive = %v, %s", err, stderr)
	}
	checkDiff(t, "the command has", `{"a":1,"b":2}
QUEUED_ATTRIBUTE_CONTENT_TYPE=x y
QUEUED_ATTRIBUTE_K_1=last
QUEUED_ATTRIBUTE__=ö
QUEUED_DELIVERY_ATTEMPTS=1
QUEUED_GROUP=g 1
QUEUED_MESSAGE_ID=UUID
QUEUED_QUEUE_ID=q
QUEUED_REQUEST_ID=
QUEUED_TLS_CERT=
QUEUED_TOKEN=
QUEUED_URL=`+s.url+"\n", mask(out))

	// The message has no attributes, and the worker itself is the command of a worker.
	s.must(201, "POST", "/queues/q/messages", `{"data":{}}`)
	cmd := exec.Command(os.Args[0], "receive", "-exec", show, "-count", "1", "q")
	cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1", "QUEUED_URL="+s.url, "QUEUED_ATTRIBUTE_A=1", "QUEUED_GROUP=outer", "QUEUED_REQUEST_ID=outer", "QUEUED_TOKEN=secret")
	printed, err := cmd.Output()
	if err != nil {
		t.Error(err)
	}
	checkDiff(t, "the command has", `{}
QUEUED_ATTRIBUTES=null
QUEUED_DELIVERY_ATTEMPTS=1
QUEUED_GROUP=
QUEUED_MESSAGE_ID=UUID
QUEUED_QUEUE_ID=q
QUEUED_REQUEST_ID=
QUEUED_TLS_CERT=
QUEUED_TOKEN=secret
QUEUED_URL=`+s.url+"\n", mask(string(printed)))
	checkDiff(t, "stored", 0, s.unacked())

	// Attributes too large for an environment are left out, and the command runs.
	many := strings.Builder{}
	for n := range 75_000 {
		fmt.Fprintf(&many, `,"a%d":"b"`, n)
	}
	for _, attributes := range []string{`,"` + strings.Repeat("n", 140_000) + `":"v"`, many.String()} {
		if got := s.do("POST", "/queues/q/messages", `{"data":{},"attributes":{"first":"1"`+attributes+`}}`); got.status != 201 {
			t.Fatalf("publish of %d bytes of attributes = %d", len(attributes), got.status)
		}
		out, stderr, err = s.shell(nil, "receive", "-exec", "echo $QUEUED_ATTRIBUTE_FIRST", "-count", "1", "q")
		if err != nil || stderr != "" || out != "1\n" {
			t.Errorf("receive with %d bytes of attributes = %v, %.200s, prints %s", len(attributes), err, stderr, out)
		}
	}
	checkDiff(t, "stored", 0, s.unacked())
}

func TestTraceContinuesThroughTheCommandOfAWorker(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("first")
	s.mustQueue("second")
	const odd = "`'\"$(exit)"
	later := strings.Replace(testTraceparent, "00-", "01-", 1) + "-" + odd
	s.tracing("a", testTraceparent).must(201, "POST", "/queues/first/messages", `{"data":{"n":1}}`)
	s.tracing(odd, later).must(201, "POST", "/queues/first/messages", `{"data":{"n":2}}`)
	s.must(201, "POST", "/queues/first/messages", `{"data":{"n":3}}`)

	command := fmt.Sprintf(`echo "$QUEUED_REQUEST_ID ${TRACEPARENT-none} ${TRACESTATE-none}"; %q publish -to-queue second >&2`, os.Args[0])
	cmd := exec.Command(os.Args[0], "receive", "-count", "3", "-exec", command, "first")
	cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1", "QUEUED_URL="+s.url,
		"QUEUED_REQUEST_ID=outer", "TRACEPARENT="+strings.ReplaceAll(testTraceparent, "1", "2"), "TRACESTATE=outer=1")
	printed, err := cmd.Output()
	if err != nil {
		t.Errorf("receive = %v", err)
	}
	checkDiff(t, "the commands have", "a "+testTraceparent+" none\n"+odd+" "+later+" none\n none none\n", string(printed))
	checkDiff(t, "published by the commands", "1///"+testTraceparent+" 2///"+later+" 3///", s.tracesIn("second"))
}

func TestReceiveCommandNacksWithAGrowingDelay(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	for attempt, want := range []float64{1, 2, 4, 8} {
		s.makeDue()
		_, stderr, err := s.shell(nil, "receive", "-exec", "exit 3", "-count", "1", "t")
		if err != nil || !strings.Contains(stderr, fmt.Sprintf("message %s, attempt %d: exit status 3; retrying in %vs", id, attempt+1, want)) {
			t.Errorf("receive = %v, %s", err, stderr)
		}
		var m wireMessage
		mustDecode(t, s.must(200, "GET", "/messages/"+id, ""), &m)
		from, _ := time.Parse(timestampLayout, m.UpdatedAt)
		to, _ := time.Parse(timestampLayout, m.ScheduledAt)
		checkDiff(t, "delay", want, to.Sub(from).Seconds())
	}
	s.makeDue()
	if _, stderr, err := s.shell(nil, "receive", "-exec", "kill -9 $$", "-count", "1", "t"); err != nil || !strings.Contains(stderr, "killed") {
		t.Errorf("receive with a command that dies = %v, %s", err, stderr)
	}
	checkDiff(t, "stored", 1, s.unacked())
}

func TestReceiveCommandFollowsTheRetryBackoffOfItsQueue(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("t", `"retry_backoff_seconds":[7,90]`)
	s.must(201, "POST", "/queues/t/messages", `{"data":{}}`)
	for i, want := range []string{"7s", "1m30s", "1m30s"} {
		s.makeDue()
		_, stderr, err := s.shell(nil, "receive", "-exec", "exit 3", "-count", "1", "t")
		if err != nil || !strings.Contains(stderr, fmt.Sprintf("attempt %d: exit status 3; retrying in %s", i+1, want)) {
			t.Errorf("receive = %v, %s", err, stderr)
		}
		checkDiff(t, "after the nack", "delayed "+want, s.after("t"))
	}
}

func TestReceiveCommandSaysOnceThatTheQueueIsPaused(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	s.must(204, "PUT", "/queues/t/pause", "")
	stderr := newSyncBuffer()
	ended := make(chan error, 1)
	go func() {
		getenv := func(string) string { return "" }
		ended <- run(context.Background(), []string{"receive", "-url", s.url, "-count", "1", "t"}, getenv, nil, io.Discard, stderr)
	}()
	s.waiting("t", 1)
	line := fmt.Sprintf("queued: queue \"t\" at %s is paused; its messages are delivered after queued resume t\n", s.url)
	checkDiff(t, "standard error", line, stderr.String())
	s.must(204, "PUT", "/queues/t/resume", "")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	checkDiff(t, "standard error at the end", line, stderr.String())
}

func TestReceiveCommandSendsTheErrorOfACommand(t *testing.T) {
	t.Parallel()
	for _, v := range []struct{ command, want string }{
		{`echo lost; echo no paper >&2; exit 3`, "exit status 3: no paper"},
		{`exit 4`, "exit status 4"},
		{`kill -9 $$`, "signal: killed"},
		{`sleep 30 >/dev/null & echo $! >&2; exit 5`, "exit status 5: PID"}, // it does not wait for the other process
		{`i=0; while [ $i -lt 3000 ]; do echo é; i=$((i+1)); done >&2; exit 6`, "exit status 6: " + strings.Repeat("é\n", 677) + "é"},
	} {
		s := newTestServer(t)
		s.mustTopic("t")
		s.publish("t", 1)
		worker := s.startWorker("-count", "1", "-exec", v.command, "t")
		<-worker.ended
		got := s.inspected("t").LastError
		if strings.HasSuffix(v.want, "PID") {
			pid := strings.TrimPrefix(got, "exit status 5: ")
			if n, err := strconv.Atoi(pid); err == nil {
				syscall.Kill(n, syscall.SIGKILL)
				got = strings.TrimSuffix(got, pid) + "PID"
			}
		}
		checkDiff(t, v.command, v.want, got)
		if v.want == "exit status 3: no paper" && !(strings.Contains(worker.output.String(), "lost\n") && strings.Contains(worker.output.String(), "no paper\n")) {
			t.Errorf("the output of the command was not copied: %s", worker.output)
		}
	}
}

func TestReceiveCommandRunsCommandsInParallel(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2, 3, 4)
	c, command := newCommands(t)
	r := s.startWorker("-exec", command, "-parallel", "3", "-count", "4", "t")
	eventually(t, "three commands run", func() bool { return c.begun() == 3 })
	checkDiff(t, "received", 3, s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 1"))
	c.end(0)
	eventually(t, "the fourth runs", func() bool { return c.begun() == 4 })
	for range 3 {
		c.end(0)
	}
	if err := r.await(); err != nil || r.output.String() != "" {
		t.Errorf("receive = %v, %s", err, r.output)
	}
	checkDiff(t, "stored", 0, s.unacked())
}

func TestReceiveCommandKeepsTheMessageWhileTheCommandRuns(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t", `"ack_deadline_seconds":1`)
	id := s.publish("t", 1)[0]
	c, command := newCommands(t)
	r := s.startWorker("-exec", command, "-count", "1", "t")
	eventually(t, "the command runs", func() bool { return c.begun() == 1 })
	var first wireMessage
	mustDecode(t, s.must(200, "GET", "/messages/"+id, ""), &first)
	eventually(t, "the lease has lasted longer than the first ack deadline", func() bool {
		var m wireMessage
		mustDecode(t, s.must(200, "GET", "/messages/"+id, ""), &m)
		return m.UpdatedAt > first.ScheduledAt
	})
	checkDiff(t, "received by another", []int{}, numbers(s.receive("t", "")))
	c.end(0)
	if err := r.await(); err != nil || r.output.String() != "" {
		t.Errorf("receive = %v, %s", err, r.output)
	}
	checkDiff(t, "stored", 0, s.unacked())
}

// If the response to an extension is lost, the lease token has changed, but the lease
// is still the worker's.
func TestReceiveCommandAcksALeaseThatWasExtendedWithoutAResponse(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	c, command := newCommands(t)
	r := s.startWorker("-exec", command, "-count", "1", "t")
	eventually(t, "the command runs", func() bool { return c.begun() == 1 })
	s.must(200, "PUT", "/messages/"+id+"/extend", `{"ack_deadline_seconds":90}`)
	c.end(0)
	if err := r.await(); err != nil || r.output.String() != "" {
		t.Errorf("receive = %v, %s", err, r.output)
	}
	checkDiff(t, "stored", 0, s.unacked())
}

func TestReceiveCommandLeavesTheLeaseOfAnotherAlone(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	for _, status := range []int{0, 1} {
		id := s.publish("t", 1)[0]
		c, command := newCommands(t)
		r := s.startWorker("-exec", command, "-count", "1", "t")
		eventually(t, "the command runs", func() bool { return c.begun() == 1 })
		s.makeDue()
		m := s.receive("t", "?wait_seconds=20")[0]
		c.end(status)
		if err := r.await(); err != nil || !strings.Contains(r.output.String(), "message "+id+": the lease ended") {
			t.Errorf("receive = %v, %s", err, r.output)
		}
		s.must(204, "PUT", "/messages/"+id+"/ack?scheduled_at="+m.ScheduledAt, "")
	}
}

func TestReceiveCommandDrains(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1, 2)
	for _, terminal := range []bool{false, true} {
		c, command := newCommands(t)
		cmd := shellProcess(s.url, "receive", "-exec", command, "t")
		if terminal {
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		}
		r := startCommand(t, cmd)
		eventually(t, "a command runs", func() bool { return c.begun() == 1 })
		if terminal { // a terminal signals its foreground process group
			syscall.Kill(-r.cmd.Process.Pid, syscall.SIGINT)
		} else {
			r.cmd.Process.Signal(syscall.SIGTERM)
		}
		left := s.unacked()
		c.end(0)
		if err := r.await(); err != nil || r.output.String() != "" {
			t.Errorf("receive = %v\n%s", err, r.output)
		}
		checkDiff(t, "stored", left-1, s.unacked())
		checkDiff(t, "begun", 1, c.begun())
	}
}

// startWorkerProcess starts queued receive as a process.
func startWorkerProcess(t testing.TB, url, command string) *running {
	t.Helper()
	cmd := shellProcess(url, "receive", "-exec", command, "t")
	return startCommand(t, cmd)
}

// shellProcess returns a command of the program as a process, for the server at url.
func shellProcess(url string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1", "QUEUED_URL="+url)
	return cmd
}

// endBySignals sends signals until the process has ended. One of them arrives after
// the process has handled the first.
func (r *running) endBySignals(s *testServer) {
	s.t.Helper()
	eventually(r.t, "the worker has ended", func() bool {
		r.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-r.ended:
			return true
		default:
			return false
		}
	})
}

func TestReceiveCommandEndsCommandsAtTheSecondSignal(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	id := s.publish("t", 1)[0]
	c, command := newCommands(t)
	command = "trap 'echo trapped >&2; exit 7' TERM; " + command
	r := startWorkerProcess(t, s.url, command)
	eventually(t, "the command runs", func() bool { return c.begun() == 1 })
	eventually(t, "the worker has ended", func() bool { // one of the signals arrives after the worker has handled the first
		r.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-r.ended:
			return true
		default:
			return strings.Contains(r.output.String(), "trapped")
		}
	})
	if err := r.await(); err != nil || !strings.Contains(r.output.String(), "message "+id+", attempt 1: exit status 7") {
		t.Errorf("receive = %v\n%s", err, r.output)
	}
	checkDiff(t, "stored", 1, s.unacked())
}

func TestReceiveCommandLeavesNothingRunningAtTheSecondSignal(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	pids := filepath.Join(t.TempDir(), "pids")
	r := startWorkerProcess(t, s.url, fmt.Sprintf(`trap "" TERM; sleep 600 & echo $! >%q.new && mv %q.new %q; wait`, pids, pids, pids))
	eventually(t, "the command runs", func() bool { _, err := os.Stat(pids); return err == nil })
	r.endBySignals(s)
	var pid int
	text, err := os.ReadFile(pids)
	if _, scanned := fmt.Sscan(string(text), &pid); err != nil || scanned != nil {
		t.Fatal(err, scanned)
	}
	eventually(t, "the process that the command started has ended", func() bool { return syscall.Kill(pid, 0) != nil })
	checkDiff(t, "stored", 1, s.unacked())
}

// A command that does not exist fails for every message, and must not use up their
// delivery attempts.
func TestReceiveCommandEndsWhenItCannotRunCommands(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("dead")
	s.mustTopic("t", `"dead_queue_id":"dead","message_max_deliveries":1`)
	s.publish("t", make([]int, 50)...)
	folder := t.TempDir()
	notExecutable := filepath.Join(folder, "script")
	if err := os.WriteFile(notExecutable, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, v := range map[string]struct {
		command, path, want string
	}{
		"an unknown command":           {"nosuchcommand", os.Getenv("PATH"), "-exec: exit status 127: "},
		"an unknown last command":      {"true; nosuchcommand", os.Getenv("PATH"), "-exec: exit status 127: "},
		"a file that is not a program": {notExecutable, os.Getenv("PATH"), "-exec: exit status 126: "},
		"no shell":                     {"true", folder, `-exec: exec: "sh": executable file not found in $PATH`},
		"a shell that cannot start":    {"true", mustMakeBrokenShell(t), "-exec: cannot start the shell: fork/exec"},
	} {
		for _, parallel := range []string{"1", "5"} {
			cmd := shellProcess(s.url, "receive", "-parallel", parallel, "-exec", v.command, "t")
			cmd.Env = append(cmd.Env, "PATH="+v.path)
			r := startCommand(t, cmd)
			exit := new(exec.ExitError)
			if err := r.await(); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(r.output.String(), "queued: "+v.want) {
				t.Errorf("receive -parallel %s with %s = %v, %s, want exit status 1 and %q", parallel, what, err, r.output, v.want)
			}
		}
	}
	checkDiff(t, "messages without an attempt, and not in flight", 50, s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 0 AND NOT in_flight"))
	checkDiff(t, "dead", 0, len(s.receive("dead", "")))

	// Other exit statuses count as failures of the message.
	s.makeDue()
	for _, command := range []string{"exit 125", "exit 128", "kill -9 $$"} {
		if _, stderr, err := s.shell(nil, "receive", "-exec", command, "-count", "1", "t"); err != nil {
			t.Errorf("receive -exec %q = %v, %s", command, err, stderr)
		}
	}
	checkDiff(t, "dead", 3, len(s.receive("dead", "")))
}

// mustMakeBrokenShell returns a directory in which sh is not executable code.
func mustMakeBrokenShell(t testing.TB) (folder string) {
	t.Helper()
	folder = t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "sh"), []byte("no program"), 0o700); err != nil {
		t.Fatal(err)
	}
	return folder
}

// The worker still acks the message of a running command before it exits.
func TestReceiveCommandLetsCommandsEndWhenAnotherCannotRun(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.publish("t", 1)
	c, command := newCommands(t)
	r := s.startWorker("-exec", `[ "$(cat)" = '{"n":1}' ] || exec nosuchcommand; echo '{"n":1}' | (`+command+`)`, "-parallel", "2", "t")
	eventually(t, "the command runs", func() bool { return c.begun() == 1 })
	s.publish("t", 2)
	eventually(t, "the other message is released", func() bool {
		return s.count("SELECT count(*) FROM queued.messages WHERE delivery_attempts = 0 AND scheduled_at > updated_at") == 1
	})
	c.end(0)
	if err := r.await(); err == nil || !strings.Contains(err.Error(), "exit status 127") {
		t.Errorf("receive = %v\n%s", err, r.output)
	}
	checkDiff(t, "stored", 1, s.unacked())
}

// A queued receive in the command does not inherit the flags of the worker.
func TestReceiveCommandKeepsItsFlagsFromItsCommand(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("first")
	s.mustQueue("second")
	for n := range 3 {
		s.must(201, "POST", "/queues/first/messages", fmt.Sprintf(`{"data":{"n":%d}}`, n))
		s.must(201, "POST", "/queues/second/messages", fmt.Sprintf(`{"data":{"n":%d}}`, n))
	}
	cmd := shellProcess(s.url, "receive", "first")
	cmd.Env = append(cmd.Env, "QUEUED_COUNT=1", "QUEUED_PARALLEL=2", "QUEUED_WAIT=20s",
		fmt.Sprintf(`QUEUED_EXEC=env | grep -c -e ^QUEUED_EXEC -e ^QUEUED_COUNT -e ^QUEUED_PARALLEL -e ^QUEUED_WAIT; %q receive -wait 0s second | grep -c '"n":'`, os.Args[0]))
	out, err := cmd.Output()
	checkDiff(t, "variables left, and messages of the inner queued receive", "0\n3\n", string(out))
	if err != nil {
		t.Errorf("receive = %v", err)
	}
	checkDiff(t, "left", 2, s.unacked())
}

func TestReceiveCommandStopsWhileTheServerIsUnavailable(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	p := newProxy(t, "tcp", strings.TrimPrefix(s.url, "http://"))
	p.refuse(true)
	r := s.startWorker("-url", "http://"+p.address, "t")
	eventually(t, "the worker logs that the server is unavailable", func() bool { return strings.Contains(r.output.String(), "queued: server unavailable: ") })
	r.stop()
	if err := r.await(); err != nil {
		t.Errorf("receive = %v", err)
	}
}

func TestReceiveCommandSurvivesAnUnavailableServer(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	p := newProxy(t, "tcp", strings.TrimPrefix(s.url, "http://"))
	c, command := newCommands(t)
	r := s.startWorker("-url", "http://"+p.address, "-exec", command, "-parallel", "2", "t")
	s.publish("t", 1)
	eventually(t, "the command runs", func() bool { return c.begun() == 1 })
	p.refuse(true)
	p.reset()
	eventually(t, "the worker logs that the server is unavailable", func() bool { return strings.Contains(r.output.String(), "queued: server unavailable: ") })
	c.end(0) // the worker acks it later
	s.publish("t", 2)
	p.refuse(false)
	eventually(t, "the next command runs", func() bool { return c.begun() == 2 })
	c.end(0)
	eventually(t, "both are acked", func() bool { return s.unacked() == 0 })
	r.stop()
	if err := r.await(); err != nil || strings.Count(r.output.String(), "\n") != 2 || !strings.HasSuffix(r.output.String(), "queued: server available again: http://"+p.address+"\n") {
		t.Errorf("receive = %v, and prints\n%s", err, r.output)
	}

	p.refuse(true)
	p.reset()
	var out bytes.Buffer
	if err := run(context.Background(), []string{"receive", "-url", "http://" + p.address, "-wait", "0s", "t"}, func(string) string { return "" }, nil, &out, &out); err == nil || out.Len() != 0 {
		t.Errorf("receive -wait 0s without a server = %v, %s", err, out.String())
	}
}

func TestReceiveCommandExitsAfterPermanentErrors(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustQueue("q")
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }))
	t.Cleanup(page.Close)
	for args, want := range map[string]string{
		"nosuch":                  "404: Queue not found",
		"-url " + page.URL + " q": "the response is not from a queued server; check -url",
	} {
		if _, _, err := s.shell(nil, "receive", strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("receive %s = %v, want %q", args, err, want)
		}
	}
	r := s.startWorker("q")
	s.waiting("q", 1)
	s.must(204, "DELETE", "/queues/q", "")
	if err := r.await(); err == nil || !strings.Contains(err.Error(), "Queue not found") {
		t.Errorf("receive from a queue that is deleted = %v", err)
	}
}

func TestReceiveCommandWaitsNoLongerThanTheServerAllows(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.limits.maxWait = 3
	r := s.startWorker("t")
	s.waiting("t", 1)
	s.publish("t", 1)
	eventually(t, "the message is acked", func() bool { return s.unacked() == 0 })
	r.stop()
	if err := r.await(); err != nil {
		t.Errorf("receive = %v", err)
	}
}
