package main

import (
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// avoidedWords are patterns of words that the project does not use, each with the terms
// that replace it.
var avoidedWords = []struct{ pattern, terms string }{
	{`in hand`, "buffered, in flight"},
	{`(?:make|makes|made|making) way`, "evicted, closed"},
	{`no room|without room`, "no capacity, above the limit"},
	{`so (?:many|long)`, "a number, a maximum"},
	{`in vain`, "without success, empty"},
	{`go(?:es)? by`, "use, follow"},
	{`shall`, "must, should"},
	{`whoever|(?:every|some|no|any)body`, "a client, a consumer, a server"},
	{`the house|the doors`, "the server, access control"},
	{`(?:is|are|was|were|has|have|had) gone`, "deleted, disconnected"},
	{`beyond them`, "above the limit"},
	{`(?:is|are) there already`, "already exists"},
	{`no word of`, "no notification"},
	{`settl(?:e|es|ed|ing|ements?)`, "ack, nack, extend"},
	{`lanes?`, "batcher"},
	{`floors?`, "low-water mark"},
	{`(?:slow|quick) looks?`, "sweep"},
	{`impatient|patient|patience`, "blocking, non-blocking, timeout"},
	{`fruitless`, "empty"},
	{`guard(?:s|ed)?`, "lease token, protect"},
	{`answer(?:s|ed|ing)?`, "response, respond, return"},
	{`given back|gives? back`, "released, returned"},
	{`(?:make|makes|made|making) (?:a |the |this |that |new )(?:queue|topic)s?`, "create"},
}

// allowedTexts match texts in which these words are right: SQL functions, a flag of queued
// bench, and the former names that the changelog quotes.
var allowedTexts = regexp.MustCompile("floor\\(|^settle$|-settle|which (?:was|were)(?:,? (?:and )?`[^`]*`| \\([^)]*\\))+")

// Pages, the description of the API, the dashboard, the help of the commands, comments
// and messages use the terms that every engineer knows.
func TestTextsUseTheTermsOfTheField(t *testing.T) {
	t.Parallel()
	var patterns []string
	for _, v := range avoidedWords {
		patterns = append(patterns, "("+v.pattern+")") // group i is avoidedWords[i-1]
	}
	avoided := regexp.MustCompile(`(?i)\b(?:` + strings.Join(patterns, "|") + `)\b`)
	files := 0
	eachFile(t, func(path string) {
		files++
		for _, p := range prose(t, path) {
			text := allowedTexts.ReplaceAllString(strings.Join(strings.Fields(p.text), " "), "")
			for _, found := range avoided.FindAllStringSubmatch(text, -1) {
				for i, v := range avoidedWords {
					if found[i+1] != "" {
						t.Errorf("%s:%d: %q; use: %s", path, p.line, found[0], v.terms)
					}
				}
			}
		}
	})
	if files < 100 {
		t.Errorf("only %d files were read", files)
	}
}

// eachFile calls f with the path of each file of the project, except for generated and
// hidden files and this one.
func eachFile(t *testing.T, f func(path string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		switch hidden := strings.HasPrefix(name, ".") && path != "." && name != ".ci"; {
		case err != nil:
			return err
		case entry.IsDir() && (hidden || name == "dist" || name == "testdata" || name == "node_modules"):
			return filepath.SkipDir
		case !entry.IsDir() && !hidden && name != "wording_test.go":
			f(path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// passage is a text in a file.
type passage struct {
	line int // where it begins, from 1
	text string
}

// prose returns the texts for people in a file: the comments and strings of a program, and
// the paragraphs of any other file. It returns nothing for files of unknown types.
func prose(t *testing.T, path string) []passage {
	t.Helper()
	switch filepath.Ext(path) {
	case ".go":
		return goProse(t, path)
	case ".js", ".css", ".html":
		return split(mustRead(t, path), scriptProse)
	case ".json": // a string does not span lines
		return split(mustRead(t, path), regexp.MustCompile(`[^\n]+`))
	case ".md", ".yaml", ".yml", ".service", ".env", ".sql", ".sh", ".py":
		return split(mustRead(t, path), paragraph)
	}
	switch {
	case filepath.Base(filepath.Dir(path)) == ".ci", filepath.Base(path) == "Makefile", filepath.Base(path) == "Dockerfile":
		return split(mustRead(t, path), paragraph)
	}
	return nil
}

var (
	// A paragraph ends at an empty line.
	paragraph = regexp.MustCompile(`(?:[^\n]*\S[^\n]*\n?)+`)

	// Comments, of which consecutive lines are one, strings, and text between tags of HTML.
	scriptProse = regexp.MustCompile("(?s:/\\*.*?\\*/)|//[^\\n]*(?:\\n\\s*//[^\\n]*)*|'[^'\\n]*'|\"[^\"\\n]*\"|`[^`]*`|>[^<>]+<")

	// The sign at the beginning of a line of a comment.
	commentSign = regexp.MustCompile(`(?m)^\s*(?://|--|#)`)
)

// split returns the parts of a text that match a pattern.
func split(text string, pattern *regexp.Regexp) (all []passage) {
	for _, at := range pattern.FindAllStringIndex(text, -1) {
		part := commentSign.ReplaceAllString(text[at[0]:at[1]], "")
		all = append(all, passage{1 + strings.Count(text[:at[0]], "\n"), part})
	}
	return all
}

// goProse returns the comments and the strings of a Go file.
func goProse(t *testing.T, path string) (all []passage) {
	t.Helper()
	files := gotoken.NewFileSet()
	parsed, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	add := func(at gotoken.Pos, text string) { all = append(all, passage{files.Position(at).Line, text}) }
	for _, c := range parsed.Comments { // consecutive lines are one comment
		add(c.Pos(), c.Text())
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if v, ok := n.(*ast.BasicLit); ok && v.Kind == gotoken.STRING {
			if text, err := strconv.Unquote(v.Value); err == nil {
				add(v.Pos(), text)
			}
		}
		return true
	})
	return all
}
