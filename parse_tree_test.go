package main

import (
	"database/sql"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	gotoken "go/token"
	"go/types"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lib/pq"
)

// statementParser parses statements with PostgreSQL, which logs the parse trees.
type statementParser struct {
	t     testing.TB
	db    *sql.DB
	trees []string // since the last call of queries
}

func newStatementParser(t testing.TB) *statementParser {
	t.Helper()
	connector, err := pq.NewConnector(newPlainDatabase(t, "queued") + " options='-c client_min_messages=log -c log_min_messages=panic -c debug_print_parse=on -c debug_pretty_print=off'")
	if err != nil {
		t.Fatal(err)
	}
	p := &statementParser{t: t}
	p.db = sql.OpenDB(pq.ConnectorWithNoticeHandler(connector, func(e *pq.Error) {
		if e.Message == "parse tree:" {
			p.trees = append(p.trees, e.Detail)
		}
	}))
	t.Cleanup(func() { p.db.Close() })
	p.db.SetMaxOpenConns(1)
	if _, err := p.db.Exec("CREATE SCHEMA parsed"); err != nil {
		t.Fatal(err)
	}
	return p
}

// queries returns the query nodes of a statement. A CREATE FUNCTION has those of its body.
func (p *statementParser) queries(statement string) (all []*treeNode) {
	p.t.Helper()
	p.trees = nil
	var err error
	if strings.HasPrefix(statement, "CREATE") {
		_, err = p.db.Exec(statement)
	} else {
		var stmt *sql.Stmt
		if stmt, err = p.db.Prepare(statement); err == nil {
			stmt.Close()
		}
	}
	if err != nil {
		p.t.Fatalf("%v in %s", err, statement)
	}
	for _, tree := range p.trees {
		tokens := nodeTokens(tree)
		all = append(all, find(nodesIn(parseNodes(&tokens)), "QUERY")...)
	}
	return all
}

// treeNode is a node of a parse tree: its fields have words, lists ([]any) and nodes.
type treeNode struct {
	label  string
	fields map[string][]any
}

// nodeTokens returns the brackets and words of a parse tree. A regular expression would
// be shorter, but it took most of the time of these tests.
func nodeTokens(tree string) (tokens []string) {
	for i := 0; i < len(tree); {
		end := i
		for end < len(tree) && strings.IndexByte("(){} \n", tree[end]) < 0 {
			if tree[end] == '\\' { // it escapes the next character
				end++
			}
			end++
		}
		if end == i {
			end++ // a bracket or a space
		}
		if token := strings.TrimSpace(tree[i:min(end, len(tree))]); token != "" {
			tokens = append(tokens, token)
		}
		i = end
	}
	return tokens
}

// parseNodes reads items of a parse tree up to a closing bracket.
func parseNodes(tokens *[]string) (items []any) {
	for len(*tokens) > 0 {
		next := (*tokens)[0]
		*tokens = (*tokens)[1:]
		switch next {
		case ")", "}":
			return items
		case "(":
			items = append(items, parseNodes(tokens))
		case "{":
			n, field := &treeNode{fields: map[string][]any{}}, ""
			for i, item := range parseNodes(tokens) {
				if word, ok := item.(string); ok && i == 0 {
					n.label = word
				} else if ok && strings.HasPrefix(word, ":") {
					field = word[1:]
				} else {
					n.fields[field] = append(n.fields[field], item)
				}
			}
			items = append(items, n)
		default:
			items = append(items, next)
		}
	}
	return items
}

// word returns a field that has one word, empty if there is none.
func (n *treeNode) word(field string) string {
	for _, item := range n.fields[field] {
		if word, ok := item.(string); ok {
			return word
		}
	}
	return ""
}

func (n *treeNode) number(field string) int {
	v, _ := strconv.Atoi(n.word(field))
	return v
}

// nodes returns the nodes in fields, without the nodes that they contain.
func (n *treeNode) nodes(fields ...string) (all []*treeNode) {
	for _, field := range fields {
		all = append(all, nodesIn(n.fields[field])...)
	}
	return all
}

func nodesIn(items []any) (all []*treeNode) {
	for _, item := range items {
		switch v := item.(type) {
		case []any:
			all = append(all, nodesIn(v)...)
		case *treeNode:
			all = append(all, v)
		}
	}
	return all
}

// find returns the nodes with one of the labels, among nodes and all that they contain.
func find(nodes []*treeNode, labels ...string) (found []*treeNode) {
	for _, n := range nodes {
		if slices.Contains(labels, n.label) {
			found = append(found, n)
		}
		for field := range n.fields {
			found = append(found, find(n.nodes(field), labels...)...)
		}
	}
	return found
}

var beginOfStatement = regexp.MustCompile(`^(?:\s|--.*\n)*(?:WITH|SELECT|INSERT INTO|UPDATE|DELETE FROM)\s`)

