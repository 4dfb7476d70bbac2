package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/lib/pq"
)

// treatment is how a connection parameter is handled.
type treatment int

const (
	toDriver    treatment = iota // passed to lib/pq
	noEffect                     // ignored: it changes nothing that a server promises
	toService                    // names a service with more parameters
	unsupported                  // refused: it matters, and lib/pq does not support it
)

// parameter is a connection parameter of libpq, or one that providers or other
// drivers use in their URLs.
type parameter struct {
	does     treatment
	variable string // of libpq, empty if there is none
	harmless string // unsupported: values, separated by spaces, that are ignored
	remedy   string // unsupported
}

// parameters are the parameters of libpq in PostgreSQL 14 to 18 (section 34.1.2 of
// its manual) with their environment variables (section 34.15), followed by those of
// others. Any other parameter is an error.
var parameters = map[string]parameter{
	"host":                      {variable: "PGHOST"},
	"hostaddr":                  {variable: "PGHOSTADDR"},
	"port":                      {variable: "PGPORT"},
	"dbname":                    {variable: "PGDATABASE"},
	"user":                      {variable: "PGUSER"},
	"password":                  {variable: "PGPASSWORD"},
	"passfile":                  {variable: "PGPASSFILE"},
	"connect_timeout":           {variable: "PGCONNECT_TIMEOUT"},
	"options":                   {variable: "PGOPTIONS"},
	"application_name":          {variable: "PGAPPNAME"},
	"fallback_application_name": {},
	"sslmode":                   {variable: "PGSSLMODE"},
	"sslnegotiation":            {variable: "PGSSLNEGOTIATION"},
	"sslcert":                   {variable: "PGSSLCERT"},
	"sslkey":                    {variable: "PGSSLKEY"},
	"sslrootcert":               {variable: "PGSSLROOTCERT"},
	"sslsni":                    {variable: "PGSSLSNI"},
	"ssl_min_protocol_version":  {variable: "PGSSLMINPROTOCOLVERSION"},
	"ssl_max_protocol_version":  {variable: "PGSSLMAXPROTOCOLVERSION"},
	"min_protocol_version":      {variable: "PGMINPROTOCOLVERSION"},
	"max_protocol_version":      {variable: "PGMAXPROTOCOLVERSION"},
	"load_balance_hosts":        {variable: "PGLOADBALANCEHOSTS"},
	"target_session_attrs":      {variable: "PGTARGETSESSIONATTRS"},

	"service":     {does: toService, variable: "PGSERVICE"},
	"servicefile": {does: toService, variable: "PGSERVICEFILE"},

	"client_encoding":     {does: noEffect, variable: "PGCLIENTENCODING"},
	"datestyle":           {does: noEffect, variable: "PGDATESTYLE"}, // as a variable only, like the next two
	"tz":                  {does: noEffect, variable: "PGTZ"},
	"geqo":                {does: noEffect, variable: "PGGEQO"},
	"keepalives":          {does: noEffect},
	"keepalives_idle":     {does: noEffect},
	"keepalives_interval": {does: noEffect},
	"keepalives_count":    {does: noEffect},
	"tcp_user_timeout":    {does: noEffect},
	"sslcompression":      {does: noEffect, variable: "PGSSLCOMPRESSION"},
	"sslkeylogfile":       {does: noEffect},
	"krbsrvname":          {does: noEffect, variable: "PGKRBSRVNAME"},
	"gsslib":              {does: noEffect, variable: "PGGSSLIB"},
	"gssdelegation":       {does: noEffect, variable: "PGGSSDELEGATION"},

	"channel_binding":     {does: unsupported, variable: "PGCHANNELBINDING", harmless: "prefer disable", remedy: "remove it and set sslmode=verify-full to authenticate the server"},
	"require_auth":        {does: unsupported, variable: "PGREQUIREAUTH", remedy: "remove it and set sslmode=verify-full to authenticate the server"},
	"gssencmode":          {does: unsupported, variable: "PGGSSENCMODE", harmless: "prefer disable", remedy: "set sslmode to encrypt with TLS"},
	"sslcertmode":         {does: unsupported, variable: "PGSSLCERTMODE", harmless: "allow disable", remedy: "set sslcert and sslkey"},
	"sslcrl":              {does: unsupported, variable: "PGSSLCRL", remedy: "remove it; revoked certificates are not detected"},
	"sslcrldir":           {does: unsupported, variable: "PGSSLCRLDIR", remedy: "remove it; revoked certificates are not detected"},
	"sslpassword":         {does: unsupported, remedy: "set sslkey to a key without a password"},
	"requirepeer":         {does: unsupported, variable: "PGREQUIREPEER", remedy: "remove it and make the socket's directory writable to PostgreSQL's user alone"},
	"requiressl":          {does: unsupported, variable: "PGREQUIRESSL", harmless: "0", remedy: "set sslmode=require"},
	"replication":         {does: unsupported, harmless: "false off no 0", remedy: "remove it"},
	"scram_client_key":    {does: unsupported, remedy: "set password or passfile"},
	"scram_server_key":    {does: unsupported, remedy: "set password or passfile"},
	"oauth_issuer":        {does: unsupported, remedy: "set password or passfile"},
	"oauth_client_id":     {does: unsupported, remedy: "set password or passfile"},
	"oauth_client_secret": {does: unsupported, remedy: "set password or passfile"},
	"oauth_scope":         {does: unsupported, remedy: "set password or passfile"},

	// Prisma, and Supabase and Vercel for it.
	"pgbouncer":            {does: noEffect},
	"schema":               {does: noEffect},
	"connection_limit":     {does: noEffect},
	"pool_timeout":         {does: noEffect},
	"socket_timeout":       {does: noEffect},
	"statement_cache_size": {does: noEffect},
	"supa":                 {does: noEffect},
	"workaround":           {does: noEffect},
	"sslaccept":            {does: unsupported, harmless: "accept_invalid_certs", remedy: "set sslmode=verify-full"},
	"sslidentity":          {does: unsupported, remedy: "set sslcert and sslkey"},
	// pgx, node-postgres, Rails, Doctrine.
	"pool_max_conns":             {does: noEffect},
	"pool_min_conns":             {does: noEffect},
	"pool_max_conn_lifetime":     {does: noEffect},
	"pool_max_conn_idle_time":    {does: noEffect},
	"pool_health_check_period":   {does: noEffect},
	"default_query_exec_mode":    {does: noEffect},
	"statement_cache_capacity":   {does: noEffect},
	"description_cache_capacity": {does: noEffect},
	"uselibpqcompat":             {does: noEffect},
	"pool":                       {does: noEffect},
	"prepared_statements":        {does: noEffect},
	"encoding":                   {does: noEffect},
	"serverVersion":              {does: noEffect},
	"charset":                    {does: noEffect},
	"ssl":                        {does: unsupported, remedy: "set sslmode"}, // except for ssl=true in a URL
	// lib/pq.
	"binary_parameters":              {does: noEffect},
	"disable_prepared_binary_result": {does: noEffect},
	"krbspn":                         {does: noEffect},
	"sslinline":                      {}, // sslcert, sslkey and sslrootcert are PEM, and not files
}

