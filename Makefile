# make run           starts the server with its private PostgreSQL, for the README's tour
# make test          runs the tests of the server, its API and its clients
# make test-matrix   runs the server's tests on other versions of PostgreSQL; VERSIONS="16 17" selects them
# make test-citus URL=postgres://…   runs the server's tests and the torture test on a Citus cluster, whose
#                    nodes have the same superuser; DURATION=30m is the time of the torture test
# make test-browser  tests the dashboard in Chromium; installs Chromium and npm
# make test-deploy   tests deploy/ with Prometheus; installs Prometheus
# make torture DURATION=30m   kills, stops and disconnects servers and PostgreSQL, and accounts for every message
# make bench         measures queued and reference programs and writes BENCHMARKS.md; takes an hour
# make build         builds the static binary ./queued
# make release       builds static binaries for all systems, .deb and .rpm packages, and the list of
#                    modules in them (SBOM), with SHA256SUMS, in dist/
# make module MODULE=example.com/you/queued   sets the module path of a fork, for "go install"

# The PostgreSQL versions of test-matrix: the oldest and the newest supported. Versions 14
# to 18 can be selected. CI runs "make test" on the newest, which compose.yaml uses, the tests
# of the server on the oldest too, and all others on the installed version, 15 on Debian 12.
VERSIONS ?= 14 18
DURATION ?= 30s

# The directory that go.dev recommends for Go; sudo resets PATH.
export PATH := $(PATH):/usr/local/go/bin

# Git refuses to read another user's clone for root. Go then builds only without the
# commit.
ifneq ($(shell git rev-parse HEAD >/dev/null 2>&1 || echo no),)
export GOFLAGS := $(shell go env GOFLAGS 2>/dev/null) -buildvcs=false
endif

.PHONY: run test test-matrix test-citus test-deploy test-browser torture bench build release module setup

run:
	@.ci/setup run
	@[ -e queued ] || echo "== Building ./queued; the first time takes a minute or more"
	@go build -o queued . && exec ./queued

# The timeout names a test that hangs, and what it waits for.
test:
	@.ci/setup clients
	@rm -f .replies
	@echo "== The server: about 700 tests; two minutes, more on a busy machine"
	QUEUED_TEST_REPLIES=$(CURDIR)/.replies go test -race -shuffle=on -parallel 4 -timeout 20m ./...
	@echo "== The responses of these tests, compared with openapi.json"
	cd openapi && QUEUED_TEST_REPLIES=$(CURDIR)/.replies go test -count=1 -timeout 5m ./...
	@echo "== Clients of the servers whose APIs queued speaks"
	cd clients && go test -count=1 -timeout 5m ./...

test-deploy:
	@.ci/setup deploy
	cd deploy && go test -count=1 -timeout 10m ./...

test-browser:
	@.ci/setup browser
	cd browser && go test -count=1 -timeout 10m ./...

# -count=1, because Go does not know that the version of PostgreSQL makes a difference.
test-matrix:
	@.ci/setup matrix
	@for version in $(VERSIONS); do .ci/with-postgres $$version go test -count=1 -parallel 6 -timeout 20m ./... || exit 1; done

test-citus: setup
	@test -n "$(URL)" || { echo "URL is missing: make test-citus URL=postgres://superuser@coordinator/postgres" >&2; exit 1; }
	QUEUED_TEST_CITUS='$(URL)' go test -count=1 -parallel 4 -timeout 2h -skip '^TestTorture$$|EachOrder' . # others need the nodes
	QUEUED_TEST_CITUS='$(URL)' go test -count=1 -timeout 0 -v -run '^TestTorture$$|EachOrder' -torture $(DURATION) .

torture: setup
	go test -count=1 -timeout 0 -v -run '^TestTorture$$|EachOrder' -torture $(DURATION) .

bench: setup
	@command -v rabbitmq-server >/dev/null || { echo "rabbitmq-server is missing: apt-get install rabbitmq-server" >&2; exit 1; }
	cd benchmarks && go run . -o ../BENCHMARKS.md

build:
	CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o queued .

SYSTEMS = linux-amd64 linux-arm64 darwin-amd64 darwin-arm64 windows-amd64.exe windows-arm64.exe

PACKAGES = linux-amd64.deb linux-arm64.deb linux-amd64.rpm linux-arm64.rpm

release:
	@rm -rf dist
	@$(MAKE) --no-print-directory $(SYSTEMS:%=dist/queued-%) $(PACKAGES:%=dist/queued-%) dist/queued-sbom.cdx.json
	@cd dist && { sha256sum queued-* 2>/dev/null || shasum -a 256 queued-*; } >SHA256SUMS && cat SHA256SUMS

# The same commit and Go version give the same bytes, in any directory. Outside a clone
# there is no commit to record.
dist/queued-%:
	@target=$(basename $*) && GOOS=$${target%-*} GOARCH=$${target#*-} CGO_ENABLED=0 GOAMD64=v1 GOARM64=v8.0 GOFLAGS=-mod=readonly \
		go build -trimpath -buildvcs=$$(git rev-parse HEAD >/dev/null 2>&1 && echo true || echo false) -ldflags="-s -w" -o $@ .

# The version of a package is the tag of the commit, without the v, or the time and the
# commit. Its files have the time of the commit.
COMMITTED := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
VERSION := $(shell git describe --tags --exact-match 2>/dev/null | sed -n 's/^v//p')
ifeq ($(VERSION),)
VERSION := $(shell TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --abbrev=12 --format='0~%cd.%h' 2>/dev/null || echo 0)
endif
NFPM = env GOFLAGS= go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0
CYCLONEDX = env GOFLAGS= go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

# Make would delete them as intermediate files.
.PRECIOUS: dist/queued-%

dist/queued-linux-%.deb: dist/queued-linux-% dist/package
	@VERSION='$(VERSION)' SOURCE_DATE_EPOCH=$(COMMITTED) ARCH=$* $(NFPM) package -f deploy/package/nfpm.yaml -p deb -t $@ >/dev/null

dist/queued-linux-%.rpm: dist/queued-linux-% dist/package
	@VERSION='$(VERSION)' SOURCE_DATE_EPOCH=$(COMMITTED) ARCH=$* $(NFPM) package -f deploy/package/nfpm.yaml -p rpm -t $@ >/dev/null

# The unit for a program in /usr/bin, without the lines on how to install it.
dist/package: deploy/queued.service deploy/package/queued.8 CHANGELOG.md
	@mkdir -p $@
	@sed -e 's|/usr/local/bin/queued|/usr/bin/queued|' -e '/^#$$/,/^\[Unit\]$$/{/^\[Unit\]$$/!d;}' deploy/queued.service >$@/queued.service
	@gzip -9n <deploy/package/queued.8 >$@/queued.8.gz
	@gzip -9n <CHANGELOG.md >$@/changelog.gz
	@touch $@

dist/queued-sbom.cdx.json: dist/queued-linux-amd64
	@$(CYCLONEDX) bin -json -std -noserial -notimestamp -output $@ $< 2>/dev/null

# The path is in go.mod and in the imports of the packages under internal/.
module:
	@[ -n "$(MODULE)" ] || { echo "usage: make module MODULE=example.com/you/queued" >&2; exit 2; }
	@old=$$(go list -m) && go mod edit -module $(MODULE) && \
		find . -name '*.go' -exec perl -pi -e "s|\"$$old/internal/|\"$(MODULE)/internal/|" {} + && gofmt -w .

# Installs the programs that are missing.
setup:
	@.ci/setup
