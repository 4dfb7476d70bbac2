package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var updateReadme = flag.Bool("update-readme", false, "write the output of the commands into the pages")

var uuidPattern = regexp.MustCompile(`[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// The commands on the pages work as printed. They run in a shell against the real
// program, and their output must be as on the page, except for ids of messages and times.
func TestToursWorkAsPrinted(t *testing.T) {
	t.Parallel()
	program := mustBuild(t)
	for _, path := range pages(t) {
		if path == pageOfClients {
			continue
		}
		if commands := toursOf(mustRead(t, path)); commands != "" {
			t.Run(path, func(t *testing.T) {
				t.Parallel()
				tour(t, program, path, strings.Contains(commands, privateFolder))
			})
		}
	}
}

// The addresses of the server, of a second server that a page starts, and the data
// folder, as on the pages. The test replaces them.
const (
	serverOnPage  = "localhost:8000"
	anotherOnPage = "localhost:8001"
	privateFolder = "/var/lib/queued"
)

// pageOfClients has commands that need the AWS CLI, boto3 and Celery: the tests in
// clients/ run them.
const pageOfClients = "docs/coming-from-sqs.md"

// toursOf returns the blocks of a page that the test runs.
func toursOf(page string) (commands string) {
	for _, b := range blocksOf(page) {
		if b.language == "console" && !b.marked {
			commands += b.text
		}
	}
	return commands
}

var topologyOnPage = regexp.MustCompile("(?s)```json\n({\"queues\".*?)```")

// tour runs the commands of a page, on a server with the topology that the page shows.
// For the README, and for pages that name the data folder, the server has a private
// PostgreSQL, as for a reader. Servers that the commands start use the same database.
func tour(t *testing.T, program, path string, private bool) {
	page := mustRead(t, path)
	var args, env []string
	dataDir := newDataDir(t)
	if private = private || path == "README.md"; private {
		args = []string{"-data-dir", dataDir}
	} else {
		dsn := newTestDatabase(t, "queued")
		args, env = []string{"-database-url", dsn}, []string{"QUEUED_DATABASE_URL=" + dsn}
	}
	if m := topologyOnPage.FindStringSubmatch(page); m != nil {
		file := filepath.Join(t.TempDir(), "topology.json")
		if err := os.WriteFile(file, []byte(m[1]), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-topology", file)
	}
	server := startProgram(t, program, args...)
	inThisRun := strings.NewReplacer(
		serverOnPage, strings.TrimPrefix(server.url, "http://"),
		anotherOnPage, freeAddress(t),
		privateFolder, dataDir,
	)

	terminal := newTerminal(t, append(env, "CURL_HOME="+curlHome(t), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "QUEUED_URL="+server.url)...)
	ids := map[string]string{} // by id of a message on the page: the id in this run
	var rewritten strings.Builder
	last := "" // the last printed id
	runs := false
	blocks := blocksOf(page)
	lines := strings.Split(strings.TrimSuffix(page, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		if len(blocks) > 0 && blocks[0].line == i {
			runs, blocks = blocks[0].language == "console" && !blocks[0].marked, blocks[1:]
		} else if lines[i] == "```" {
			runs = false
		}
		if *updateReadme && runs && last != "" && strings.HasPrefix(lines[i], "$ ") {
			// A command refers to the message that was printed last.
			lines[i] = uuidPattern.ReplaceAllString(lines[i], last)
		}
		rewritten.WriteString(lines[i] + "\n")
		if !runs || !strings.HasPrefix(lines[i], "$ ") {
			continue
		}
		command := strings.TrimPrefix(lines[i], "$ ")
		for strings.HasPrefix(lines[i+1], "> ") { // the command goes on
			i++
			rewritten.WriteString(lines[i] + "\n")
			command += "\n" + strings.TrimPrefix(lines[i], "> ")
		}
		var want []string
		for lines[i+1] != "```" && !strings.HasPrefix(lines[i+1], "$ ") {
			i++
			want = append(want, lines[i])
		}
		command = inThisRun.Replace(command)
		for onPage, inRun := range ids {
			command = strings.ReplaceAll(command, onPage, inRun)
		}
		got := terminal.run(command)
		wanted := strings.Join(want, "\n")
		for n, id := range uuidPattern.FindAllString(got, -1) {
			last = id
			if onPage := uuidPattern.FindAllString(wanted, -1); n < len(onPage) {
				ids[onPage[n]] = id
			}
		}
		if maskAge(got) != maskAge(wanted) && !*updateReadme {
			t.Errorf("$ %s\nprints\n%s\nbut the page says\n%s", command, got, wanted)
		}
		if got != "" {
			rewritten.WriteString(got + "\n")
		}
	}
	if *updateReadme {
		if err := os.WriteFile(path, []byte(rewritten.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// maskAge is like mask, and also replaces all ages and the times of pgQueue.
func maskAge(s string) string {
	s = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}`).ReplaceAllString(s, "TIME")
	if testCluster != nil {
		s = regexp.MustCompile(`"id":\d+`).ReplaceAllString(s, `"id":1`) // numbers of messages do not begin with 1
	}
	s = regexp.MustCompile(`(?m)  \d+s$`).ReplaceAllString(s, "  AGE") // in a table
	return regexp.MustCompile(`(age_seconds":)\d+`).ReplaceAllString(mask(s), "${1}AGE")
}

// terminal is a shell that runs one command after another, as in a terminal.
type terminal struct {
	t    testing.TB
	in   io.WriteCloser
	out  *bufio.Reader
	kill func()
}

func newTerminal(t testing.TB, env ...string) *terminal {
	t.Helper()
	cmd := exec.Command("sh")
	thisRun.adopt(cmd)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = t.TempDir()
	cmd.Stderr = os.Stderr
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
	t.Cleanup(func() {
		io.WriteString(in, "kill $second $! 2>/dev/null\n") // a failed page may have left them running
		in.Close()
		cmd.Wait()
	})
	return &terminal{t, in, bufio.NewReader(out), func() {
		cmd.Process.Kill()
		out.Close()
	}}
}

var curlrcOnPage = regexp.MustCompile("with `(.+)` in\\s`~/.curlrc`")

// curlHome returns a folder with the .curlrc of the tour.
func curlHome(t *testing.T) string {
	t.Helper()
	settings := curlrcOnPage.FindStringSubmatch(mustRead(t, "docs/tour.md"))
	if settings == nil {
		t.Fatal("the tour does not say what to have in ~/.curlrc")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".curlrc"), []byte(settings[1]+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// run returns the output of a command without the line break at its end. It is an error
// if there is none, because the next prompt would be on the same line.
func (s *terminal) run(command string) string {
	s.t.Helper()
	const end = "-- end of the command --"
	defer time.AfterFunc(2*testTimeout, s.kill).Stop()
	fmt.Fprintf(s.in, "%s\nprintf '\\n%%s\\n' '%s'\n", command, end)
	var printed strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatalf("the shell has ended in %s: %v", command, err)
		}
		if line == end+"\n" {
			all := strings.TrimSuffix(printed.String(), "\n")
			if all != "" && !strings.HasSuffix(all, "\n") {
				s.t.Errorf("$ %s\nleaves a prompt behind its output, where the page shows it on the next line", command)
			}
			return strings.TrimRight(all, "\n")
		}
		printed.WriteString(line)
	}
}