// setting is a connection parameter with its value.
type setting struct {
	name, value string
	from        string // a variable like $PGPORT, or a service; empty for the connection string
	quoted      bool   // so that the end of the value is certain
}

func (s setting) String() string {
	if s.from == "" {
		return s.name
	}
	return fmt.Sprintf("%s (%s)", s.from, s.name)
}

// These errors do not quote the input, which may be part of a password.
var (
	errMalformedURL = errors.New("malformed URL; percent-encode special characters, as %40 for @, %2F for /, %23 for # and %3F for ? in a password")
	errMalformed    = errors.New("malformed; use a URL (postgres://user:password@host/database) with percent-encoded special characters, or key=value pairs with single quotes around values that contain spaces")
)

// readConnection parses a PostgreSQL URL or key=value pairs as libpq does. It takes
// missing parameters from the named service and from libpq's environment variables. It
// returns the connection string for lib/pq, which must not read these variables itself,
// and the names of ignored parameters. Errors contain no secrets.
//
// As in libpq, and unlike lib/pq, the default of sslmode is prefer.
func readConnection(text string, getenv func(string) string) (dsn string, without []string, err error) {
	given, err := parseConnection(strings.TrimSpace(text))
	if err != nil {
		return "", nil, err
	}
	all := make(map[string]setting)
	for i, s := range given { // the last of two equal names wins
		if _, known := parameters[s.name]; !known {
			if i > 0 && strings.Contains(given[i-1].name, "password") && !given[i-1].quoted {
				return "", nil, errMalformed // perhaps this is part of the password
			}
			return "", nil, unknownParameter(s)
		}
		all[s.name] = s
	}
	add := func(s setting) {
		if _, given := all[s.name]; !given {
			all[s.name] = s
		}
	}
	for name, p := range parameters {
		if p.does == toService && getenv(p.variable) != "" {
			add(setting{name: name, value: getenv(p.variable), from: "$" + p.variable})
		}
	}
	ofService, err := readService(all["service"], all["servicefile"].value, getenv)
	if err != nil {
		return "", nil, err
	}
	for _, s := range ofService {
		if _, known := parameters[s.name]; !known {
			return "", nil, unknownParameter(s)
		}
		add(s)
	}
	for name, p := range parameters {
		if p.variable != "" && getenv(p.variable) != "" {
			add(setting{name: name, value: getenv(p.variable), from: "$" + p.variable})
		}
	}

	var kept []setting
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s, p := all[name], parameters[name]
		switch {
		case s.value == "" || p.does == toService:
		case p.does == noEffect || p.does == unsupported && slices.Contains(strings.Fields(p.harmless), s.value):
			if s.from != "" {
				without = append(without, s.from)
			} else {
				without = append(without, s.name)
			}
		case p.does == unsupported:
			return "", nil, fmt.Errorf("%v: not supported; %s", s, p.remedy)
		default:
			if s.value, err = checkedSetting(s); err != nil {
				return "", nil, err
			}
			kept = append(kept, s)
		}
	}

	has := func(name string) bool { return all[name].value != "" }
	if !has("application_name") && !has("fallback_application_name") {
		kept = append(kept, setting{name: "application_name", value: "queued"})
	}
	if !has("connect_timeout") {
		kept = append(kept, setting{name: "connect_timeout", value: fmt.Sprint(int(connectTimeout.Seconds()))})
	}
	if !has("sslmode") && all["sslrootcert"].value != "system" {
		kept = append(kept, setting{name: "sslmode", value: "prefer"})
	}
	slices.SortFunc(kept, func(a, b setting) int { return strings.Compare(a.name, b.name) })
	dsn = writePairs(kept...)
	if _, err := pq.NewConfig(dsn); err != nil {
		for _, s := range kept {
			if _, alone := pq.NewConfig(writePairs(s)); alone != nil && alone.Error() == err.Error() {
				return "", nil, fmt.Errorf("%v: %s", s, reason(alone))
			}
		}
		return "", nil, errors.New(reason(err))
	}
	return dsn, without, nil
}

