// Package browser drives the dashboard in Chromium, as people use it. It is a module
// of its own because it needs a browser, and what speaks to it.
//
//	go test -screenshots DIR .
//
// also writes pictures of all pages, of phone and desktop size, in both themes.
package browser

import (
	"bytes"
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

// patience is how long something may take to show. Nothing that works takes as long.
const patience = 30 * time.Second

// What all tests share.
var (
	queued   string          // the program
	chromium context.Context // a browser in which each test has a window of its own
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
	options := []chromedp.ExecAllocatorOption{chromedp.Headless}
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium has none for root
	}
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	defer end()
	var closeBrowser context.CancelFunc
	chromium, closeBrowser = chromedp.NewContext(allocator)
	defer closeBrowser()
	if err := chromedp.Do(chromium, chromedp.Navigate("about:blank")); err != nil {
		fmt.Fprintln(os.Stderr, "Chromium (Debian's package chromium) is needed:", err)
		return 1
	}
	return m.Run()
}

// server is a queued with a private PostgreSQL, on an address that it keeps when it
// is started again.
type server struct {
	t       testing.TB
	address string
	dir     string
	args    []string
	token   string // for requests of the test
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
	s := &server{t: t, address: l.Addr().String(), dir: dir, args: args}
	l.Close()
	s.start()
	t.Cleanup(func() {
		s.stop()
		os.RemoveAll(dir)
	})
	return s
}

func (s *server) url() string { return "http://" + s.address }

// start returns when the server is ready.
func (s *server) start() {
	s.t.Helper()
	s.process = exec.Command(queued, append([]string{"-listen", s.address, "-data-dir", filepath.Join(s.dir, "data"), "-cleanup-interval", "200ms"}, s.args...)...)
	logs, err := s.process.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	var text bytes.Buffer
	piece := make([]byte, 4096)
	for !strings.Contains(text.String(), "msg=ready") {
		n, err := logs.Read(piece)
		text.Write(piece[:n])
		if err != nil {
			s.t.Fatalf("the server is not ready: %s", text.String())
		}
	}
	go io.Copy(io.Discard, logs)
}

func (s *server) stop() {
	s.t.Helper()
	s.process.Process.Signal(syscall.SIGTERM)
	if err := s.process.Wait(); err != nil {
		s.t.Errorf("the server ends with %v", err)
	}
}

// must makes a request that has to succeed, again while the server has too much to
// do for it.
func (s *server) must(method, path, body string) string {
	s.t.Helper()
	for began := time.Now(); ; {
		status, text := s.send(method, path, body)
		if status < 300 {
			return text
		}
		if status != http.StatusServiceUnavailable || time.Since(began) > patience {
			s.t.Fatalf("%s %s = %d %s", method, path, status, text)
		}
	}
}

