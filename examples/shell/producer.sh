#!/bin/sh
# Publishes each line of its input, a JSON object: producer.sh QUEUE < FILE
set -eu
url=${QUEUED_URL:-http://localhost:8000}
response=$(mktemp)
trap 'rm -f "$response"' EXIT

while IFS= read -r data; do
    key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n') # the same in each attempt: the message is stored once
    # curl honours Retry-After. It tries for up to two minutes, which has to be less than
    # the deduplication window of the queue (5 minutes). The token is not an argument,
    # because others could read it in the list of processes.
    status=$(printf 'Authorization: Bearer %s\n' "${QUEUED_TOKEN:-}" |
        curl --no-progress-meter -o "$response" -w '%{http_code}' --max-time 15 --retry 5 --retry-all-errors \
            -H @- -H "Idempotency-Key: $key" "$url/queues/$1/messages" -d "{\"data\": $data}")
    [ "$status" = 201 ] || { echo "publish: $status $(cat "$response")" >&2; exit 1; }
    sed 's/^{"data":\[{"id":"\([^"]*\)".*/\1/' "$response"
    echo
done
