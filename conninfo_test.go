package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestConnectionStringIsReadAsByLibpq(t *testing.T) {
	t.Parallel()
	service := filepath.Join(t.TempDir(), "services")
	if err := os.WriteFile(service, []byte("# some\n[other]\nhost=o\n\n[s]\nhost = h\nport=7\nkeepalives=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const ours = "application_name='queued' connect_timeout='5' "
	for _, v := range []struct {
		given, env string
		want       string
		ignored    []string
	}{
		{given: "dbname=q", want: ours + "dbname='q' sslmode='prefer'"},
		{given: "", want: ours + "sslmode='prefer'"},
		{given: "postgres://", want: ours + "sslmode='prefer'"},
		{given: " postgres://me:p%20w%2F%27%5C%C3%A9@db.example:5433/q?sslmode=require&application_name=mine\n",
			want: `application_name='mine' connect_timeout='5' dbname='q' host='db.example' password='p w/\'\\é' port='5433' sslmode='require' user='me'`},
		{given: `host = db.example port=5433 user=me password='p w/\'\\é' dbname = q sslmode=require  application_name=mine connect_timeout=7`,
			want: `application_name='mine' connect_timeout='7' dbname='q' host='db.example' password='p w/\'\\é' port='5433' sslmode='require' user='me'`},
		{given: `password=p\ w\'`, want: ours + `password='p w\'' sslmode='prefer'`},
		{given: "dbname=a dbname=b host=", want: ours + "dbname='b' sslmode='prefer'"},
		{given: "postgresql://me@a:1,b,[::1]:3/q", want: ours + "dbname='q' host='a,b,::1' port='1,5432,3' sslmode='prefer' user='me'"},
		{given: "postgres://%2Frun%2Fpg/q?port=7&options=-c%20work_mem%3D1MB%20-c+x", want: ours + "dbname='q' host='/run/pg' options='-c work_mem=1MB -c+x' port='7' sslmode='prefer'"},
		{given: "postgres:///q?host=/run/pg", want: ours + "dbname='q' host='/run/pg' sslmode='prefer'"},
		{given: "postgres://a?ssl=true", want: ours + "host='a' sslmode='require'"},
		{given: "postgres://a?sslrootcert=system", want: ours + "host='a' sslrootcert='system'"}, // this implies verify-full, as in libpq
		{given: "fallback_application_name=mine connect_timeout=0", want: "connect_timeout='5' fallback_application_name='mine' sslmode='prefer'"},
		{given: "host=a", env: "PGHOST=b PGPORT=7 PGPASSWORD=x PGSSLMODE=require PGTZ=Asia/Tokyo PGAPPNAME=", want: ours + "host='a' password='x' port='7' sslmode='require'", ignored: []string{"$PGTZ"}},
		{given: "host=a service=s", env: "PGHOST=b PGPORT=8 PGUSER=me PGSERVICEFILE=" + service, want: ours + "host='a' port='7' sslmode='prefer' user='me'", ignored: []string{`service "s"`}},
		{given: "dbname=q", env: "PGSERVICE=s HOME=/nowhere PGSERVICEFILE=" + service, want: ours + "dbname='q' host='h' port='7' sslmode='prefer'", ignored: []string{`service "s"`}},
		{given: "postgres://a/q?schema=public&pgbouncer=true&connection_limit=1&pool_timeout=0&gssencmode=disable&channel_binding=prefer&keepalives_idle=5&serverVersion=16",
			want: ours + "dbname='q' host='a' sslmode='prefer'", ignored: []string{"channel_binding", "connection_limit", "gssencmode", "keepalives_idle", "pgbouncer", "pool_timeout", "schema", "serverVersion"}},
	} {
		dsn, ignored, err := readConnection(v.given, testEnv(v.env))
		if err != nil || dsn != v.want || !slices.Equal(ignored, v.ignored) {
			t.Errorf("%s with %s:\n     %s %v %v\nwant %s %v", v.given, v.env, dsn, ignored, err, v.want, v.ignored)
		}
		if again, ignored, err := readConnection(dsn, testEnv("")); again != dsn || ignored != nil || err != nil {
			t.Errorf("%s read again is %s %v %v", dsn, again, ignored, err)
		}
	}
}

// testEnv returns a getenv with the variables in a text such as "A=1 B=2".
func testEnv(text string) func(string) string {
	env := make(map[string]string)
	for pair := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(pair, "=")
		env[name] = value
	}
	return func(name string) string { return env[name] }
}

func TestWrongConnectionStringIsRefusedByNameWithoutItsSecrets(t *testing.T) {
	t.Parallel()
	for _, v := range []struct{ given, env, want string }{
		{given: "postgres://me:se@cret/w#rd@db.example/q", want: "malformed URL"},
		{given: "postgres://me:se@cret@db.example/q", want: "malformed URL"},
		{given: "postgres://me:se/cret@db.example/q", want: "malformed URL"},
		{given: "postgres://me:se?cret@db.example/q", want: "malformed URL"},
		{given: "postgres://me:se?cret=x@db.example/q", want: "malformed URL"},
		{given: "postgres://me:se#cret@db.example/q", want: "malformed URL"},
		{given: "postgres://me:se%cret@db.example/q", want: "malformed URL"},
		{given: "postgres://me:se%FFcret@db.example/q", want: "malformed URL"},
		{given: "postgres://me:se%00cret@db.example/q", want: "malformed URL"},
		{given: "postgres://me:se cret@db.example/q", want: "malformed URL"},
		{given: "postgres://me:[secret@db.example:x:y/q", want: "malformed URL"},
		{given: "postgres://me@[::1/q", want: "malformed URL"},
		{given: "postgres://a/q?password=secret&secret", want: "malformed URL"},
		{given: "postgres://a/q?password=se&cret=x", want: "malformed"},
		{given: "postgres://me:secret/q", want: "port: must be a number"},
		{given: "postgres://me:secret@host:port/q", want: "port: must be a number"},
		{given: "nonsense", want: "malformed"},
		{given: "password=secret host", want: "malformed"},
		{given: "password='secret", want: "malformed"},
		{given: "password=secret\\", want: "malformed"},
		{given: "password=se cret=x", want: "malformed"},
		{given: "jdbc:postgresql://a/q?password=secret", want: "malformed"},
		{given: "postgresql+asyncpg://me:secret@a/q", want: "malformed"},
		{given: "postgres://me:secret@host/q?sslmode=sometimes", want: `sslmode: "sometimes" is not supported; supported values are`},
		{given: "postgres://me:secret@a/q?sslmod=require", want: "sslmod: unknown parameter"},
		{given: "password='secret' aplication_name=x", want: "aplication_name: unknown parameter"},
		{given: "search_path=x", want: "options='-c search_path=value'"},
		{given: "connect_timeout=soon", want: "connect_timeout: must be a number"},
		{given: "hostaddr=a", want: "hostaddr: must be an IP address"},
		{given: "host=a,b port=1,2,3", want: "could not match"},
		{given: "sslrootcert=system sslmode=require", want: "verify-full"},
		{given: "channel_binding=require", want: "channel_binding: not supported; remove it and set sslmode=verify-full"},
		{given: "postgres://a?target_session_attrs=standby", want: "target_session_attrs: must be read-write"},
		{given: "ssl=true", want: "ssl: not supported; set sslmode"},
		{given: "service=s", env: "HOME=/nowhere", want: `service "s" not found`},
		{given: "dbname=q", env: "PGPORT=x", want: "$PGPORT (port): must be a number"},
		{given: "dbname=q", env: "PGSSLMODE=sometimes", want: `$PGSSLMODE (sslmode): "sometimes" is not supported`},
		{given: "dbname=q", env: "PGGSSENCMODE=require", want: "$PGGSSENCMODE (gssencmode): not supported"},
		{given: "dbname=q", env: "PGTARGETSESSIONATTRS=standby", want: "$PGTARGETSESSIONATTRS (target_session_attrs): must be"},
	} {
		dsn, _, err := readConnection(v.given, testEnv(v.env))
		if err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("%s with %s = %s, %v, want an error with %s", v.given, v.env, dsn, err, v.want)
		}
		for _, secret := range []string{"secret", "cret", "w#rd"} {
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error shows a part of the password: %v", v.given, err)
			}
		}
	}
}

