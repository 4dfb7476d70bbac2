# make run       starts the server on its private PostgreSQL, ready for the README's tour
# make test      runs the tests of the server, its API and its clients
# make test-matrix VERSIONS="14 18"   runs them on these versions of PostgreSQL
# make test-browser  drives the dashboard in Chromium, which it installs
# make torture DURATION=30m   kills, stops and cuts off everything for so long, and accounts for every message
# make test-deploy   tests what is in deploy/ with a real Prometheus, which it installs
# make bench     measures beside references and writes BENCHMARKS.md; takes an hour
# make build     builds the static binary ./queued
# make release   builds static binaries for all systems, with SHA256SUMS, in dist/

VERSIONS ?= 14 15 16 17 18
DURATION ?= 30s

# Where go.dev says to put Go: sudo does not pass PATH on.
export PATH := $(PATH):/usr/local/go/bin

# Git says nothing to root about another user's clone, and Go then builds only
# without the commit.
ifneq ($(shell git rev-parse HEAD >/dev/null 2>&1 || echo no),)
export GOFLAGS := $(shell go env GOFLAGS 2>/dev/null) -buildvcs=false
endif

.PHONY: run test test-matrix test-deploy test-browser torture bench build release setup

run:
	@.ci/setup run
	@go build -o queued . && exec ./queued

# A test that hangs is named, with what it waits for, when its time is over.
test: setup
	@rm -f .replies
	@echo "== The server: some 400 tests, which take two minutes, or more on a busy machine"
	QUEUED_TEST_REPLIES=$(CURDIR)/.replies go test -race -shuffle=on -parallel 4 -timeout 20m ./...
	@echo "== Their answers, compared with openapi.json"
	cd openapi && QUEUED_TEST_REPLIES=$(CURDIR)/.replies go test -count=1 -timeout 5m ./...
	@echo "== Clients of the servers whose APIs this one has"
	cd clients && go test -count=1 -timeout 5m ./...

test-deploy:
	@.ci/setup deploy
	cd deploy && go test -count=1 -timeout 10m ./...

test-browser:
	@.ci/setup browser
	cd browser && go test -count=1 -timeout 10m ./...

test-matrix:
	@.ci/setup matrix
	@for version in $(VERSIONS); do .ci/with-postgres $$version go test -timeout 20m ./... || exit 1; done

torture: setup
	go test -count=1 -timeout 0 -v -run '^TestTorture$$' -torture $(DURATION) .

bench: setup
	@command -v rabbitmq-server >/dev/null || { echo "This measures RabbitMQ too: apt-get install rabbitmq-server" >&2; exit 1; }
	cd benchmarks && go run . -o ../BENCHMARKS.md

build:
	CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o queued .

SYSTEMS = linux-amd64 linux-arm64 darwin-amd64 darwin-arm64 windows-amd64.exe windows-arm64.exe

release:
	@rm -rf dist
	@$(MAKE) --no-print-directory $(SYSTEMS:%=dist/queued-%)
	@cd dist && { sha256sum queued-* 2>/dev/null || shasum -a 256 queued-*; } >SHA256SUMS && cat SHA256SUMS

# The same commit and the same Go give the same bytes, in any folder. Outside of a
# clone there is no commit to name.
dist/queued-%:
	@target=$(basename $*) && GOOS=$${target%-*} GOARCH=$${target#*-} CGO_ENABLED=0 GOAMD64=v1 GOARM64=v8.0 GOFLAGS=-mod=readonly \
		go build -trimpath -buildvcs=$$(git rev-parse HEAD >/dev/null 2>&1 && echo true || echo false) -ldflags="-s -w" -o $@ .

# Installs what is missing, and nothing where all is there.
setup:
	@.ci/setup
