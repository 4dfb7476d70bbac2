// Package deploy tests the files of this directory with the programs that read them:
// the dashboard and the alerts with a Prometheus that scrapes the server, and the unit
// with systemd. It is a module of its own because the server's tests do not need these
// programs.
package deploy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"
)

// The file of this module is the Compose specification's schema.
const composeModule = "github.com/compose-spec/compose-go/v2@v2.16.2"

// testTimeout is the longest wait for an event. A working program is much faster.
const testTimeout = 30 * time.Second

func TestPromtoolAcceptsTheRulesAndTheirTests(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"check", "config", "prometheus.yml"},
		{"check", "rules", "alerts.yml"},
		{"test", "rules", "alerts_test.yml"},
	} {
		if out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Compose replaces the variables before it checks the file.
func TestComposeFileMatchesTheSpecification(t *testing.T) {
	t.Parallel()
	schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(mustRead(t, filepath.Join(moduleDir(t, composeModule), "schema/compose-spec.json"))))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("compose-spec.json", schema); err != nil {
		t.Fatal(err)
	}
	variables := regexp.MustCompile(`\$\{\w+:-([^}]*)\}`)
	text, err := yaml.YAMLToJSONStrict(variables.ReplaceAll(mustRead(t, "../compose.yaml"), []byte("$1")))
	if err != nil {
		t.Fatal(err)
	}
	file, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("compose-spec.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := compiled.Validate(file); err != nil {
		t.Error(err)
	}
}

// The grace period covers a drain. Without the profile "monitoring" only the server and
// its database start.
func TestComposeStartsWhatTheServerNeeds(t *testing.T) {
	t.Parallel()
	var file struct {
		Services map[string]struct {
			Profiles        []string
			StopGracePeriod string `json:"stop_grace_period"`
			DependsOn       any    `json:"depends_on"`
		}
	}
	if err := yaml.Unmarshal(mustRead(t, "../compose.yaml"), &file); err != nil {
		t.Fatal(err)
	}
	var always []string
	for name, service := range file.Services {
		if len(service.Profiles) == 0 {
			always = append(always, name)
		}
	}
	slices.Sort(always)
	if !slices.Equal(always, []string{"postgres", "queued"}) {
		t.Errorf("docker compose up starts %q", always)
	}
	stop := seconds(t, "serve.go", "drainTimeout") + seconds(t, "serve.go", "closeTimeout")
	if grace, err := time.ParseDuration(file.Services["queued"].StopGracePeriod); err != nil || grace < time.Duration(stop+5)*time.Second {
		t.Errorf("stop_grace_period is %v, %v, want at least %d s", grace, err, stop+5)
	}
}

func TestComposeMountsFilesThatExist(t *testing.T) {
	t.Parallel()
	mounts := regexp.MustCompile(`- \./(deploy/[^:]+):`).FindAllSubmatch(mustRead(t, "../compose.yaml"), -1)
	if len(mounts) == 0 {
		t.Error("compose.yaml mounts no file of this directory")
	}
	for _, m := range mounts {
		if _, err := os.Stat("../" + string(m[1])); err != nil {
			t.Errorf("compose.yaml mounts a missing file: %v", err)
		}
	}
}

func TestComposeRunsAPostgreSQLThatCITests(t *testing.T) {
	t.Parallel()
	tested := regexp.MustCompile(`(?m)^VERSIONS \?= (.+)$`).FindSubmatch(mustRead(t, "../Makefile"))
	image := regexp.MustCompile(`image: postgres:(\d+)\n`).FindSubmatch(mustRead(t, "../compose.yaml"))
	if tested == nil || image == nil || !slices.Contains(strings.Fields(string(tested[1])), string(image[1])) {
		t.Errorf("compose.yaml runs postgres %q, the Makefile tests %q", image, tested)
	}
}