// connectionValues has, by parameter, a value that a server can start with. Parameters
// that are not in it can be 1. The test does not change those with an empty value.
var connectionValues = map[string]string{
	"dbname": "", "host": "", "port": "", "user": "", "hostaddr": "", // those of the test
	"passfile": "/nowhere", "sslcert": "/nowhere", "sslkey": "/nowhere", "sslrootcert": "/nowhere", "sslmode": "prefer", "sslnegotiation": "postgres",
	"options": "-c work_mem=1MB", "ssl_min_protocol_version": "TLSv1.2", "ssl_max_protocol_version": "TLSv1.3",
	"min_protocol_version": "3.0", "max_protocol_version": "latest", "load_balance_hosts": "random", "target_session_attrs": "read-write",
	"service": "", "servicefile": "", "sslinline": "0",
}

func TestServerStartsWithEveryParameterThatIsNotRefused(t *testing.T) {
	t.Parallel()
	text := newPlainDatabase(t, "queued")
	var ignored []string
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		p := parameters[name]
		value, has := connectionValues[name]
		switch {
		case p.does == unsupported && p.harmless == "":
			continue
		case p.does == unsupported:
			value, _, _ = strings.Cut(p.harmless, " ")
		case !has:
			value = "1"
		case value == "":
			continue
		}
		if p.does == noEffect || p.does == unsupported {
			ignored = append(ignored, name)
		}
		text += " " + writePairs(setting{name: name, value: value})
	}
	r := runServer(t, "-database-url", text)
	r.client().mustTopic("t")
	if want := `msg="ignoring connection parameters" parameters="` + strings.Join(ignored, " ") + `"`; !strings.Contains(r.output.String(), want) {
		t.Errorf("the log lacks %s:\n%s", want, r.output)
	}
}

