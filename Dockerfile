# syntax=docker/dockerfile:1
# Two images, each for amd64 and arm64:
#
#   docker build -t queued .                              the static binary alone
#   docker build -t queued:all-in-one --target all-in-one .   with PostgreSQL
#   docker buildx build --platform linux/amd64,linux/arm64 -t REGISTRY/queued --push .
#
# The binary is compiled on the platform of the builder, without emulation.
#
# The base images have tags and no digests, which have to be looked up in a registry. To
# build from the same images each time, look them up in yours, and pass them on:
#
#   docker buildx imagetools inspect --format '{{.Manifest.Digest}}' golang:1.26
#   docker build --build-arg GO_IMAGE=golang:1.26@sha256:… --build-arg DEBIAN_IMAGE=debian:trixie-slim@sha256:… …
ARG GO_IMAGE=golang:1.26
ARG DEBIAN_IMAGE=debian:trixie-slim

FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# Includes .git, which gives the program its version.
COPY . .
ARG TARGETOS=linux
ARG TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags="-s -w" -o /queued .

# The first minute, and the sidecar of deploy/kubernetes: PostgreSQL's programs, and a
# private PostgreSQL in /var/lib/queued.
#
#   docker run -p 127.0.0.1:8000:8000 -v queued:/var/lib/queued --stop-timeout 90 queued:all-in-one
FROM ${DEBIAN_IMAGE} AS all-in-one
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="queued with PostgreSQL" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.description="A message queue server with its own PostgreSQL" \
      org.opencontainers.image.licenses="MIT"
# Without createcluster.d, Debian's package would create a cluster in the image.
RUN mkdir -p /etc/postgresql-common/createcluster.d \
 && echo create_main_cluster=false >/etc/postgresql-common/createcluster.d/queued.conf \
 && apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates postgresql \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 10001 queued \
 && useradd --system --uid 10001 --gid queued --home-dir /var/lib/queued --shell /usr/sbin/nologin queued \
 && install -d -o queued -g queued -m 700 /var/lib/queued
COPY --from=build /queued /usr/local/bin/queued
USER 10001:10001
ENV QUEUED_LISTEN=0.0.0.0:8000 QUEUED_DATA_DIR=/var/lib/queued
VOLUME /var/lib/queued
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s CMD ["/usr/local/bin/queued", "health"]
ENTRYPOINT ["/usr/local/bin/queued"]

# The default. It contains no PostgreSQL, so it needs QUEUED_DATABASE_URL.
FROM scratch
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="queued" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.description="A message queue server with an HTTP API on PostgreSQL" \
      org.opencontainers.image.licenses="MIT"
# Public certificate authorities, for TLS to a database.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /queued /queued
USER 65534:65534
ENV QUEUED_LISTEN=0.0.0.0:8000
EXPOSE 8000
# Checks that the process is alive, not that the database is: an orchestrator restarts
# an unhealthy container, and a restart does not repair a database.
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s CMD ["/queued", "health"]
ENTRYPOINT ["/queued"]
