package clients

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	tourPage     = "../docs/coming-from-sqs.md"
	serverOnPage = "localhost:8000"
)

var (
	// pythonOnPage is a program on the page, whose first line has the name of its file.
	pythonOnPage = regexp.MustCompile("(?ms)^```python\n# (\\w+\\.py)\n.*?^```$")

	// commandOnPage is a command, its further lines, and its output.
	commandOnPage = regexp.MustCompile(`(?m)^\$ (.*\n(?:> .*\n)*)((?:[^$].*\n)*)`)

	consoleOnPage = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")
	uuid          = regexp.MustCompile(`[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
)

// The page for users of Amazon SQS has commands that need the AWS CLI, boto3 and Celery.
// Like the commands of other pages, they run in one shell, and print what the page says,
// but for ids.
func TestCommandsForUsersOfSQSWorkAsPrinted(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(tourPage)
	if err != nil {
		t.Fatal(err)
	}
	url := startServer(t, mustBuild(t, ".."))
	here := strings.NewReplacer(serverOnPage, strings.TrimPrefix(url, "http://"))
	page := here.Replace(string(text))

	dir := t.TempDir()
	for _, m := range pythonOnPage.FindAllStringSubmatch(page, -1) {
		program := strings.TrimSuffix(strings.TrimPrefix(m[0], "```python\n"), "```")
		if err := os.WriteFile(filepath.Join(dir, m[1]), []byte(program), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shell := newShell(t, dir)
	commands := 0
	for _, block := range consoleOnPage.FindAllStringSubmatch(page, -1) {
		for _, m := range commandOnPage.FindAllStringSubmatch(block[1], -1) {
			commands++
			command := strings.ReplaceAll(m[1], "\n> ", "\n")
			got, want := shell.run(command), m[2]
			if uuid.ReplaceAllString(got, "ID") != uuid.ReplaceAllString(want, "ID") {
				t.Errorf("$ %sprints\n%sbut the page says\n%s", command, got, want)
			}
		}
	}
	if commands < 10 {
		t.Errorf("the page has only %d commands", commands)
	}
}

// shell runs one command after another, as a terminal does.
type shell struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

// newShell starts a shell in dir. The first Python in its PATH has boto3 and Celery.
// The shell and what it started in the background end with the test.
func newShell(t *testing.T, dir string) *shell {
	t.Helper()
	interpreter, err := exec.LookPath(python(t, "boto3, celery, pycurl"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(interpreter)+":"+os.Getenv("PATH"))
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	deadline := time.AfterFunc(2*testTimeout, stop)
	t.Cleanup(func() {
		deadline.Stop()
		stop()
		cmd.Wait()
	})
	return &shell{t, in, bufio.NewReader(out)}
}

// run returns what a command prints.
func (s *shell) run(command string) string {
	s.t.Helper()
	const end = "-- end of the command --\n"
	fmt.Fprintf(s.in, "%s\nprintf '%%s\\n' '%s'\n", command, strings.TrimSpace(end))
	var printed strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatalf("the shell ended in %s: %v", command, err)
		}
		if line == end {
			return printed.String()
		}
		printed.WriteString(line)
	}
}