func (s *server) send(method, path, body string) (status int, text string) {
	s.t.Helper()
	r, err := http.NewRequest(method, s.url()+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer.StatusCode, string(b)
}

// queue makes a queue, with settings besides those it must have.
func (s *server) queue(id string, settings ...string) {
	s.t.Helper()
	s.must("POST", "/queues", fmt.Sprintf(`{"id":%q,%s}`, id, strings.Join(append(settings, `"ack_deadline_seconds":60,"message_retention_seconds":3600`), ",")))
}

// messages returns the states of what is in a queue, oldest due first.
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

// page is a window of the browser.
type page struct {
	t   testing.TB
	ctx context.Context

	mu         sync.Mutex
	complaints []string // of the console
	expects    []string // parts of those that belong to the test
}

// open opens an address in a window that shares nothing with the others. At the end
// of the test nothing may have been thrown, refused or complained of.
func open(t testing.TB, url string) *page {
	t.Helper()
	ctx, end := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext())
	p := &page{t: t, ctx: ctx, expects: []string{"status of 503"}} // of a machine that has too much to do
	t.Cleanup(func() {
		if t.Failed() {
			p.screenshot(filepath.Join(os.TempDir(), strings.ReplaceAll(t.Name(), "/", "-")+".png"))
		}
		end()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, text := range p.complaints {
			if !slices.ContainsFunc(p.expects, func(expected string) bool { return strings.Contains(text, expected) }) {
				t.Errorf("the console says: %s", text)
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
			p.hear(m.String())
		}
	}()
	<-listening
	p.size(1280, 900)
	p.do(chromedp.Navigate(url))
	return p
}

func (p *page) hear(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.complaints = append(p.complaints, text)
}

// expect allows the console to say something, also before: a page may be quick.
func (p *page) expect(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expects = append(p.expects, text)
}

// do does steps, each within the time that it may take.
func (p *page) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	for _, step := range steps {
		if err := p.try(step); err != nil {
			p.t.Fatal(err)
		}
	}
}

// try is do for what may fail. The first step of a window must not end with its own
// time, because the window would.
func (p *page) try(step chromedp.Action[chromedp.Void]) error {
	failed := make(chan error, 1)
	go func() { failed <- chromedp.Do(p.ctx, step) }()
	select {
	case err := <-failed:
		return err
	case <-time.After(patience):
		return errors.New("it takes too long")
	}
}

// js returns what an expression is on the page.
func js[T any](p *page, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// run runs statements on the page.
func (p *page) run(statements string) {
	p.t.Helper()
	js[bool](p, "(() => { "+statements+"; return true })()")
}

// see waits until an expression holds on the page.
func (p *page) see(what, expression string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	for {
		held, err := chromedp.Run(ctx, chromedp.Evaluate[bool](fmt.Sprintf(`new Promise((resolve) => {
			const began = Date.now()
			const look = () => {
				if (%s) resolve(true)
				else if (Date.now() - began > 1000) resolve(false)
				else setTimeout(look, 10)
			}
			look()
		})`, expression), chromedp.EvalAwaitPromise))
		if err == nil && held {
			return
		}
		if ctx.Err() != nil {
			text, _ := chromedp.Run(p.ctx, chromedp.Evaluate[string]("document.body.innerText"))
			p.t.Fatalf("not seen: %s (%s, %v) in\n%s", what, expression, err, text)
		}
	}
}

// seeText waits until an element, the first that a CSS selector finds, has a text in it.
func (p *page) seeText(selector, text string) {
	p.t.Helper()
	p.see(fmt.Sprintf("%q in %s", text, selector), fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", selector, text))
}

// seeNo waits until there is nothing like that, or it is hidden.
func (p *page) seeNo(selector string) {
	p.t.Helper()
	p.see("no "+selector, fmt.Sprintf("!document.querySelector(%q)?.checkVisibility()", selector))
}

// click clicks on a button or link with this text, in what an XPath finds, or anywhere.
func (p *page) click(text string, in ...string) {
	p.t.Helper()
	clickOn(p, chromedp.Search(fmt.Sprintf(`%s//*[self::button or self::a][normalize-space()=%q][not(ancestor-or-self::*[@hidden])]`, strings.Join(in, ""), text)))
}

// choose clicks on what a CSS selector finds.
func (p *page) choose(selector string) {
	p.t.Helper()
	clickOn(p, chromedp.CSS(selector))
}

// clickOn clicks on what is found, and looks for it again if the page has put
// another in its place meanwhile.
func clickOn[S chromedp.Selectable](p *page, selector S) {
	p.t.Helper()
	for began := time.Now(); ; {
		err := p.try(chromedp.Click(selector))
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "Could not find node") || time.Since(began) > patience {
			p.t.Fatal(err)
		}
	}
}

// fill types into a field by its name, in place of what is there.
func (p *page) fill(name, text string) {
	p.t.Helper()
	p.fillIn(fmt.Sprintf("[name=%q]", name), text)
}

// fillIn is fill for what a CSS selector finds.
func (p *page) fillIn(selector, text string) {
	p.t.Helper()
	p.see(selector, fmt.Sprintf("document.querySelector(%q)?.checkVisibility()", selector))
	js[bool](p, fmt.Sprintf("(() => { const e = document.querySelector(%q); e.focus(); e.select(); return document.activeElement === e })()", selector))
	if text == "" {
		text = kb.Delete
	}
	p.do(chromedp.KeyEvent(text))
}

func (p *page) press(keys ...string) {
	p.t.Helper()
	for _, key := range keys {
		p.do(chromedp.KeyEvent(key))
	}
}

// goTo opens a page of the dashboard, as somebody does who types its address.
func (p *page) goTo(hash string) {
	p.t.Helper()
	js[string](p, fmt.Sprintf("location.hash = %q", hash))
}

func (p *page) size(width, height int64) {
	p.t.Helper()
	p.do(chromedp.EmulateViewport(width, height))
}

func (p *page) theme(name string) {
	p.t.Helper()
	p.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
		})
		return err
	}))
}

// screenshot writes a picture, for whoever looks.
func (p *page) screenshot(path string) {
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(path, png, 0o644)
	}
	p.t.Logf("%s: %v", path, err)
}

const enter, tab, escape = kb.Enter, kb.Tab, kb.Escape
