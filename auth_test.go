package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// secret returns the token of a name in tests.
func secret(name string) string { return "the-secret-of-" + name + "-in-tests" }

// writeTokens writes a file of tokens, with entries such as `"get":["t"]` by name.
func writeTokens(t testing.TB, path string, entries map[string]string) string {
	t.Helper()
	var all []string
	for name, permissions := range entries {
		all = append(all, fmt.Sprintf(`{"name":%q,"token":%q,%s}`, name, secret(name), permissions))
	}
	if err := os.WriteFile(path, []byte(`{"tokens":[`+strings.Join(all, ",")+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// statedPermissions returns the table of docs/configuration.md: the permission of each route.
func statedPermissions(t testing.TB) map[string]string {
	t.Helper()
	page, err := os.ReadFile("docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "| permission | requests |\n|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	permissions := map[string]string{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		for _, m := range regexp.MustCompile("`([A-Z]+ /[^`]*)`").FindAllStringSubmatch(cells[2], -1) {
			permissions[m[1]] = strings.TrimSpace(cells[1])
		}
	}
	return permissions
}

func TestEveryRouteTakesThePermissionThatIsStated(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("t")
	s.useTokens(map[string]string{
		"poster": `"post":["t"]`, "getter": `"get":["t"]`, "scraper": `"metrics":true`, "admin": `"admin":true`,
		"stranger": `"post":["tt","s*"],"get":["tt","s*"]`,
	})
	permissions := statedPermissions(t)
	has := map[string]map[string]bool{
		"none":        {"no token": true, "wrong": true, "poster": true, "getter": true, "scraper": true, "admin": true, "stranger": true},
		"any":         {"poster": true, "getter": true, "scraper": true, "admin": true, "stranger": true},
		"get or post": {"poster": true, "getter": true, "admin": true},
		"post":        {"poster": true, "admin": true},
		"get":         {"getter": true, "admin": true},
		"metrics":     {"scraper": true, "admin": true},
		"admin":       {"admin": true},
	}
	for _, r := range s.routes {
		route := strings.TrimSuffix(r.pattern, "{$}")
		permission, stated := permissions[route]
		if !stated || has[permission] == nil {
			t.Errorf("docs/configuration.md states no permission for %s", route)
			continue
		}
		method, path, _ := strings.Cut(route, " ")
		path = strings.NewReplacer("{topic_id}", "t", "{queue_id}", "t", "{channel}", "t", "{queue}", "t", "{message_id}", newID(), "{group}", "g", "{queue_type}", "t", "{job_id}", "j", "{file}", "main.js").Replace(path)
		for who, v := range map[string]struct {
			client *client
			denied int // the status without the permission
		}{
			"no token": {&s.client, http.StatusUnauthorized},
			"wrong":    {s.with(secret("wrong")), http.StatusUnauthorized},
			"poster":   {s.with(secret("poster")), http.StatusForbidden},
			"getter":   {s.with(secret("getter")), http.StatusForbidden},
			"scraper":  {s.with(secret("scraper")), http.StatusForbidden},
			"stranger": {s.with(secret("stranger")), http.StatusForbidden},
			"admin":    {s.with(secret("admin")), http.StatusForbidden},
		} {
			got := v.client.do(method, path, "")
			want := 0
			if !has[permission][who] {
				want = v.denied
			}
			denied := got.status == http.StatusUnauthorized || got.status == http.StatusForbidden
			if denied != (want != 0) || denied && got.status != want {
				t.Errorf("%s as %s = %d %s, want %d", route, who, got.status, got.body, want)
			}
			if (got.status == http.StatusUnauthorized) != (got.header.Get("WWW-Authenticate") != "") {
				t.Errorf("%s as %s = %d with WWW-Authenticate %q", route, who, got.status, got.header.Get("WWW-Authenticate"))
			}
		}
	}
	if len(permissions) != len(s.routes) {
		t.Errorf("docs/configuration.md states the permissions of %d routes, and there are %d", len(permissions), len(s.routes))
	}
}

func TestAuthorizationErrorsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.useTokens(map[string]string{"admin": `"admin":true`})
	for header, want := range map[string]string{
		"":                                    `{"detail":"Missing Authorization header. Use 'Authorization: Bearer <token>'."}`,
		"Basic abc":                           `{"detail":"Malformed Authorization header. Use 'Authorization: Bearer <token>'."}`,
		"Bearer":                              `{"detail":"Malformed Authorization header. Use 'Authorization: Bearer <token>'."}`,
		"Bearer nope":                         `{"detail":"Invalid token"}`,
		"Bearer " + secret("admin") + "x":     `{"detail":"Invalid token"}`,
		"bearer  " + secret("admin"):          `{"data":[]}`,
		basic("alan", secret("admin")):        `{"data":[]}`,
		basic("", secret("admin")):            `{"data":[]}`,
		basic("alan", secret("admin")+"x"):    `{"detail":"Invalid token"}`,
		basic(secret("admin"), ""):            `{"detail":"Malformed Authorization header. Use 'Authorization: Bearer <token>'."}`,
		"Basic " + secret("admin"):            `{"detail":"Malformed Authorization header. Use 'Authorization: Bearer <token>'."}`,
		"Bearer " + secret("admin")[:10] + "": `{"detail":"Invalid token"}`,
	} {
		r, err := http.NewRequest("GET", s.url+"/topics", nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		checkDiff(t, "response to "+header, want, string(body))
	}
}

// basic returns the Authorization header for a user and a password.
func basic(user, password string) string {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, password)
	return r.Header.Get("Authorization")
}

// SharQ usually runs behind a proxy that requires a password, and some clients send the
// password only after a 401 that asks for it. On the other routes such a 401 would make
// a browser ask its user.
func TestSharQAsksForAPassword(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.useTokens(map[string]string{"admin": `"admin":true`})
	for path, want := range map[string][]string{
		"/dequeue/sms/": {`Bearer realm="queued"`, `Basic realm="queued"`},
		"/queues":       {`Bearer realm="queued"`},
	} {
		v := s.do("GET", path, "")
		checkDiff(t, path, want, v.header.Values("WWW-Authenticate"))
	}
}

func TestListsShowWhatATokenMaySee(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, id := range []string{"a", "b", "mail-1", "mail-2", "mail_3"} {
		s.mustTopic(id)
	}
	s.useTokens(map[string]string{"some": `"get":["a"],"post":["mail-*"]`, "all": `"get":["*"]`, "none": `"metrics":true`})
	for who, want := range map[string][]string{"some": {"a", "mail-1", "mail-2"}, "all": {"a", "b", "mail-1", "mail-2", "mail_3"}, "none": {}} {
		for _, path := range []string{"/topics", "/queues"} {
			var list struct{ Data []struct{ ID string } }
			mustDecode(t, s.with(secret(who)).must(200, "GET", path, ""), &list)
			got := []string{}
			for _, v := range list.Data {
				got = append(got, v.ID)
			}
			checkDiff(t, path+" of "+who, want, got)
		}
	}
	var page struct{ Data []struct{ ID string } }
	mustDecode(t, s.with(secret("some")).must(200, "GET", "/queues?offset=1&limit=1", ""), &page)
	if len(page.Data) != 1 || page.Data[0].ID != "mail-1" {
		t.Errorf("the second of the queues is %v, want mail-1", page.Data)
	}
}

func TestMessagesOfOtherQueuesAreUnknownToAToken(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.mustTopic("mine")
	s.mustTopic("theirs")
	s.publish("mine", 1)
	s.publish("theirs", 2)
	mine, theirs := s.receive("mine", "")[0], s.receive("theirs", "")[0]
	s.useTokens(map[string]string{"me": `"get":["mine"],"post":["theirs"]`})
	c := s.with(secret("me"))
	c.must(404, "GET", "/messages/"+theirs.ID, "")
	c.must(404, "PUT", "/messages/"+theirs.ID+"/extend", `{"ack_deadline_seconds":600}`)
	c.must(204, "PUT", "/messages/"+theirs.ID+"/nack", "")
	c.must(204, "PUT", "/messages/"+theirs.ID+"/ack", "")
	c.must(204, "PUT", "/messages/"+theirs.ID+"/ack?scheduled_at=2022-10-05T21:48:24", "")
	c.must(200, "GET", "/messages/"+mine.ID, "")
	c.must(200, "PUT", "/messages/"+mine.ID+"/extend", `{"ack_deadline_seconds":600}`)
	both := fmt.Sprintf(`{"ids":[%q,%q]}`, theirs.ID, mine.ID)
	c.must(204, "PUT", "/messages/nack", both)
	again := c.receive("mine", "")[0]
	checkDiff(t, "conflict", `{"detail":[{"loc":["body","messages",1,"scheduled_at"],"msg":"the lease has ended: scheduled_at does not match","type":"value_error.lease"}]}`,
		c.must(409, "PUT", "/messages/ack", fmt.Sprintf(`{"messages":[{"id":%q,"scheduled_at":"2022-10-05T21:48:24"},{"id":%q,"scheduled_at":"2022-10-05T21:48:24"}]}`, theirs.ID, again.ID)))
	c.must(204, "PUT", "/messages/ack", both)
	checkDiff(t, "mine", 0, s.messagesIn("mine"))
	checkDiff(t, "theirs, as it was", 1, s.count("SELECT count(*) FROM queued.messages WHERE in_flight AND scheduled_at = $1::timestamp", theirs.ScheduledAt))
}

func TestWrongTokenFilesAreOneErrorWithoutSecrets(t *testing.T) {
	t.Parallel()
	const long, longKey = `"token":"super-secret-super-secret"`, `"secret_access_key":"super-secret-super-secret"`
	for text, want := range map[string]string{
		`{`:                           "[PATH 1]: Expecting property name enclosed in double quotes",
		`{}`:                          "[PATH tokens]: field required",
		`{"tokens":[]}`:               "[PATH tokens]: ensure this value has at least 1 items",
		`{"tokens":[{` + long + `}]}`: "[PATH tokens 0 name]: field required",
		`{"tokens":[{"name":"a"}]}`:   "[PATH tokens 0 token]: token, token_sha256 or access_key_id is required",
		`{"tokens":[{"name":"a","token":"super-secret"}]}`:                                   "[PATH tokens 0 token]: ensure this value has at least 20 characters",
		`{"tokens":[{"name":"a","token":" super-secret-super-secret"}]}`:                     "[PATH tokens 0 token]: must not begin or end with white space",
		`{"tokens":[{"name":"a","token_sha256":"super-secret"}]}`:                            "[PATH tokens 0 token_sha256]: must be 64 hexadecimal digits",
		`{"tokens":[{"name":"a",` + long + `,"token_sha256":"00"}]}`:                         "[PATH tokens 0 token]: not allowed with token_sha256",
		`{"tokens":[{"name":"a",` + long + `}],"token":[]}`:                                  "[PATH token]: unexpected field",
		`{"tokens":[{"name":"a",` + long + `,"gets":["t"]}]}`:                                "[PATH tokens 0 gets]: unexpected field",
		`{"tokens":[{"name":"a",` + long + `,"get":"t"}]}`:                                   "[PATH tokens 0 get]: value is not a valid list",
		`{"tokens":[{"name":"a",` + long + `,"get":["t","a/b"]}]}`:                           "[PATH tokens 0 get 1]: must be an id",
		`{"tokens":[{"name":"a",` + long + `,"post":["*a"]}]}`:                               "[PATH tokens 0 post 0]: must be an id",
		`{"tokens":[{"name":"a",` + long + `,"admin":"yes"}]}`:                               "[PATH tokens 0 admin]: value could not be parsed to a boolean",
		`{"tokens":[{"name":"a",` + long + `},{"name":"a","token":"another-secret-of-20"}]}`: "[PATH tokens 1 name]: duplicate name",
		`{"tokens":[{"name":"a",` + long + `},{"name":"b",` + long + `}]}`:                   "[PATH tokens 1 token]: duplicate token",

		// Access keys.
		`{"tokens":[{"name":"a","access_key_id":"A"}]}`:                                                                  "[PATH tokens 0 secret_access_key]: field required",
		`{"tokens":[{"name":"a",` + longKey + `}]}`:                                                                      "[PATH tokens 0 access_key_id]: field required",
		`{"tokens":[{"name":"a","access_key_id":"A","secret_access_key":"super-secret"}]}`:                               "[PATH tokens 0 secret_access_key]: ensure this value has at least 20 characters",
		`{"tokens":[{"name":"a","access_key_id":"A","secret_access_key":" super-secret-super-secret"}]}`:                 "[PATH tokens 0 secret_access_key]: must not begin or end with white space",
		`{"tokens":[{"name":"a","access_key_id":"A/B",` + longKey + `}]}`:                                                "[PATH tokens 0 access_key_id]: must match ^[a-zA-Z0-9-._]+$, at most 128 characters",
		`{"tokens":[{"name":"a","access_key_id":7,` + longKey + `}]}`:                                                    "[PATH tokens 0 access_key_id]: str type expected",
		`{"tokens":[{"name":"a","access_key_id":"A",` + longKey + `},{"name":"b","access_key_id":"A",` + longKey + `}]}`: "[PATH tokens 1 access_key_id]: duplicate access key id",
	} {
		path := filepath.Join(t.TempDir(), "tokens.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run(context.Background(), []string{"-listen", "127.0.0.1:0", "-data-dir", newDataDir(t), "-token-file", path}, func(string) string { return "" }, nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "-token-file") || !strings.Contains(err.Error(), strings.Replace(want, "PATH", path, 1)) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "super-secret") || strings.Contains(err.Error(), "another-secret")) {
			t.Errorf("%s: the error contains the secret: %v", text, err)
		}
	}
}

func TestTokenCanStandThereAsItsHash(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	sum := sha256.Sum256([]byte(secret("hashed")))
	path := filepath.Join(t.TempDir(), "tokens.json")
	if err := os.WriteFile(path, []byte(`{"tokens":[{"name":"a","token_sha256":"`+hex.EncodeToString(sum[:])+`","admin":true}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := readTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	s.server.tokens.Store(all)
	s.with(secret("hashed")).must(200, "GET", "/topics", "")
	s.with(hex.EncodeToString(sum[:])).must(401, "GET", "/topics", "")
}

// newCertificate writes a certificate for 127.0.0.1 and its key.
func newCertificate(t testing.TB, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTokensAndCertificateAreReadAgainOnHangUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile, tokenFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "tokens.json")
	newCertificate(t, certFile, keyFile)
	writeTokens(t, tokenFile, map[string]string{"old": `"admin":true`})
	r := startProcess(t, "-database-url", newTestDatabase(t, "queued"), "-token-file", tokenFile, "-tls-cert", certFile, "-tls-key", keyFile)
	if !strings.HasPrefix(r.url, "https://") || !strings.Contains(r.output.String(), "auth=tokens") {
		t.Errorf("ready: %s", r.output)
	}
	// status returns the status for a token. The client trusts the certificate in the
	// file; the status is -1 if the server has another one.
	status := func(who string) int {
		certificate, err := os.ReadFile(certFile)
		roots := x509.NewCertPool()
		if err != nil || !roots.AppendCertsFromPEM(certificate) {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
		request, err := http.NewRequest("GET", r.url+"/topics", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+secret(who))
		response, err := client.Do(request)
		if err != nil {
			return -1
		}
		response.Body.Close()
		return response.StatusCode
	}
	checkDiff(t, "old token", 200, status("old"))
	checkDiff(t, "new token", 401, status("new"))
	if _, err := tls.DialWithDialer(&net.Dialer{}, "tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("the server accepts TLS 1.1")
	}
	health := func() error {
		return run(context.Background(), []string{"health", "-listen", strings.TrimPrefix(r.url, "https://"), "-tls-cert", certFile}, func(string) string { return "" }, nil, io.Discard, io.Discard)
	}
	if err := health(); err != nil {
		t.Errorf("queued health = %v", err)
	}
	bench := []string{"bench", "-url", r.url, "-tls-cert", certFile, "-token", secret("old"), "-duration", "100ms", "-producers", "1", "-consumers", "1"}
	if err := run(context.Background(), bench, func(string) string { return "" }, nil, io.Discard, io.Discard); err != nil {
		t.Errorf("queued bench = %v", err)
	}

	if err := os.WriteFile(tokenFile, []byte(`{"tokens":[{"name":"broken"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "the broken file is refused", func() bool { return strings.Contains(r.output.String(), "reload failed") })
	checkDiff(t, "old token after a broken file", 200, status("old"))

	newCertificate(t, certFile, keyFile)
	if err := health(); err == nil {
		t.Error("queued health trusts another certificate")
	}
	writeTokens(t, tokenFile, map[string]string{"new": `"admin":true`})
	r.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "the new token and the new certificate are in force", func() bool { return status("new") == 200 })
	checkDiff(t, "old token", 401, status("old"))
	if strings.Contains(r.output.String(), "secret-of") {
		t.Errorf("the log contains a secret:\n%s", r.output)
	}
}

func TestOpenServerBeyondLoopbackWarns(t *testing.T) {
	t.Parallel()
	r := startProcess(t, "-database-url", newTestDatabase(t, "queued"), "-listen", "0.0.0.0:0")
	if !strings.Contains(r.output.String(), "authentication is disabled") {
		t.Errorf("no warning:\n%s", r.output)
	}
	loopback := startProcess(t, "-database-url", newTestDatabase(t, "queued"))
	if strings.Contains(loopback.output.String(), "authentication is disabled") || !strings.Contains(loopback.output.String(), "auth=none") {
		t.Errorf("on loopback:\n%s", loopback.output)
	}
}

// Secrets

func TestPasswordOfTheDatabaseIsShownNowhere(t *testing.T) {
	t.Parallel()
	const password = "pa55-0f-the-database"
	database := newPlainDatabase(t, "queued") + " password=" + password
	debug := freeAddress(t)
	cmd := exec.Command(os.Args[0], "-listen", "127.0.0.1:0", "-log-level", "debug", "-debug-listen", debug)
	cmd.Env = append(os.Environ(), "QUEUED_TEST_RUN_MAIN=1", "QUEUED_DATABASE_URL="+database)
	r := startCommand(t, cmd)
	r.awaitReady()
	c := r.client()
	c.mustTopic("t")
	c.publish("t", 1)
	c.receive("t", "")
	c.must(404, "GET", "/queues/nosuch", "")
	shown := map[string]string{
		"the log":  r.output.String(),
		"/metrics": c.must(200, "GET", "/metrics", ""),
	}
	for _, path := range []string{"", "cmdline", "goroutine?debug=1", "goroutine?debug=2", "heap?debug=1", "allocs?debug=1"} {
		response, err := http.Get("http://" + debug + "/debug/pprof/" + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		shown["profile "+path] = string(body)
	}
	var activity string
	if err := newTestDB(t, testPostgres.dsn("postgres")).QueryRow("SELECT string_agg(v::text, ' ') FROM pg_stat_activity AS v").Scan(&activity); err != nil {
		t.Fatal(err)
	}
	shown["pg_stat_activity"] = activity
	if runtime.GOOS == "linux" {
		programs, err := filepath.Glob("/proc/[0-9]*/cmdline") // also PostgreSQL's
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range programs {
			line, _ := os.ReadFile(path)
			shown["the list of programs"] += string(line) + "\n"
		}
	}
	var help bytes.Buffer
	getenv := func(name string) string { return map[string]string{"QUEUED_DATABASE_URL": database}[name] }
	if err := run(context.Background(), []string{"-help"}, getenv, nil, &help, &help); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
	shown["-help"] = help.String()
	for what, text := range shown {
		if text == "" {
			t.Errorf("%s shows nothing", what)
		}
		if strings.Contains(text, password) {
			t.Errorf("%s shows the password", what)
		}
	}
}

func TestPasswordInArgumentsIsWarnedOf(t *testing.T) {
	t.Parallel()
	const url = "postgres://me:secret@host/q"
	for _, v := range []struct {
		args, variable string
		want           bool
	}{
		{"-database-url " + url, "", true},
		{"--database-url=" + url, "", true},
		{"--database-url=postgres://me@host/q?password=secret", "", true},
		{"-database-url " + url, url, true},
		{"-database-url postgres://me@host/q", url, false},
		{"-database-url postgres://me@host/q?passfile=/f", "", false},
		{"", url, false},
	} {
		c, err := parseConfig(strings.Fields(v.args), testEnv("QUEUED_DATABASE_URL="+v.variable), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		checkDiff(t, v.args+" and "+v.variable, v.want, c.passwordInArguments)
	}
	r := startProcess(t, "-database-url", newPlainDatabase(t, "queued")+" password=secret")
	if got := r.output.String(); strings.Count(got, "QUEUED_DATABASE_URL") != 1 || strings.Contains(got, "secret") {
		t.Errorf("the log of a server with a password in its arguments:\n%s", got)
	}
}

func TestErrorsDoNotShowThePassword(t *testing.T) {
	t.Parallel()
	closed := freeAddress(t) // no server listens there
	for _, database := range []string{
		"postgres://me:12/secret@host/q",
		"postgres://me:secret@" + closed + "/q?sslmode=sometimes",
		"postgres://me:se\ncret:secret@host/q",
		"postgresql://me:%secret@host/q",
		"user=me password='secret host=x",
		"user=me password=secret port=x",
		"user=me password=secret host=/no/such/folder",
		"postgres://me:secret@" + closed + "/q",
		"postgres://me:secret@no-such-host.invalid/q",
		"postgres:///q?host=/no/such/folder&password=secret",
	} {
		for _, args := range [][]string{{"-database-url", database}, {database}, {"-database-url", "", database}, {"-database-uri=" + database}} {
			output := newSyncBuffer()
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() {
				ended <- run(ctx, append([]string{"-listen", "127.0.0.1:0", "-log-level", "debug"}, args...), func(string) string { return "" }, nil, output, output)
			}()
			var err error
			eventually(t, "the server ends or retries", func() bool {
				select {
				case err = <-ended:
					return true
				default:
				}
				if !strings.Contains(output.String(), "database unavailable, retrying") {
					return false
				}
				stop()
				err = <-ended
				return true
			})
			stop()
			if text := fmt.Sprint(err, output); strings.Contains(text, "secret") || text == "<nil>" {
				t.Errorf("%q: %s", args, text)
			}
		}
	}
}