// The test gives every expression of the dashboard data: it produces each message
// outcome and stops the database for a moment.
func TestPrometheusFindsWhatTheDashboardAndTheAlertsAskFor(t *testing.T) {
	t.Parallel()
	s := startServer(t, mustBuild(t, ".."), "-cleanup-interval", "50ms", "-min-message-retention-seconds", "1")
	p := startPrometheus(t, strings.TrimPrefix(s.url, "http://"))
	eventually(t, "the server is scraped", func() bool { return p.value(`up{job="queued"}`) == 1 })
	eventually(t, "the database is there", func() bool { return p.value(`queued_database_up`) == 1 })

	s.must(201, "POST", "/queues", `{"id":"dead","ack_deadline_seconds":1,"message_retention_seconds":600}`)
	s.must(201, "POST", "/topics", `{"id":"orders"}`)
	s.must(201, "POST", "/queues", `{"id":"invoices","topic_id":"orders","dead_queue_id":"dead","message_max_deliveries":2,"ack_deadline_seconds":60,"message_retention_seconds":600}`)
	s.must(201, "POST", "/queues", `{"id":"brief","ack_deadline_seconds":60,"message_retention_seconds":1}`)
	poll := make(chan error, 1)
	go func() { // a waiting receiver
		answer, err := http.Get(s.url + "/queues/dead/messages?wait_seconds=20")
		if err == nil {
			answer.Body.Close()
		}
		poll <- err
	}()
	eventually(t, "a receiver is seen to wait", func() bool { return p.value(`queued_waiting_receivers{queue="dead"}`) == 1 })

	d := readDashboard(t)
	missing := d.queries
	eventually(t, "each expression of the dashboard has data", func() bool {
		s.work()
		missing = p.withoutData(missing)
		return len(missing) == 0
	}, func() any { return missing })
	if err := <-poll; err != nil {
		t.Error(err)
	}

	eventually(t, "the database is seen to be away, and requests to fail", func() bool {
		s.killPostgres()
		s.send("POST", "/topics/orders/messages", `{"data":{}}`)
		return p.value(`min_over_time(queued_database_up[1m])`) == 0 && p.value(`sum(http_requests_total{handler="/topics/{topic_id}/messages",status="5xx"})`) > 0
	})
	eventually(t, "the database is seen to be back", func() bool { return p.value(`queued_database_up`) == 1 })

	for _, r := range p.rules() {
		p.query(r.Query)
		if r.Health != "ok" {
			t.Errorf("Prometheus cannot evaluate %s: %s: %s", r.Name, r.Health, r.LastError)
		}
		for _, selector := range selectors.FindAllString(r.Query, -1) {
			if n := p.value("count(last_over_time(" + selector + "[10m]))"); n < 1 {
				t.Errorf("%s asks for %s, which is not there", r.Name, selector)
			}
		}
	}

	for _, v := range d.variables {
		var values []string
		p.get("label/"+v.label+"/values", url.Values{"match[]": {v.metric}}, &values)
		if len(values) == 0 {
			t.Errorf("the variable that lists the %s of %s has no values", v.label, v.metric)
		}
	}

	names := regexp.MustCompile("`((?:queued|http)_[a-z_]+)`").FindAllStringSubmatch(metricsTable(t), -1)
	if len(names) < 20 {
		t.Errorf("docs/operations.md lists %d metrics", len(names))
	}
	for _, m := range names {
		if !d.asksFor(m[1]) {
			t.Errorf("the dashboard does not show %s", m[1])
		}
	}
}

// metricsTable returns the table in docs/operations.md, which has all metrics.
func metricsTable(t *testing.T) string {
	t.Helper()
	_, after, found := strings.Cut(string(mustRead(t, "../docs/operations.md")), "| name | labels | meaning |\n")
	table, _, ended := strings.Cut(after, "\n\n")
	if !found || !ended {
		t.Fatal("docs/operations.md has no table of metrics")
	}
	return table
}

// selectors match the series of the server in a PromQL expression.
var selectors = regexp.MustCompile(`\b(up|(queued|http)_\w+)\b(\{[^}]*\})?`)

// query is a query of the dashboard.
type query struct {
	Panel, Expr string
	labels      []string // that its legend shows
}

type variable struct{ metric, label string }

type dashboard struct {
	queries   []query
	variables []variable
}

// readDashboard returns the queries of the dashboard, with values for its variables.
func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	var file struct {
		Templating struct {
			List []struct{ Type, Definition string }
		}
		Panels []struct {
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(mustRead(t, "grafana/queued.json"), &file); err != nil {
		t.Fatal(err)
	}
	chosen := strings.NewReplacer("$job", "queued", "$instance", ".*", "$queue", ".*", "$__rate_interval", "1m")
	taken := map[[2]int]string{}
	for _, p := range file.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("panel %q lies on %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, v := range p.Targets {
			q := query{Panel: p.Title, Expr: chosen.Replace(v.Expr)}
			for _, m := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(v.LegendFormat, -1) {
				q.labels = append(q.labels, m[1])
			}
			d.queries = append(d.queries, q)
		}
	}
	for _, v := range file.Templating.List {
		if v.Type != "query" {
			continue
		}
		m := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(v.Definition)
		if m == nil {
			t.Fatalf("a variable is defined by %q, want label_values", v.Definition)
		}
		d.variables = append(d.variables, variable{metric: chosen.Replace(m[1]), label: m[2]})
	}
	if len(d.queries) == 0 || len(d.variables) == 0 {
		t.Fatal("the dashboard is empty")
	}
	return d
}

