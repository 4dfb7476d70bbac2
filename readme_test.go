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
)

var updateReadme = flag.Bool("update-readme", false, "write what the commands of the pages print into them")

var uuidPattern = regexp.MustCompile(`[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// The commands in these pages work as printed: they are run in a shell against the
// real program, and what they print is compared with the page but for the ids of
// messages and for times.
func TestToursWorkAsPrinted(t *testing.T) {
	t.Parallel()
	program := mustBuild(t)
	for page, atLeast := range map[string]int{
		"README.md":                       10,
		"docs/coming-from-fastqueue.md":   6,
		"docs/coming-from-pgqueue.md":     3,
		"docs/coming-from-micro-queue.md": 2,
		"docs/coming-from-sharq.md":       6,
	} {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			if commands := tour(t, program, page); commands < atLeast {
				t.Errorf("%s has only %d commands", page, commands)
			}
		})
	}
}

var topologyOnPage = regexp.MustCompile("(?s)```json\n({\"queues\".*?)```")

// tour runs the commands of a page, on a server with the topology that the page
// shows, and returns how many there are.
func tour(t *testing.T, program, path string) (commands int) {
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-data-dir", newDataDir(t)}
	if m := topologyOnPage.FindSubmatch(page); m != nil && path != "README.md" {
		file := filepath.Join(t.TempDir(), "topology.json")
		if err := os.WriteFile(file, m[1], 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-topology", file)
	}
	server := startProgram(t, program, args...)
	here := strings.TrimPrefix(server.url, "http://")

	shell := newShell(t, "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "QUEUED_URL="+server.url)
	ids := map[string]string{} // of a message on the page, to what it is in this run
	var rewritten strings.Builder
	last := "" // id that was printed
	inTour := false
	lines := strings.Split(strings.TrimSuffix(string(page), "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		if *updateReadme && inTour && strings.HasPrefix(lines[i], "$ ") {
			// A command on the page acts on the message that was shown before it.
			lines[i] = uuidPattern.ReplaceAllString(lines[i], last)
		}
		rewritten.WriteString(lines[i] + "\n")
		switch {
		case lines[i] == "```console":
			inTour = true
		case lines[i] == "```":
			inTour = false
		case inTour && strings.HasPrefix(lines[i], "$ "):
			command := strings.TrimPrefix(lines[i], "$ ")
			var want []string
			for i+1 < len(lines) && lines[i+1] != "```" && !strings.HasPrefix(lines[i+1], "$ ") {
				i++
				want = append(want, lines[i])
			}
			command = strings.ReplaceAll(command, "localhost:8000", here)
			for onPage, inRun := range ids {
				command = strings.ReplaceAll(command, onPage, inRun)
			}
			commands++
			got := shell.run(command)
			wanted := strings.Join(want, "\n")
			for n, id := range uuidPattern.FindAllString(got, -1) {
				last = id
				if onPage := uuidPattern.FindAllString(wanted, -1); n < len(onPage) {
					ids[onPage[n]] = id
				}
			}
			if maskAge(got) != maskAge(wanted) && !*updateReadme {
				t.Errorf("$ %s\nprints\n%s\nand the page says\n%s", command, got, wanted)
			}
			if got != "" {
				rewritten.WriteString(got + "\n")
			}
		}
	}
	if *updateReadme {
		if err := os.WriteFile(path, []byte(rewritten.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return commands
}

// maskAge is mask, and of ages too, which grow while the machine is busy, and of
// the times of pgQueue.
func maskAge(s string) string {
	s = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}`).ReplaceAllString(s, "TIME")
	s = regexp.MustCompile(`(?m)  \d+s$`).ReplaceAllString(s, "  AGE") // in a table
	return regexp.MustCompile(`(age_seconds":)\d+`).ReplaceAllString(mask(s), "${1}AGE")
}

// shell is a shell that runs one command after the other, as a terminal does.
type shell struct {
	t   testing.TB
	in  io.WriteCloser
	out *bufio.Reader
}

func newShell(t testing.TB, env ...string) *shell {
	t.Helper()
	cmd := exec.Command("sh")
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
		in.Close()
		cmd.Wait()
	})
	return &shell{t, in, bufio.NewReader(out)}
}

// run returns what a command prints, without the end of its last line.
func (s *shell) run(command string) string {
	s.t.Helper()
	const end = "-- end of the command --"
	fmt.Fprintf(s.in, "%s\nprintf '\\n%%s\\n' '%s'\n", command, end)
	var printed strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatalf("the shell has ended in %s: %v", command, err)
		}
		if line == end+"\n" {
			return strings.TrimRight(printed.String(), "\n")
		}
		printed.WriteString(line)
	}
}
