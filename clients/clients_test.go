// Package clients tests the server with clients of the five servers whose APIs it
// implements, written as their users write them: in Python, in Go, and in a shell with
// curl, and for Amazon SQS also with the AWS CLI, in JavaScript, and with Celery. It is a
// separate module because the server's own tests need none of these programs.
package clients

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testTimeout is the maximum time that a client may take. It is only reached when a
// test fails.
const testTimeout = time.Minute

// servers lists the servers to imitate. A client gets a URL and a name for its queues.
// It produces and consumes twenty messages, and prints a line for each: the queue, a
// space, and the content of the message.
var servers = []struct {
	id   string // directory of the clients
	args []string
	want func(name string) []string // lines; their order matters only within a queue

	// Messages of a queue may come in any order.
	unordered bool

	// The minimum time that a client takes, because of a rate limit.
	atLeast time.Duration
}{
	{
		id: "fastqueue",
		want: func(name string) []string { // lines end in the number of the delivery
			lines := numbered(1, 6, name+" %d 1")
			lines = append(lines, numbered(8, 20, name+" %d 1")...)
			return append(lines, name+" 7 2")
		},
	},
	{
		id:   "sqs",
		args: []string{"-token-file", "sqs/tokens.json"},
		want: func(name string) []string { // lines end in the number of the delivery
			lines := numbered(1, 6, name+" %d 1")
			lines = append(lines, numbered(8, 20, name+" %d 1")...)
			return append(lines, name+" 7 2")
		},
		unordered: true,
	},
	{
		id:   "pgqueue",
		want: func(name string) []string { return numbered(1, 20, name+" %d") },
	},
	{
		id:   "microqueue",
		args: []string{"-topology", "microqueue/topology.json", "-token-file", "microqueue/tokens.json"},
		want: func(name string) []string { return numbered(1, 20, name+` {"context": "job %d"}`) },
	},
	{
		id: "sharq",
		want: func(string) (lines []string) { // lines end in the number of remaining requeues
			for n := 1; n <= 20; n++ {
				lines = append(lines, fmt.Sprintf("user-%d %d 5", n%3, n))
			}
			return lines
		},
		atLeast: 600 * time.Millisecond, // each user has seven jobs, one every 100 ms
	},
}

// numbered returns a line for each number from first to last.
func numbered(first, last int, format string) (lines []string) {
	for n := first; n <= last; n++ {
		lines = append(lines, fmt.Sprintf(format, n))
	}
	return lines
}

func TestClientsWorkUnchanged(t *testing.T) {
	t.Parallel()
	queued := mustBuild(t, "..")
	for _, v := range servers {
		t.Run(v.id, func(t *testing.T) {
			t.Parallel()
			url := startServer(t, queued, v.args...)
			clients := map[string][]string{
				"python": {python(t, modules[v.id]), v.id + "/worker.py"},
				"shell":  {"sh", v.id + "/worker.sh"},
				"go":     {mustBuild(t, v.id)},
			}
			if v.id == "sqs" {
				packages := npmInstall(t)
				clients["aws-cli"] = []string{"sh", "sqs/aws.sh"}
				clients["node"] = []string{"node", packages + "/worker.mjs"}
				clients["sqs-consumer"] = []string{"node", packages + "/consumer.mjs"}
			}
			for language, command := range clients {
				t.Run(language, func(t *testing.T) {
					t.Parallel()
					began := time.Now()
					got := run(t, append(command, url, language)...)
					if took := time.Since(began); took < v.atLeast {
						t.Errorf("the client took %v, want at least %v", took, v.atLeast)
					}
					want := v.want(language)
					if v.unordered {
						slices.Sort(got)
						slices.Sort(want)
					}
					if !reflect.DeepEqual(byQueue(got), byQueue(want)) {
						t.Errorf("messages by queue:\n%q\nwant:\n%q", byQueue(got), byQueue(want))
					}
				})
			}
		})
	}
}

// modules lists what the client in Python of a server imports.
var modules = map[string]string{"sqs": "boto3"}

// python returns an interpreter that can import the modules, which may be packages of the
// system.
func python(t *testing.T, modules string) string {
	t.Helper()
	for _, program := range []string{"python3", "/usr/bin/python3"} {
		if modules == "" || exec.Command(program, "-c", "import "+modules).Run() == nil {
			return program
		}
	}
	t.Fatalf("Python cannot import %s: run .ci/setup clients", modules)
	return ""
}

// npmInstall returns a folder with the clients of SQS in JavaScript and the packages that
// they import.
func npmInstall(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("sqs")); err != nil {
		t.Fatal(err)
	}
	install := exec.Command("npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	return dir
}

// run runs a client and returns the lines that it prints.
func run(t *testing.T, command ...string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	var stderr bytes.Buffer
	client := exec.CommandContext(ctx, command[0], command[1:]...)
	client.Stderr = &stderr
	out, err := client.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", command, err, out, stderr.Bytes())
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// byQueue groups lines by their first word, and keeps their order.
func byQueue(lines []string) map[string][]string {
	queues := map[string][]string{}
	for _, line := range lines {
		queue, rest, _ := strings.Cut(line, " ")
		queues[queue] = append(queues[queue], rest)
	}
	return queues
}

// mustBuild builds the program in a directory and returns the path of the binary.
func mustBuild(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build in %s: %v\n%s", dir, err, out)
	}
	return program
}

var readyLine = regexp.MustCompile(`msg=ready url=(\S+)`)

// startServer starts queued on a private PostgreSQL and returns its URL once it is
// ready. At the end of the test it stops the server, which has to exit with status 0.
func startServer(t *testing.T, queued string, args ...string) (url string) {
	t.Helper()
	return launch(t, queued, append([]string{"-data-dir", newDataDir(t)}, args...)...).url
}

// server is a server that runs.
type server struct {
	url     string
	process *os.Process
	killed  bool
	rest    chan struct{} // closed once it has closed its log
}

// launch starts queued with these arguments, like startServer.
func launch(t *testing.T, queued string, args ...string) *server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*testTimeout)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, queued, append([]string{"-listen", "127.0.0.1:0"}, args...)...)
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(io.TeeReader(logs, t.Output()))
	s := &server{process: cmd.Process, rest: make(chan struct{})}
	t.Cleanup(func() {
		s.process.Signal(syscall.SIGTERM)
		<-s.rest
		if err := cmd.Wait(); err != nil && !s.killed {
			t.Errorf("the server exited with %v after SIGTERM", err)
		}
	})
	for s.url == "" {
		line, err := lines.ReadString('\n')
		if err != nil {
			close(s.rest)
			t.Fatalf("the server did not become ready: %v", err)
		}
		if m := readyLine.FindStringSubmatch(line); m != nil {
			s.url = m[1]
		}
	}
	go func() {
		defer close(s.rest)
		io.Copy(io.Discard, lines)
	}()
	response, err := http.Get(s.url + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("GET /readyz = %s", response.Status)
	}
	return s
}

// kill kills the server, and returns once it has ended.
func (s *server) kill() {
	s.killed = true
	s.process.Kill()
	<-s.rest
}

// newDataDir returns a path that the user PostgreSQL runs as can reach.
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