// asksFor reports whether a query reads the metric, or a series of it if the metric is
// a histogram or a summary.
func (d dashboard) asksFor(metric string) bool {
	about := regexp.MustCompile(`\b` + metric + `(_bucket|_sum|_count)?\{`)
	for _, q := range d.queries {
		if about.MatchString(q.Expr) {
			return true
		}
	}
	return false
}

// prometheus is a running Prometheus that scrapes a server.
type prometheus struct {
	t   *testing.T
	url string
}

// startPrometheus starts a Prometheus with the configuration of this directory, for
// the server at an address, and with shorter scrape intervals.
func startPrometheus(t *testing.T, server string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	config := string(mustRead(t, "prometheus.yml"))
	for old, changed := range map[string]string{
		`"queued:8000"`:            strconv.Quote(server),
		"scrape_interval: 5s":      "scrape_interval: 500ms",
		"evaluation_interval: 15s": "evaluation_interval: 500ms",
	} {
		if !strings.Contains(config, old) {
			t.Fatalf("prometheus.yml lacks %s", old)
		}
		config = strings.Replace(config, old, changed, 1)
	}
	for name, text := range map[string][]byte{"prometheus.yml": []byte(config), "alerts.yml": mustRead(t, "alerts.yml")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	listen := freeAddress(t)
	start(t, exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+listen), regexp.MustCompile(`(Server is ready to receive web requests)`))
	return &prometheus{t: t, url: "http://" + listen}
}

// get calls the API of Prometheus. A failure ends the test.
func (p *prometheus) get(path string, values url.Values, result any) {
	p.t.Helper()
	response, err := http.Get(p.url + "/api/v1/" + path + "?" + values.Encode())
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: result}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		p.t.Fatal(err)
	}
	if answer.Status != "success" {
		p.t.Fatalf("%s %v: %s", path, values, answer.Error)
	}
}

// sample is the current value of an expression for some labels.
type sample struct {
	Metric map[string]string
	Value  [2]any // the time, and the number as text
}

// number is NaN if the sample is.
func (s sample) number() float64 {
	text, _ := s.Value[1].(string)
	n, _ := strconv.ParseFloat(text, 64)
	return n
}

func (p *prometheus) query(expr string) []sample {
	p.t.Helper()
	var data struct {
		ResultType string
		Result     []sample
	}
	p.get("query", url.Values{"query": {expr}}, &data)
	if data.ResultType != "vector" {
		p.t.Fatalf("%s is a %s, want a vector", expr, data.ResultType)
	}
	return data.Result
}

// value returns the first value of an expression, -1 if it has none.
func (p *prometheus) value(expr string) float64 {
	p.t.Helper()
	for _, v := range p.query(expr) {
		return v.number()
	}
	return -1
}

// withoutData returns the queries that have no value, or only NaN, or lack a label of
// their legend.
func (p *prometheus) withoutData(all []query) (without []query) {
	p.t.Helper()
next:
	for _, q := range all {
	samples:
		for _, v := range p.query(q.Expr) {
			for _, label := range q.labels {
				if v.Metric[label] == "" {
					continue samples
				}
			}
			if n := v.number(); n == n {
				continue next
			}
		}
		without = append(without, q)
	}
	return without
}

type rule struct{ Name, Query, Health, LastError string }

// rules returns the alerts, after each was evaluated.
func (p *prometheus) rules() (rules []rule) {
	p.t.Helper()
	eventually(p.t, "the rules are evaluated", func() bool {
		var data struct {
			Groups []struct{ Rules []rule }
		}
		p.get("rules", nil, &data)
		rules = nil
		for _, g := range data.Groups {
			rules = append(rules, g.Rules...)
		}
		for _, r := range rules {
			if r.Health == "unknown" {
				return false
			}
		}
		return len(rules) > 0
	})
	return rules
}

