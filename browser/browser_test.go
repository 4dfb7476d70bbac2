// Package browser tests the dashboard in Chromium, as a user would use it. It is a
// separate module because it depends on a browser and on a client for it.
//
//	go test -screenshots DIR .
//
// also writes screenshots of all pages in phone and desktop size and in both themes.
package browser

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// timeout is the maximum time to wait for something on a page. It is only reached
// when a test fails.
const timeout = 30 * time.Second

// Shared by all tests.
var (
	queued   string          // path of the server's binary
	created  string          // data directory of a new server, which tests copy
	chromium context.Context // a browser in which each test opens its own window
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "queued-browser-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	queued = filepath.Join(dir, "queued")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", queued, ".")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	if err := createData(filepath.Join(dir, "data")); err != nil {
		fmt.Fprintln(os.Stderr, "create a data directory:", err)
		return 1
	}
	options := []chromedp.ExecAllocatorOption{chromedp.Headless}
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium refuses to run a sandbox as root
	}
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	defer cancel()
	var closeBrowser context.CancelFunc
	chromium, closeBrowser = chromedp.NewContext(allocator)
	defer closeBrowser()
	if err := chromedp.Do(chromium, chromedp.Navigate("about:blank")); err != nil {
		fmt.Fprintln(os.Stderr, "cannot start Chromium (Debian package chromium):", err)
		return 1
	}
	return m.Run()
}

// createData creates the data directory that tests copy, with a server that is stopped when it
// is ready. A copy takes less time than a new PostgreSQL.
func createData(dir string) error {
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // PostgreSQL may run as another user
		return err
	}
	created = dir
	v := &server{address: "127.0.0.1:0", data: dir}
	if err := v.run(); err != nil {
		return err
	}
	v.process.Process.Signal(syscall.SIGTERM)
	return v.process.Wait()
}

// server is a running server with a private PostgreSQL. It keeps its address across
// restarts.
type server struct {
	t       testing.TB
	address string
	data    string // directory
	args    []string
	token   string // sent with requests of the test, if not empty
	process *exec.Cmd
}

func newServer(t testing.TB, args ...string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "queued-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL may run as another user
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, address: l.Addr().String(), data: filepath.Join(dir, "data"), args: args}
	l.Close()
	if out, err := exec.Command("cp", "-a", created, s.data).CombinedOutput(); err != nil { // with owners
		t.Fatalf("copy the data directory: %v: %s", err, out)
	}
	s.start()
	t.Cleanup(func() {
		s.stop()
		os.RemoveAll(dir)
	})
	return s
}

func (s *server) url() string { return "http://" + s.address }

func (s *server) start() {
	s.t.Helper()
	if err := s.run(); err != nil {
		s.t.Fatal(err)
	}
}

// run starts the server and returns when it is ready.
func (s *server) run() error {
	s.process = exec.Command(queued, append([]string{"-listen", s.address, "-data-dir", s.data, "-cleanup-interval", "200ms"}, s.args...)...)
	logs, err := s.process.StderrPipe()
	if err != nil {
		return err
	}
	if err := s.process.Start(); err != nil {
		return err
	}
	var log bytes.Buffer
	chunk := make([]byte, 4096)
	for !strings.Contains(log.String(), "msg=ready") {
		n, err := logs.Read(chunk)
		log.Write(chunk[:n])
		if err != nil {
			return fmt.Errorf("the server did not become ready: %s", log.String())
		}
	}
	go io.Copy(io.Discard, logs)
	return nil
}

func (s *server) stop() {
	s.t.Helper()
	s.process.Process.Signal(syscall.SIGTERM)
	if err := s.process.Wait(); err != nil {
		s.t.Errorf("the server exited with %v", err)
	}
}

// must sends a request, which must succeed, and returns the body of the response. It
// retries while the server is overloaded (503).
func (s *server) must(method, path, body string) string {
	s.t.Helper()
	for began := time.Now(); ; {
		status, text := s.send(method, path, body)
		if status < 300 {
			return text
		}
		if status != http.StatusServiceUnavailable || time.Since(began) > timeout {
			s.t.Fatalf("%s %s = %d %s", method, path, status, text)
		}
	}
}

// receive receives messages, at least one, and returns their ids.
func (s *server) receive(queue, query string) (ids []string) {
	s.t.Helper()
	var received struct{ Data []struct{ ID string } }
	text := s.must("GET", "/queues/"+queue+"/messages"+query, "")
	if err := json.Unmarshal([]byte(text), &received); err != nil || len(received.Data) == 0 {
		s.t.Fatalf("received %s, %v", text, err)
	}
	for _, m := range received.Data {
		ids = append(ids, m.ID)
	}
	return ids
}

