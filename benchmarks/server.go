package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// server is a queued with a private PostgreSQL, or with that of another server.
type server struct {
	s    *suite
	cmd  *exec.Cmd
	url  string
	data string
}

// start starts a server on a new, empty database.
func (s *suite) start(args ...string) (*server, error) {
	dir, err := os.MkdirTemp(s.dir, "data-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	return s.startOn(dir, append([]string{"-data-dir", filepath.Join(dir, "data")}, args...)...)
}

// startBeside starts another server on the database of this one.
func (s *suite) startBeside(first *server) (*server, error) {
	return s.startOn("", "-database-url", "host="+first.data+"/data/run user=queued dbname=queued sslmode=disable")
}

func (s *suite) startOn(dir string, args ...string) (*server, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	v := &server{s: s, url: "http://" + address, data: dir}
	v.cmd = exec.Command(s.program, append([]string{"-listen", address}, args...)...)
	v.cmd.Stderr = os.Stderr
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	for range 600 {
		if response, err := http.Get(v.url + "/readyz"); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return v, nil
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	v.stop()
	return nil, fmt.Errorf("the server is not ready")
}

func (v *server) stop() {
	v.cmd.Process.Signal(os.Interrupt)
	v.cmd.Wait()
	if v.data != "" {
		os.RemoveAll(v.data)
	}
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// postgresProgram returns the path of one of PostgreSQL's programs.
func postgresProgram(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		return name
	}
	return found[len(found)-1]
}

// sql runs a statement on the database of the server, and returns the output of psql.
func (v *server) sql(statement string) (string, error) {
	out, err := exec.CommandContext(v.s.ctx, postgresProgram("psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", v.data+"/data/run", "-U", "queued", "-d", "queued",
		"-c", "SET statement_timeout = 0", "-c", statement).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// memory returns the resident bytes of a process.
func memory(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	kB, _, _ := strings.Cut(strings.TrimSpace(after), " ")
	n, _ := strconv.ParseInt(kB, 10, 64)
	return n * 1024
}

func (v *server) mustQueue(id string) error {
	response, err := http.Post(v.url+"/queues", "application/json", strings.NewReader(fmt.Sprintf(`{"id":%q,"ack_deadline_seconds":60,"message_retention_seconds":86400}`, id)))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		return fmt.Errorf("queue %s: %s", id, response.Status)
	}
	return nil
}

// request sends a request on any connection and reads the response.
func request(client *http.Client, method, url, body string) (status int, response []byte, err error) {
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	return do(client, r)
}

// do is like request, for a request with headers.
func do(client *http.Client, r *http.Request) (status int, response []byte, err error) {
	a, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer a.Body.Close()
	response, err = io.ReadAll(a.Body)
	return a.StatusCode, response, err
}

var firstID = regexp.MustCompile(`"id":"([0-9a-f-]{36})"`)
