# make run       starts the server on its private PostgreSQL, ready for the README's tour
# make test      runs all tests
# make test-matrix VERSIONS="14 18"   runs them on these versions of PostgreSQL
# make build     builds the static binary ./queued

VERSIONS ?= 14 15 16 17 18

.PHONY: run test test-matrix build setup

run: setup
	@go build -o queued . && exec ./queued

test: setup
	@rm -f .replies
	QUEUED_TEST_REPLIES=$(CURDIR)/.replies go test -race -shuffle=on ./...
	cd openapi && QUEUED_TEST_REPLIES=$(CURDIR)/.replies go test ./...

test-matrix: setup
	@for version in $(VERSIONS); do .ci/with-postgres $$version go test ./... || exit 1; done

build:
	CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o queued .

# Installs what is missing, and nothing where all is there.
setup:
	@.ci/setup
