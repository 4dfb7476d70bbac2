# The image holds the static binary and no PostgreSQL: it needs QUEUED_DATABASE_URL.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# With .git, from which the program has its version.
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /queued .

FROM scratch
# For TLS to a database whose certificate a public authority has signed.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /queued /queued
USER 65534:65534
ENV QUEUED_LISTEN=0.0.0.0:8000
EXPOSE 8000
# Asks whether the process is alive, not whether the database is: an orchestrator
# restarts a container for what this says.
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s CMD ["/queued", "health"]
ENTRYPOINT ["/queued"]