// send sends a request, and returns the status and the body of the response.
func (s *server) send(method, path, body string) (status int, text string) {
	s.t.Helper()
	r, err := http.NewRequest(method, s.url()+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, string(b)
}

// queue creates a queue. The settings are JSON members besides the required ones.
func (s *server) queue(id string, settings ...string) {
	s.t.Helper()
	s.must("POST", "/queues", fmt.Sprintf(`{"id":%q,%s}`, id, strings.Join(append(settings, `"ack_deadline_seconds":60,"message_retention_seconds":3600`), ",")))
}

// states returns the states of the messages of a queue, oldest due first.
func (s *server) states(queueID string) string {
	s.t.Helper()
	var peek struct{ Data []struct{ State string } }
	if err := json.Unmarshal([]byte(s.must("GET", "/queues/"+queueID+"/messages/peek", "")), &peek); err != nil {
		s.t.Fatal(err)
	}
	var states []string
	for _, m := range peek.Data {
		states = append(states, m.State)
	}
	return strings.Join(states, " ")
}

// page is a browser window.
type page struct {
	t   testing.TB
	ctx context.Context

	mu       sync.Mutex
	console  []string // messages in the browser's console
	expected []string // parts of console messages that are no failure
}

// open opens an address in a window that shares no state with the others. At the end
// of the test, it fails the test for each console message that was not expected.
func open(t testing.TB, url string) *page {
	t.Helper()
	ctx, cancel := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext())
	p := &page{t: t, ctx: ctx, expected: []string{"status of 503"}} // a busy machine may overload the server
	t.Cleanup(func() {
		if t.Failed() {
			p.screenshot(filepath.Join(os.TempDir(), strings.ReplaceAll(t.Name(), "/", "-")+".png"))
		}
		cancel()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, text := range p.console {
			if !slices.ContainsFunc(p.expected, func(part string) bool { return strings.Contains(text, part) }) {
				t.Errorf("console: %s", text)
			}
		}
	})
	p.do(chromedp.Navigate("about:blank"))
	listening := make(chan struct{})
	go func() {
		close(listening)
		for m, err := range chromedp.Console(ctx) {
			if err != nil {
				return
			}
			p.addConsole(m.String())
		}
	}()
	<-listening
	p.size(1280, 900)
	p.do(chromedp.Navigate(url))
	return p
}

func (p *page) addConsole(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.console = append(p.console, text)
}

// expect allows console messages that contain a text, including earlier ones.
func (p *page) expect(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = append(p.expected, text)
}

// do performs actions, each within the time limit.
func (p *page) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	for _, action := range actions {
		if err := p.try(action); err != nil {
			p.t.Fatal(err)
		}
	}
}

// try performs an action and returns its error. It does not pass a deadline to the
// action, because the window would close with the context of its first action.
func (p *page) try(action chromedp.Action[chromedp.Void]) error {
	failed := make(chan error, 1)
	go func() { failed <- chromedp.Do(p.ctx, action) }()
	select {
	case err := <-failed:
		return err
	case <-time.After(timeout):
		return errors.New("the browser did not respond in time")
	}
}

// js evaluates an expression on the page and returns its value.
func js[T any](p *page, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// run executes statements on the page.
func (p *page) run(statements string) {
	p.t.Helper()
	js[bool](p, "(() => { "+statements+"; return true })()")
}

// see waits until an expression is true on the page. what describes it in failures.
func (p *page) see(what, expression string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, timeout)
	defer cancel()
	for {
		seen, err := chromedp.Run(ctx, chromedp.Evaluate[bool](fmt.Sprintf(`new Promise((resolve) => {
			const began = Date.now()
			const check = () => {
				if (%s) resolve(true)
				else if (Date.now() - began > 1000) resolve(false)
				else setTimeout(check, 10)
			}
			check()
		})`, expression), chromedp.EvalAwaitPromise))
		if err == nil && seen {
			return
		}
		if ctx.Err() != nil {
			text, _ := chromedp.Run(p.ctx, chromedp.Evaluate[string]("document.body.innerText"))
			p.t.Fatalf("not seen: %s (%s, %v) in\n%s", what, expression, err, text)
		}
	}
}