func TestEveryParameterThatMattersAndCannotBeHonouredIsNamed(t *testing.T) {
	t.Parallel()
	for name, p := range parameters {
		if p.does != unsupported {
			continue
		}
		err := run(t.Context(), []string{"-database-url", "dbname=q " + name + "=x"}, testEnv(""), nil, nil, nil)
		if err == nil || !strings.Contains(err.Error(), "-database-url: "+name+": not supported; "+p.remedy) {
			t.Errorf("a server with %s = %v, want an error that names it", name, err)
		}
	}
}

func TestEveryParameterIsOnItsPage(t *testing.T) {
	t.Parallel()
	page := mustRead(t, "docs/configuration.md")
	for name, p := range parameters {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("docs/configuration.md does not list %s", name)
		}
		if p.variable != "" && !strings.Contains(page, "`"+p.variable+"`") {
			t.Errorf("docs/configuration.md does not list %s", p.variable)
		}
	}
}

func TestDatabaseIsDescribedWithoutSecrets(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"postgres://me:secret@a/q":                 "q at a:5432",
		"postgres://me:secret@a:1,b:2":             "me at a:1 or at b:2",
		"host=/run/pg dbname=q password=secret":    "q in /run/pg",
		"host=a hostaddr=::1 dbname=q":             "q at [::1]:5432",
		"postgres://me:secret@[::1]:7/q?user=them": "q at [::1]:7",
	} {
		d, err := newDatabase(given)
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(d.dsn); got != want {
			t.Errorf("%s is described as %s, want %s", given, got, want)
		}
	}
}
