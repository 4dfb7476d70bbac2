# The image contains the static binary and no PostgreSQL, so it needs QUEUED_DATABASE_URL.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# Includes .git, which gives the program its version.
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /queued .

FROM scratch
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