// statementsOfProgram returns the statements in the Go files, by their constants or the
// declarations that contain them. A constant that is only a part of others is not a statement.
func statementsOfProgram(t testing.TB) map[string][]string {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
	set := gotoken.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	info := types.Info{Types: make(map[ast.Expr]types.TypeAndValue)}
	noImports := types.Config{Error: func(error) {}} // these strings need none
	noImports.Check("queued", set, files, &info)
	statements := make(map[string][]string)
	for i, file := range files {
		if names[i] == "citus.go" { // its statements need functions of the extension
			continue
		}
		declaration := ""
		ast.Inspect(file, func(n ast.Node) bool {
			switch v := n.(type) {
			case *ast.FuncDecl:
				declaration = v.Name.Name
			case *ast.ValueSpec:
				declaration = v.Names[0].Name
			case *ast.GenDecl:
				return v.Tok != gotoken.CONST
			case ast.Expr:
				value := info.Types[v].Value
				if value == nil || value.Kind() != constant.String {
					return true
				}
				name := declaration
				if id, ok := v.(*ast.Ident); ok {
					name = id.Name
				}
				for part := range strings.SplitSeq(strings.ReplaceAll(constant.StringVal(value), "%d", "1"), ";\n") {
					if beginOfStatement.MatchString(part) {
						statements[name] = append(statements[name], part)
					}
				}
				return false
			}
			return true
		})
	}
	return statements
}

const selectFunctionsSQL = `
SELECT p.proname, l.lanname, p.prosrc,
       coalesce((
           SELECT string_agg(quote_ident(coalesce(p.proargnames[a.n], 'unnamed')) || ' ' || format_type(a.type, NULL), ', ' ORDER BY a.n)
           FROM unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) WITH ORDINALITY AS a (type, n)
       ), (
           SELECT 'old ' || max(tgrelid::regclass::text) || ', new ' || max(tgrelid::regclass::text)
           FROM pg_trigger
           WHERE tgfoid = p.oid
       ), '')
FROM pg_proc p
JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = 'queued'::regnamespace`

// functionsInSQL returns, by the names of the functions of the schema, statements that create
// functions in SQL with the same statements. PostgreSQL parses these when it creates them.
func (p *statementParser) functionsInSQL() map[string][]string {
	p.t.Helper()
	rows, err := p.db.Query(selectFunctionsSQL)
	if err != nil {
		p.t.Fatal(err)
	}
	defer rows.Close()
	all := make(map[string][]string)
	for rows.Next() {
		var name, language, body, arguments string
		if err := rows.Scan(&name, &language, &body, &arguments); err != nil {
			p.t.Fatal(err)
		}
		if language == "plpgsql" {
			arguments, body = inSQL(arguments, body)
		}
		all["queued."+name] = []string{fmt.Sprintf("CREATE FUNCTION parsed.%s(%s) RETURNS void LANGUAGE sql AS $parsed$ %s; SELECT $parsed$", name, arguments, strings.TrimRight(body, "; \n"))}
	}
	return all
}

// What PL/pgSQL has besides SQL: the lines at which a statement ends, records, declarations,
// the words before a query or an expression, and the variables for the result.
var (
	endOfStatement = regexp.MustCompile(`(;|\bTHEN|\bLOOP|^ELSE|^BEGIN|^DECLARE)$`)
	recordVariable = regexp.MustCompile(`(?m)^ *(\w+) +record;\n`)
	declaration    = regexp.MustCompile(`^(\w+) +(?:CONSTANT )?(.*?)(?: +:= ((?s).*))?$`)
	beforeQuery    = regexp.MustCompile(`^(?:FOR \w+ IN|RETURN QUERY)\s`)
	beforeValue    = regexp.MustCompile(`^(?:IF|ELSIF|WHILE|EXIT WHEN|PERFORM|RETURN NEXT|RETURN|\w+ :=)\s`)
	intoVariables  = regexp.MustCompile(`(?m)^ *INTO .*$`)
	comment        = regexp.MustCompile(`--.*`)
)

// inSQL returns the body of a function in PL/pgSQL as one in SQL. Its variables become
// arguments, and fields of records NULL. Statements without a name of the schema are left out.
func inSQL(arguments, body string) (string, string) {
	body = comment.ReplaceAllString(body, "")
	for _, v := range recordVariable.FindAllStringSubmatch(body, -1) {
		body = regexp.MustCompile(`\b`+v[1]+`\.\w+`).ReplaceAllString(body, "NULL")
	}
	body = recordVariable.ReplaceAllString(body, "")
	var statements []string
	piece, declares := "", false
	for line := range strings.Lines(body) {
		piece += line
		line = strings.TrimSpace(line)
		end := endOfStatement.FindString(line)
		if end == "" {
			continue
		}
		text := strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(piece), end))
		piece = ""
		if line == "DECLARE" || line == "BEGIN" {
			declares = line == "DECLARE"
		}
		if v := declaration.FindStringSubmatch(text); declares && v != nil {
			arguments += ", " + v[1] + " " + v[2]
			text = "RETURN " + v[3]
		}
		if strings.Contains(text, "queued.") && !strings.HasPrefix(text, "RAISE ") {
			text = beforeValue.ReplaceAllString(beforeQuery.ReplaceAllString(text, ""), "SELECT ")
			statements = append(statements, intoVariables.ReplaceAllString(text, ""))
		}
	}
	return strings.TrimPrefix(arguments, ", "), strings.Join(statements, ";\n")
}
