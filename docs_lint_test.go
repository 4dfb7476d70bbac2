package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"queued/internal/shell"
)

// pages returns the paths of all Markdown files.
func pages(t testing.TB) (all []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && path != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "dist") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			all = append(all, filepath.ToSlash(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func mustRead(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// block is a fenced block of a Markdown file.
type block struct {
	line     int // of its beginning, from 0
	language string
	text     string
	marked   bool // the text before it says that it is not run
}

// notRun is in the last line of text before a block that no test runs.
const notRun = "(not run here)"

func blocksOf(page string) (all []block) {
	var in *block
	before := ""
	for i, line := range strings.Split(page, "\n") {
		language, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && in == nil:
			in = &block{line: i, language: language, marked: strings.Contains(before, notRun)}
		case fence:
			all, in, before = append(all, *in), nil, ""
		case in != nil:
			in.text += line + "\n"
		case strings.TrimSpace(line) != "":
			before = line
		}
	}
	return all
}

// Each command on a page is run by a test (TestToursWorkAsPrinted) or by .ci/run, or
// the page says that it is not run.
func TestEveryBlockOfCommandsIsRunOrSaysThatItIsNot(t *testing.T) {
	t.Parallel()
	run := map[string]bool{
		"make run": true, // TestMakeRunStartsTheServer
		".ci/run":  true,
	}
	for _, m := range regexp.MustCompile(`(?m)^step (?:.ci/with-postgres 18 )?(make .*?) *(?:#.*)?$`).FindAllStringSubmatch(mustRead(t, ".ci/run"), -1) {
		run[m[1]] = true
	}
	for _, path := range pages(t) {
		page := mustRead(t, path)
		if strings.Count("\n"+page, "\n```")%2 != 0 || strings.Contains(page, "\n  ```") {
			t.Errorf("%s has a block without an end, or one that is indented", path)
		}
		for _, b := range blocksOf(page) {
			where := fmt.Sprintf("%s:%d", path, b.line+1)
			switch b.language {
			case "console":
				if !strings.HasPrefix(b.text, "$ ") {
					t.Errorf("%s: a console block begins with a command after a $", where)
				}
			case "sh", "shell", "bash":
				for line := range strings.Lines(b.text) {
					command, _, _ := strings.Cut(line, "#")
					if command = strings.TrimSpace(command); command != "" && !b.marked && !run[command] {
						t.Errorf("%s: nothing runs %q, and the line before its block does not say %q", where, command, notRun)
					}
				}
			case "sql":
				if path != "docs/sql.md" && path != "README.md" {
					t.Errorf("%s: nothing runs SQL of this page", where)
				}
			case "js", "java", "ruby", "php", "cs", "yaml", "hcl", "properties":
				if path != pageOfClients {
					t.Errorf("%s: only %s has configurations in %s", where, pageOfClients, b.language)
				}
			case "go":
				if path == pageOfClients { // configuration
					continue
				}
				if path != "docs/sql.md" || !strings.Contains(mustRead(t, "sql_worker_test.go"), b.text) {
					t.Errorf("%s: this code is not in sql_worker_test.go, where tests run it", where)
				}
			case "text", "json", "python":
				if regexp.MustCompile(`(?m)^(\$|curl|queued|make|go|docker|psql|pg_\w+) `).MatchString(b.text) {
					t.Errorf("%s: there are commands in a block of %s", where, b.language)
				}
			default:
				t.Errorf("%s: the pages have no blocks in the language %q", where, b.language)
			}
		}
	}
}

func TestMakeRunStartsTheServer(t *testing.T) {
	t.Parallel()
	// The build of "make run" is then quick, also on a busy machine.
	build := exec.Command("go", "build", "-buildvcs=false", "-o", "queued", ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd := exec.Command("make", "run")
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS") { // the test may run in "make test"
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "QUEUED_LISTEN=127.0.0.1:0", "QUEUED_DATA_DIR="+newDataDir(t), "GOFLAGS=-buildvcs=false")
	r := startCommand(t, cmd)
	r.awaitReady()
	cmd.Process.Signal(syscall.SIGTERM) // make forwards it
	r.await()
}

var (
	fencedBlock = regexp.MustCompile("(?ms)^```.*?^```$")
	codeSpan    = regexp.MustCompile("`([^`]+)`")
	linkOnPage  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading     = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

func TestLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	anchors := map[string]map[string]bool{}
	for _, path := range pages(t) {
		anchors[path] = map[string]bool{"": true}
		for _, m := range heading.FindAllStringSubmatch(fencedBlock.ReplaceAllString(mustRead(t, path), ""), -1) {
			anchors[path][anchor(m[1])] = true
		}
	}
	for path := range anchors {
		text := codeSpan.ReplaceAllString(fencedBlock.ReplaceAllString(mustRead(t, path), ""), "")
		for _, m := range linkOnPage.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target, fragment, _ := strings.Cut(m[1], "#")
			there := path
			if target != "" {
				there = filepath.ToSlash(filepath.Join(filepath.Dir(path), target))
			}
			if _, err := os.Stat(there); err != nil {
				t.Errorf("%s: nothing is at %s", path, m[1])
			} else if headings, page := anchors[there]; page && !headings[fragment] {
				t.Errorf("%s: no heading is at %s", path, m[1])
			}
		}
	}
}

// The pictures on the pages are small, and GitHub shows them: a browser shows an SVG file
// only if it is well-formed.
func TestPicturesAreSmallAndWellFormed(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("docs/*.[ps][nv]g")
	if err != nil || len(paths) < 2 {
		t.Fatalf("pictures: %v, %v", paths, err)
	}
	for _, path := range paths {
		text := mustRead(t, path)
		if len(text) >= 200_000 {
			t.Errorf("%s has %d bytes", path, len(text))
		}
		if filepath.Ext(path) == ".svg" {
			if err := xml.Unmarshal([]byte(text), new(struct{ XMLName xml.Name })); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// anchor returns the anchor that GitHub gives a heading.
func anchor(heading string) string {
	heading = regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`).ReplaceAllString(heading, "$1")
	heading = regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(strings.ToLower(heading), "")
	return strings.ReplaceAll(strings.TrimSpace(heading), " ", "-")
}

// The targets of make, the commands, flags and variables of the program, and the tests
// that the pages name exist.
func TestPagesNameCommandsThatExist(t *testing.T) {
	t.Parallel()
	flags := map[string]string{} // the text of -help by command
	for _, c := range allCommands() {
		command := c.Name
		var help bytes.Buffer
		run(context.Background(), append(strings.Fields(command), "-help"), func(string) string { return "" }, nil, &help, io.Discard)
		flags[command] = help.String() + "\n  -help\n"
	}
	var everywhere strings.Builder
	for _, help := range flags {
		everywhere.WriteString(help)
	}
	everywhere.WriteString("\n  -update-readme\n  -torture\n") // of the tests
	everywhere.WriteString(mustRead(t, "compose.yaml"))
	has := func(help, flag string) bool {
		return regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(flag) + `\b`).MatchString(help)
	}
	makefile := mustRead(t, "Makefile")
	tests, _ := declarations(t)
	for _, path := range pages(t) {
		page := mustRead(t, path)
		var commands []string
		for _, b := range blocksOf(page) {
			if b.language == "sh" || b.language == "console" {
				commands = append(commands, strings.Split(b.text, "\n")...)
			}
		}
		for _, m := range codeSpan.FindAllStringSubmatch(fencedBlock.ReplaceAllString(page, ""), -1) {
			commands = append(commands, m[1])
			if strings.HasPrefix(m[1], "Test") && !slices.Contains(tests, m[1]) {
				t.Errorf("%s: there is no test %s", path, m[1])
			}
			if words := strings.Fields(m[1]); regexp.MustCompile(`^-[a-z][a-z-]+$`).MatchString(words[0]) && !has(everywhere.String(), words[0]) {
				t.Errorf("%s: there is no flag %s", path, words[0])
			}
		}
		for _, command := range commands {
			words := strings.Fields(strings.TrimPrefix(command, "$ "))
			if len(words) < 2 {
				continue
			}
			switch words[0] {
			case "make":
				if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(words[1]) + `:`).MatchString(makefile) {
					t.Errorf("%s: make has no target %s", path, words[1])
				}
			case "queued":
				name := words[1]
				if strings.HasPrefix(name, "-") {
					name = ""
				}
				if shell.SecondWords(allCommands(), name) != nil && len(words) > 2 {
					name += " " + words[2]
				}
				help, exists := flags[name]
				if !exists {
					t.Errorf("%s: queued has no command %s", path, name)
				}
				for _, m := range regexp.MustCompile(`(?: |^)(-[a-z][a-z-]+)`).FindAllStringSubmatch(strings.Join(words[1:], " "), -1) {
					if exists && !has(help, m[1]) {
						t.Errorf("%s: queued %s has no flag %s", path, name, m[1])
					}
				}
			case "go":
				_, pattern, found := strings.Cut(command, "-run ")
				if !found || words[1] != "test" {
					continue
				}
				pattern = strings.Trim(strings.Fields(pattern)[0], "'")
				if !slices.ContainsFunc(tests, regexp.MustCompile(pattern).MatchString) {
					t.Errorf("%s: no test is run by %s", path, command)
				}
			}
		}
		for _, name := range regexp.MustCompile(`QUEUED_[A-Z_]*[A-Z]`).FindAllString(page, -1) {
			if !strings.Contains(everywhere.String(), name) && name != "QUEUED_ATTRIBUTE_SIZE" && !strings.HasPrefix(name, "QUEUED_TEST_") {
				t.Errorf("%s: there is no variable %s", path, name)
			}
		}
	}
}

// declarations returns the names of all tests, and the names that each file declares:
// functions, types, constants, variables, methods and fields. Methods and fields are
// also there as type.name, and methods as receiver.name.
func declarations(t testing.TB) (tests []string, files map[string]map[string]bool) {
	t.Helper()
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	inner, err := filepath.Glob("internal/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]map[string]bool{}
	for _, path := range append(paths, inner...) {
		file, err := parser.ParseFile(gotoken.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		files[path] = names
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names[n.Name.Name] = true
				if n.Recv != nil {
					names[typeName(n.Recv.List[0].Type)+"."+n.Name.Name] = true
				}
				if strings.HasPrefix(n.Name.Name, "Test") {
					tests = append(tests, n.Name.Name)
				}
				return false // names inside a function do not count
			case *ast.TypeSpec:
				names[n.Name.Name] = true
				if fields, ok := n.Type.(*ast.StructType); ok {
					for _, field := range fields.Fields.List {
						for _, name := range field.Names {
							names[n.Name.Name+"."+name.Name] = true
						}
					}
				}
			case *ast.ValueSpec:
				for _, name := range n.Names {
					names[name.Name] = true
				}
			}
			return true
		})
	}
	return tests, files
}

// typeName returns the name of the type of a receiver.
func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.IndexExpr:
		return typeName(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// The names in docs/inside.md exist. A name in a table is declared in the file of its
// row. A name elsewhere is declared in any file, or in the schema.
func TestWalkNamesWhatExists(t *testing.T) {
	t.Parallel()
	_, files := declarations(t)
	schema := mustRead(t, "schema.sql")
	for _, path := range []string{"functions_claim.sql", "functions_public.sql"} {
		files[path] = map[string]bool{}
		for _, m := range regexp.MustCompile(`FUNCTION (queued\.\w+)\(`).FindAllStringSubmatch(mustRead(t, path), -1) {
			files[path][m[1]] = true
		}
	}
	const path = "docs/inside.md"
	page := fencedBlock.ReplaceAllString(mustRead(t, path), "")
	declared := func(in map[string]map[string]bool, name string) bool {
		for _, names := range in {
			if names[name] {
				return true
			}
		}
		return false
	}
	rows := 0
	for line := range strings.Lines(page) {
		here := map[string]map[string]bool{}
		if cells := strings.Split(line, "|"); len(cells) == 5 { // file, names, what happens
			for _, m := range codeSpan.FindAllStringSubmatch(cells[1], -1) {
				here[m[1]] = files[m[1]]
			}
			for _, m := range codeSpan.FindAllStringSubmatch(cells[2], -1) {
				rows++
				if !declared(here, m[1]) {
					t.Errorf("%s: %s does not declare %s", path, cells[1], m[1])
				}
			}
		}
		for _, m := range codeSpan.FindAllStringSubmatch(line, -1) {
			switch name := m[1]; {
			case regexp.MustCompile(`^[\w./]+\.(go|sql|html|json|js)$`).MatchString(name):
				if _, err := os.Stat(name); err != nil {
					t.Errorf("%s: there is no file %s", path, name)
				}
			case regexp.MustCompile(`^[a-zA-Z_]\w*(\.[a-zA-Z_]\w*)?$`).MatchString(name):
				if !declared(files, name) && !regexp.MustCompile(`\b`+regexp.QuoteMeta(name)+`\b`).MatchString(schema) {
					t.Errorf("%s: no file declares %s", path, name)
				}
			}
		}
	}
	if rows < 30 {
		t.Errorf("%s has only %d names in its table", path, rows)
	}
}

// docs/api.md lists every route, and docs/operations.md every metric.
func TestPagesListEveryRouteAndMetric(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	api := mustRead(t, "docs/api.md")
	for _, r := range s.routes {
		if r.api == native && !regexp.MustCompile("`"+regexp.QuoteMeta(strings.TrimSuffix(r.pattern, "{$}"))+"[`? ]").MatchString(api) {
			t.Errorf("docs/api.md does not list %s", r.pattern)
		}
	}
	operations := mustRead(t, "docs/operations.md")
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		s.server.metrics.registry.Describe(descs)
		s.server.admission.Describe(descs)
	}()
	metrics := 0
	for desc := range descs {
		if m := regexp.MustCompile(`fqName: "((?:queued|http)_\S+)"`).FindStringSubmatch(desc.String()); m != nil {
			metrics++
			if !strings.Contains(operations, "`"+m[1]+"`") {
				t.Errorf("docs/operations.md does not list %s", m[1])
			}
		}
	}
	if metrics < 20 {
		t.Errorf("there are only %d metrics", metrics)
	}
}

// An orchestrator restarts a container whose health check fails. A restart does not
// help against an outage of the database, so the checks of the images must not fail then.
func TestHealthChecksOfTheImagesDoNotAskTheDatabase(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	commands := regexp.MustCompile(`(?m)^HEALTHCHECK .*CMD (\[.*\])$`).FindAllSubmatch(text, -1)
	if len(commands) != 2 {
		t.Fatalf("the Dockerfile has %d health checks, want one for each image", len(commands))
	}
	s := newTestServer(t)
	s.ready.Store(false)
	getenv := func(name string) string {
		return map[string]string{"QUEUED_LISTEN": strings.TrimPrefix(s.url, "http://")}[name]
	}
	for _, command := range commands {
		var args []string
		if err := json.Unmarshal(command[1], &args); err != nil || len(args) == 0 || filepath.Base(args[0]) != "queued" {
			t.Fatalf("health check %s, %v", command[1], err)
		}
		if err := run(context.Background(), args[1:], getenv, nil, io.Discard, io.Discard); err != nil {
			t.Errorf("%q of a server without a database = %v", args, err)
		}
	}
}