// eventually waits until a condition holds. It fails the test with details after
// testTimeout.
func eventually(t *testing.T, what string, is func() bool, more ...func() any) {
	t.Helper()
	tick, tooLong := time.NewTicker(50*time.Millisecond), time.After(testTimeout)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-tooLong:
			for _, say := range more {
				t.Logf("%+v", say())
			}
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// server is a running queued.
type server struct {
	t       *testing.T
	url     string
	dataDir string
	brief   bool // a message was published that expires
	killed  int  // the process id of the last killed PostgreSQL
}

// startServer starts queued with a private PostgreSQL.
func startServer(t *testing.T, queued string, args ...string) *server {
	t.Helper()
	s := &server{t: t, dataDir: newDataDir(t)}
	s.url = start(t, exec.Command(queued, append([]string{"-listen", "127.0.0.1:0", "-data-dir", s.dataDir}, args...)...), regexp.MustCompile(`msg=ready url=(\S+)`))
	return s
}

// send sends a request, and returns the status and the body of the response.
func (s *server) send(method, path, body string) (status int, response string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// must sends a request, and fails the test unless the response has this status.
func (s *server) must(status int, method, path, body string) (answer string) {
	s.t.Helper()
	got, answer := s.send(method, path, body)
	if got != status {
		s.t.Fatalf("%s %s %s = %d %s, want %d", method, path, body, got, answer, status)
	}
	return answer
}

// work produces message outcomes: one message is acked, one purged, one redelivered,
// dead-lettered and redriven, one dropped and, in the first call, one expires.
func (s *server) work() {
	s.t.Helper()
	if !s.brief {
		s.must(201, "POST", "/queues/brief/messages", `{"data":{}}`)
		s.brief = true
	}
	for range 2 { // the second one is a duplicate
		s.must(201, "POST", "/queues/dead/messages", `{"data":{},"deduplication_id":"one"}`)
	}
	s.must(201, "POST", "/topics/orders/messages", `{"data":{"n":1}}`)
	s.must(204, "PUT", "/messages/"+s.receive("invoices")+"/ack", "")
	s.must(201, "POST", "/topics/orders/messages", `{"data":{"n":2}}`)
	s.must(204, "PUT", "/messages/"+s.receive("invoices")+"/nack", "")
	s.must(204, "PUT", "/messages/"+s.receive("invoices")+"/nack", "")
	s.must(204, "PUT", "/queues/dead/redrive", `{"destination_queue_id":"invoices"}`)
	s.must(201, "POST", "/enqueue/sms/johndoe/", `{"job_id":"job","payload":{},"interval":1,"requeue_limit":0}`)
	s.must(204, "PUT", "/messages/"+s.receive("sms")+"/nack", "")
	s.must(404, "GET", "/topics/nope", "")
	s.must(204, "PUT", "/queues/invoices/purge", "")
}

// receive receives a message and returns its id.
func (s *server) receive(queueID string) string {
	s.t.Helper()
	var answer struct {
		Data []struct{ ID string }
	}
	body := s.must(200, "GET", "/queues/"+queueID+"/messages?limit=1&wait_seconds=10", "")
	if err := json.Unmarshal([]byte(body), &answer); err != nil || len(answer.Data) != 1 {
		s.t.Fatalf("receive(%s) = %s, %v, want a message", queueID, body, err)
	}
	return answer.Data[0].ID
}

// killPostgres kills the private PostgreSQL once. The server restarts it a second
// later.
func (s *server) killPostgres() {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dataDir, "postgres", "postmaster.pid"))
	if err != nil {
		return
	}
	first, _, whole := strings.Cut(string(b), "\n")
	if pid, err := strconv.Atoi(first); err == nil && whole && pid > 1 && pid != s.killed {
		if process, err := os.FindProcess(pid); err == nil {
			process.Signal(syscall.SIGQUIT)
		}
		s.killed = pid
	}
}

// start starts a program, waits for the line that reports it as ready, and returns the
// match in that line. The end of the test stops the program, which must exit cleanly.
func start(t *testing.T, program *exec.Cmd, ready *regexp.Regexp) (said string) {
	t.Helper()
	logs, err := program.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	giveUp := time.AfterFunc(testTimeout, func() { program.Process.Kill() })
	lines := bufio.NewReader(io.TeeReader(logs, t.Output()))
	rest := make(chan struct{})
	t.Cleanup(func() {
		program.Process.Signal(syscall.SIGTERM)
		<-rest
		if err := program.Wait(); err != nil {
			t.Errorf("%s ended with %v after SIGTERM", program.Path, err)
		}
	})
	for said == "" {
		line, err := lines.ReadString('\n')
		if err != nil {
			close(rest)
			t.Fatalf("%s is not ready: %v", program.Path, err)
		}
		if m := ready.FindStringSubmatch(line); m != nil {
			said = m[1]
		}
	}
	giveUp.Stop()
	go func() {
		defer close(rest)
		io.Copy(io.Discard, lines)
	}()
	return said
}

// mustBuild builds the static program in a directory.
func mustBuild(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "queued")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build in %s: %v\n%s", dir, err, out)
	}
	return program
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// freeAddress returns an address that no other program listens on, now or later. On Linux
// all of 127.0.0.0/8 is this machine.
func freeAddress(t *testing.T) string {
	t.Helper()
	host := "127.0.0.1"
	if runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.%d.%d.1", 192+os.Getpid()>>8&31, os.Getpid()&255)
	}
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newDataDir returns a directory that PostgreSQL's user can reach.
func newDataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "queued-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "data")
}