// hasPassword reports whether a connection string itself contains a password.
func hasPassword(text string) bool {
	all, err := parseConnection(strings.TrimSpace(text))
	return err == nil && slices.ContainsFunc(all, func(s setting) bool {
		return s.name == "password" && s.value != ""
	})
}

// reason returns lib/pq's error about the value of a parameter, without its prefix.
func reason(err error) string {
	return regexp.MustCompile(`^pq: (wrong value for \S+: )?`).ReplaceAllString(err.Error(), "")
}

func unknownParameter(s setting) error {
	if !regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,62}$`).MatchString(s.name) {
		return errMalformed
	}
	return fmt.Errorf("%v: unknown parameter; write a PostgreSQL setting as options='-c %s=value'", s, s.name)
}

// checkedSetting checks a value and returns it as lib/pq expects it. Its errors do
// not quote a value that may be part of a password in a URL.
func checkedSetting(s setting) (string, error) {
	switch s.name {
	case "host":
		hosts := strings.Split(s.value, ",")
		for i := range hosts {
			if hosts[i] == "" {
				hosts[i] = "localhost"
			}
		}
		return strings.Join(hosts, ","), nil
	case "port":
		ports := strings.Split(s.value, ",")
		for i, port := range ports {
			if port == "" {
				ports[i] = "5432"
			} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
				return "", fmt.Errorf("%v: must be a number from 1 to 65535", s)
			}
		}
		return strings.Join(ports, ","), nil
	case "hostaddr":
		for address := range strings.SplitSeq(s.value, ",") {
			if _, err := netip.ParseAddr(address); err != nil {
				return "", fmt.Errorf("%v: must be an IP address", s)
			}
		}
	case "connect_timeout":
		n, err := strconv.Atoi(s.value)
		if err != nil || n > 1e6 {
			return "", fmt.Errorf("%v: must be a number of seconds", s)
		}
		if n <= 0 { // libpq takes this for no limit
			return fmt.Sprint(int(connectTimeout.Seconds())), nil
		}
	case "target_session_attrs":
		if !slices.Contains([]string{"any", "read-write", "primary"}, s.value) {
			return "", fmt.Errorf("%v: must be read-write, primary or any; a server writes to its database", s)
		}
	}
	return s.value, nil
}

// writePairs encodes a connection string for lib/pq.
func writePairs(all ...setting) string {
	escape := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	pairs := make([]string, len(all))
	for i, s := range all {
		pairs[i] = s.name + "='" + escape.Replace(s.value) + "'"
	}
	return strings.Join(pairs, " ")
}

func parseConnection(text string) ([]setting, error) {
	for _, scheme := range []string{"postgres://", "postgresql://"} {
		if rest, is := strings.CutPrefix(text, scheme); is {
			return parseURL(rest)
		}
	}
	return parsePairs(text)
}

// parseURL parses what follows postgres:// as libpq does (section 34.1.1.2 of
// PostgreSQL's manual), but refuses ambiguous URLs.
func parseURL(text string) ([]setting, error) {
	end := strings.IndexAny(text, "/?")
	if end < 0 {
		end = len(text)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r == '#' || unicode.IsSpace(r) || unicode.IsControl(r) }) ||
		strings.Count(text[:end], "@") > 1 || strings.Contains(text[end:], "@") {
		return nil, errMalformedURL
	}
	var all []setting
	var err error
	add := func(name, encoded string) {
		value, decoded := decode(encoded)
		if !decoded {
			err = errMalformedURL
		}
		all = append(all, setting{name: name, value: value})
	}
	hosts := text[:end]
	if user, rest, is := strings.Cut(hosts, "@"); is {
		hosts = rest
		user, password, _ := strings.Cut(user, ":")
		add("user", user)
		add("password", password)
	}
	if hosts != "" {
		var names, ports []string
		for host := range strings.SplitSeq(hosts, ",") {
			name, port, ok := cutPort(host)
			if !ok {
				return nil, errMalformedURL
			}
			names, ports = append(names, name), append(ports, port)
		}
		add("host", strings.Join(names, ","))
		if strings.Join(ports, "") != "" {
			add("port", strings.Join(ports, ","))
		}
	}
	path, query, _ := strings.Cut(text[end:], "?")
	if path = strings.TrimPrefix(path, "/"); path != "" {
		add("dbname", path)
	}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, value, is := strings.Cut(pair, "=")
		name, decoded := decode(name)
		switch {
		case !is || !decoded:
			return nil, errMalformedURL
		case name == "ssl" && value == "true": // as in JDBC and libpq
			add("sslmode", "require")
		default:
			add(name, value)
		}
	}
	return slices.DeleteFunc(all, func(s setting) bool {
		return s.value == "" && slices.Contains([]string{"user", "password", "host"}, s.name)
	}), err
}

// cutPort splits the port off one host of a URL.
func cutPort(host string) (name, port string, ok bool) {
	if address, is := strings.CutPrefix(host, "["); is {
		name, rest, closed := strings.Cut(address, "]")
		port, hasPort := strings.CutPrefix(rest, ":")
		return name, port, closed && (hasPort || rest == "")
	}
	name, port, _ = strings.Cut(host, ":")
	return name, port, !strings.Contains(port, ":")
}

func decode(text string) (string, bool) {
	text, err := url.PathUnescape(text)
	return text, err == nil && utf8.ValidString(text) && !strings.Contains(text, "\x00")
}

// parsePairs parses key=value pairs as libpq does (section 34.1.1.1).
func parsePairs(text string) (all []setting, err error) {
	space := func(r rune) bool { return unicode.IsSpace(r) }
	for {
		text = strings.TrimLeftFunc(text, space)
		if text == "" {
			return all, nil
		}
		name, rest, is := strings.Cut(text, "=")
		name = strings.TrimRightFunc(name, space)
		if !is || name == "" || strings.ContainsFunc(name, space) || !utf8.ValidString(text) || strings.Contains(text, "\x00") {
			return nil, errMalformed
		}
		rest, quoted := strings.CutPrefix(strings.TrimLeftFunc(rest, space), "'")
		var value strings.Builder
		ended, escaped := !quoted, false
		end := len(rest)
		for i, r := range rest {
			switch {
			case escaped:
				value.WriteRune(r)
				escaped = false
				continue
			case r == '\\':
				escaped = true
				continue
			case quoted && r == '\'':
				ended, end = true, i+1
			case !quoted && unicode.IsSpace(r):
				end = i
			default:
				value.WriteRune(r)
				continue
			}
			break
		}
		if !ended || escaped {
			return nil, errMalformed
		}
		all = append(all, setting{name: name, value: value.String(), quoted: quoted})
		text = rest[end:]
	}
}

// readService returns the settings of a service (section 34.17), or none if no service is
// named.
func readService(service setting, file string, getenv func(string) string) ([]setting, error) {
	if service.value == "" {
		return nil, nil
	}
	files := []string{file}
	if file == "" {
		files = nil
		for _, place := range [][2]string{{"HOME", ".pg_service.conf"}, {"PGSYSCONFDIR", "pg_service.conf"}} {
			if folder := getenv(place[0]); folder != "" {
				files = append(files, filepath.Join(folder, place[1]))
			}
		}
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var all []setting
		found, inside := false, false
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			name, value, pair := strings.Cut(line, "=")
			switch {
			case line == "" || line[0] == '#':
			case line[0] == '[':
				inside = line == "["+service.value+"]"
				found = found || inside
			case inside && !pair:
				return nil, fmt.Errorf("service %q: a line in %s is not key=value", service.value, file)
			case inside:
				all = append(all, setting{name: strings.TrimSpace(name), value: strings.TrimSpace(value), from: fmt.Sprintf("service %q", service.value), quoted: true})
			}
		}
		if found {
			return all, nil
		}
	}
	return nil, fmt.Errorf("%v: service %q not found; set PGSERVICEFILE to its file", service, service.value)
}

// untrusted reports whether a connection failed because of TLS: the server does not
// offer it, its certificate is not trusted, or a local file is missing or readable by
// others.
func untrusted(err error) bool {
	return errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(x509.UnknownAuthorityError)) ||
		errors.As(err, new(x509.CertificateInvalidError)) || errors.As(err, new(x509.HostnameError)) ||
		errors.As(err, new(*fs.PathError)) || errors.Is(err, pq.ErrSSLNotSupported) ||
		errors.Is(err, pq.ErrSSLKeyHasWorldPermissions) || errors.Is(err, pq.ErrSSLKeyUnknownOwnership)
}

// takeLibpqVariables removes libpq's variables from the environment, where lib/pq
// would read them for every connection, and returns a getenv that still has them.
func takeLibpqVariables(getenv func(string) string) func(string) string {
	taken := make(map[string]string)
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); strings.HasPrefix(name, "PG") || strings.HasPrefix(name, "SSLPG") {
			taken[name] = value
			os.Unsetenv(name)
		}
	}
	return func(name string) string {
		if value, is := taken[name]; is {
			return value
		}
		return getenv(name)
	}
}
