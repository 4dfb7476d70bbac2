package deploy

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
)

// process is an entry of /proc.
type process struct {
	pid   int
	name  string
	state string // Z: a zombie
}

// childrenOf returns the processes whose parent is that one.
func childrenOf(t *testing.T, parent int) (children []process) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		t.Fatalf("no processes, %v", err)
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		m := regexp.MustCompile(`^(\d+) \((.*)\) (\w) (\d+) `).FindStringSubmatch(string(text))
		if m != nil && m[4] == strconv.Itoa(parent) {
			pid, _ := strconv.Atoi(m[1])
			children = append(children, process{pid, m[2], m[3]})
		}
	}
	return children
}

// startFirst starts a server by a shell script that ends in exec, as process 1 of a
// process namespace with its own mounts. It returns its process id outside of it. The end
// of the test stops the server.
func startFirst(t *testing.T, env []string, script string, options ...string) (url string, pid int) {
	t.Helper()
	options = append([]string{"--mount", "--pid", "--fork", "--kill-child=SIGKILL"}, options...)
	unshare := exec.Command("unshare", append(options, "sh", "-euc", script)...)
	unshare.Env = env
	url = start(t, unshare, regexp.MustCompile(`msg=ready url=(\S+)`))
	children := childrenOf(t, unshare.Process.Pid)
	if len(children) != 1 {
		t.Fatalf("unshare has the children %v", children)
	}
	pid = children[0].pid
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGTERM) }) // unshare does not forward it
	return url, pid
}

// forward makes the socket of a private PostgreSQL reachable by TCP, for users that cannot
// enter its directory. It returns the parameters of a connection.
func forward(t *testing.T, dataDir string) string {
	t.Helper()
	l, err := net.Listen("tcp", freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			database, err := net.Dial("unix", filepath.Join(dataDir, "run/.s.PGSQL.5432"))
			if err != nil {
				client.Close()
				continue
			}
			go func() { io.Copy(database, client); database.Close() }()
			go func() { io.Copy(client, database); client.Close() }()
		}
	}()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	return fmt.Sprintf("host=%s port=%s user=queued dbname=queued sslmode=disable", host, port)
}

// As in the default image with a read-only root filesystem: the program is the only file,
// its user has no name, and it is process 1. SIGTERM ends it with status 0.
func TestServerNeedsNoFilesAndNoUserName(t *testing.T) {
	t.Parallel()
	program := mustBuild(t, "..")
	database := startServer(t, program)
	root := filepath.Dir(newDataDir(t))
	if err := os.WriteFile(filepath.Join(root, "queued"), mustRead(t, program), 0o755); err != nil {
		t.Fatal(err)
	}
	url, _ := startFirst(t, []string{"PATH=" + os.Getenv("PATH"), "ROOT=" + root, "QUEUED_DATABASE_URL=" + forward(t, database.dataDir)}, `
		mount --bind "$ROOT" "$ROOT"
		mount -o remount,bind,ro "$ROOT"
		exec chroot "$ROOT" /queued -listen 127.0.0.1:0`,
		"--user", "--map-user=12345", "--map-group=12345", "--keep-caps")
	s := &server{t: t, url: url}
	s.must(201, "POST", "/queues", `{"id":"q","ack_deadline_seconds":60,"message_retention_seconds":600}`)
	s.must(201, "POST", "/queues/q/messages", `{"data":{}}`)
	s.must(204, "PUT", "/messages/"+s.receive("q")+"/ack", "")
}

// Process 1 adopts the processes of a PostgreSQL that was killed.
func TestFirstProcessLeavesNoZombies(t *testing.T) {
	t.Parallel()
	options := []string{"--mount-proc"}
	if os.Geteuid() != 0 {
		options = append(options, "--user", "--map-current-user", "--keep-caps")
	}
	url, pid := startFirst(t, append(os.Environ(), "PROGRAM="+mustBuild(t, ".."), "DATA="+newDataDir(t)),
		`exec "$PROGRAM" -listen 127.0.0.1:0 -data-dir "$DATA"`, options...)
	s := &server{t: t, url: url}
	s.must(201, "POST", "/queues", `{"id":"q","ack_deadline_seconds":60,"message_retention_seconds":600}`)
	children := childrenOf(t, pid)
	if len(children) != 1 || children[0].name != "postgres" {
		t.Fatalf("the server has the children %v", children)
	}
	if err := syscall.Kill(children[0].pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "PostgreSQL was started again", func() bool {
		now := childrenOf(t, pid)
		status, _ := s.send("POST", "/queues/q/messages", `{"data":{}}`)
		return status == 201 && len(now) > 0 && now[0].pid != children[0].pid
	})
	for _, child := range childrenOf(t, pid) {
		if child.state == "Z" {
			t.Errorf("process %v is a zombie", child)
		}
	}
}