// seeText waits until the first element that matches a CSS selector contains a text.
func (p *page) seeText(selector, text string) {
	p.t.Helper()
	p.see(fmt.Sprintf("%q in %s", text, selector), fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", selector, text))
}

// seeNo waits until no element matches a CSS selector, or the first one is hidden.
func (p *page) seeNo(selector string) {
	p.t.Helper()
	p.see("no "+selector, fmt.Sprintf("!document.querySelector(%q)?.checkVisibility()", selector))
}

// click clicks on the button or link with a text, optionally within an XPath.
func (p *page) click(text string, in ...string) {
	p.t.Helper()
	xpath := fmt.Sprintf(`%s//*[self::button or self::a][normalize-space()=%q][not(ancestor-or-self::*[@hidden])]`, strings.Join(in, ""), text)
	p.still(fmt.Sprintf("document.evaluate(%q, document, null, XPathResult.FIRST_ORDERED_NODE_TYPE).singleNodeValue", xpath))
	clickOn(p, chromedp.Search(xpath))
}

// choose clicks on the element that a CSS selector finds.
func (p *page) choose(selector string) {
	p.t.Helper()
	p.still(fmt.Sprintf("document.querySelector(%q)", selector))
	clickOn(p, chromedp.CSS(selector))
}

// still waits until the element of an expression has kept its place for a moment, and is not
// covered: a click goes to a place, and elements move while the page loads.
func (p *page) still(element string) {
	p.t.Helper()
	p.see("an element that keeps its place: "+element, fmt.Sprintf(`(() => {
		const e = %s
		if (!e) return false
		e.scrollIntoView({ block: 'center', behavior: 'instant' })
		const { x, y, width, height } = e.getBoundingClientRect()
		const place = [x, y, width, height].join()
		if (window.placeOfClick?.place !== place) window.placeOfClick = { place, since: Date.now() }
		return Date.now() - window.placeOfClick.since >= 100 && e.contains(document.elementFromPoint(x + width / 2, y + height / 2))
	})()`, element))
}

// clickOn clicks on an element. It searches again if the page replaced the element
// between the search and the click.
func clickOn[S chromedp.Selectable](p *page, selector S) {
	p.t.Helper()
	for began := time.Now(); ; {
		err := p.try(chromedp.Click(selector))
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "Could not find node") || time.Since(began) > timeout {
			p.t.Fatal(err)
		}
	}
}

// fill replaces the text of the field with a name.
func (p *page) fill(name, text string) {
	p.t.Helper()
	p.fillIn(fmt.Sprintf("[name=%q]", name), text)
}

// fillIn replaces the text of the field that a CSS selector finds.
func (p *page) fillIn(selector, text string) {
	p.t.Helper()
	p.see(selector, fmt.Sprintf("document.querySelector(%q)?.checkVisibility()", selector))
	js[bool](p, fmt.Sprintf("(() => { const e = document.querySelector(%q); e.focus(); e.select(); return document.activeElement === e })()", selector))
	if text == "" {
		text = kb.Delete
	}
	p.do(chromedp.KeyEvent(text))
}

// press presses keys, one after the other.
func (p *page) press(keys ...string) {
	p.t.Helper()
	for _, key := range keys {
		p.do(chromedp.KeyEvent(key))
	}
}

// goTo opens a page of the dashboard by its address.
func (p *page) goTo(hash string) {
	p.t.Helper()
	js[string](p, fmt.Sprintf("location.hash = %q", hash))
}

// size sets the size of the window in pixels.
func (p *page) size(width, height int64) {
	p.t.Helper()
	p.do(chromedp.EmulateViewport(width, height))
}

// theme sets the color scheme that the page sees: light or dark.
func (p *page) theme(name string) {
	p.t.Helper()
	p.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
		})
		return err
	}))
}

// axeVersion is the version of axe-core, which finds mistakes that make a page hard to use
// with assistive technology.
const axeVersion = "4.14.1"

// axe returns the script of axe-core, from npm.
var axe = sync.OnceValues(func() (script string, err error) {
	dir, err := os.MkdirTemp("", "queued-axe-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	pack := exec.Command("npm", "pack", "--silent", "axe-core@"+axeVersion)
	pack.Dir = dir
	if out, err := pack.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm pack: %w: %s", err, out)
	}
	packed, err := os.Open(filepath.Join(dir, "axe-core-"+axeVersion+".tgz"))
	if err != nil {
		return "", err
	}
	defer packed.Close()
	unzipped, err := gzip.NewReader(packed)
	if err != nil {
		return "", err
	}
	for files := tar.NewReader(unzipped); ; {
		file, err := files.Next()
		if err != nil {
			return "", fmt.Errorf("no axe.min.js in the package: %w", err)
		}
		if file.Name == "package/axe.min.js" {
			b, err := io.ReadAll(files)
			return string(b), err
		}
	}
})

// seeNoViolations fails the test for each rule of axe-core that the page violates, in both
// themes, in the width of a laptop and of a phone. state names the state of the page.
func (p *page) seeNoViolations(state string) {
	p.t.Helper()
	script, err := axe()
	if err != nil {
		p.t.Fatal(err)
	}
	if !js[bool](p, "'axe' in window") {
		p.run(script)
	}
	for _, theme := range []string{"light", "dark"} {
		p.theme(theme)
		for _, width := range []int64{390, 1280} {
			p.size(width, 844)
			for _, violation := range js[[]string](p, "axe.run().then((r) => r.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html.slice(0, 200) + ' ' + (n.any[0]?.message ?? '')).slice(0, 3).join('; ')))") {
				p.t.Errorf("%s, %s, %d pixels: %s", state, theme, width, violation)
			}
		}
	}
}

// screenshot writes a PNG file of the window.
func (p *page) screenshot(path string) {
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(path, png, 0o644)
	}
	p.t.Logf("%s: %v", path, err)
}

const enter, tab, escape = kb.Enter, kb.Tab, kb.Escape
