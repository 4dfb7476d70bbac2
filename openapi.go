package main

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
)

// openapiJSON describes the API for programs (OpenAPI 3.1), and docsHTML shows
// that description to people, with requests to try. The page loads nothing else.
var (
	//go:embed openapi.json
	openapiJSON []byte
	//go:embed docs.html
	docsHTML string

	docsPage = []byte(docsHTML)
)

// docsPolicy is the Content-Security-Policy of the page: its own script and
// style, and requests to this server alone.
var docsPolicy = fmt.Sprintf("default-src 'none'; script-src '%s'; style-src '%s'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	hashOf("script"), hashOf("style"))

// hashOf returns the source expression of an element of the page (W3C Content
// Security Policy Level 3, section 2.3.1).
func hashOf(element string) string {
	_, after, _ := strings.Cut(docsHTML, "<"+element+">")
	text, _, _ := strings.Cut(after, "</"+element+">")
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func (s *server) openapi(*request) (any, error) {
	return content{mediaType: "application/json", bytes: openapiJSON, static: true}, nil
}

func (s *server) docs(r *request) (any, error) {
	r.w.Header().Set("Content-Security-Policy", docsPolicy)
	return content{mediaType: "text/html; charset=utf-8", bytes: docsPage, static: true}, nil
}

// redoc is where fastqueue has a second page.
func (s *server) redoc(r *request) (any, error) {
	r.w.Header().Set("Location", "/docs")
	return withStatus{status: http.StatusTemporaryRedirect}, nil
}
