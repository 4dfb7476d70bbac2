#!/bin/sh
# Processes the messages of a queue until SIGTERM or Ctrl-C, with curl and jq: worker.sh QUEUE
# "queued receive -exec COMMAND QUEUE" does the same.
set -eu
url=${QUEUED_URL:-http://localhost:8000}
lease=${LEASE_SECONDS:-30} # the time after a crash until a message is delivered again
wait=5                     # less than the time from SIGTERM to SIGKILL, which is 10 s in Docker
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
limit=1
trap 'limit=0' TERM INT

# Your work, with the data of the message on its input. It may take longer than the
# lease. A status other than 0 is a failed delivery.
work() {
    data=$(cat)
    printf '%s\n' "$data" | jq -er '.to // error("the message has no address")' || return
    sleep "$(printf '%s\n' "$data" | jq '.seconds // 0')"
}

# call METHOD PATH BODY FILE sends a request and writes the response to FILE.
call() {
    status=$(printf 'Authorization: Bearer %s\n' "${QUEUED_TOKEN:-}" |
        curl --no-progress-meter -o "$4" -w '%{http_code}' --max-time $((wait + 10)) -X "$1" -H @- "$url$2" -d "$3") || return
    [ "$status" = 200 ] || { echo "$1 $2: $status $(cat "$4")" >&2; return 1; }
}

# The file "lease" has the id and the lease token, which changes with each extension.
extend() {
    trap 'ended=1; kill $! 2>/dev/null || true' TERM
    ended=
    while [ -z "$ended" ]; do
        sleep "$((lease / 3))" & wait $! || continue
        path=$(jq -r '"/messages/\(.id)/extend?scheduled_at=\(.scheduled_at)"' "$dir/lease")
        call PUT "$path" "{\"ack_deadline_seconds\": $lease}" "$dir/extended" || continue
        jq -c '{id, scheduled_at}' "$dir/extended" >"$dir/lease"
    done
}

done= # the ack or nack of the last message, which is sent with the next receive
while [ $limit = 1 ] || [ -n "$done" ]; do
    receive="{\"limit\": $limit, \"wait_seconds\": $wait, \"ack_deadline_seconds\": $lease $done}"
    call POST "/queues/$1/messages/receive" "$receive" "$dir/received" || { sleep 1; continue; }
    done=
    jq -ce '.data[0] // empty | {id, scheduled_at}' "$dir/received" >"$dir/lease" || continue
    extend & extender=$!
    failed=
    jq -c '.data[0].data' "$dir/received" | work 2>"$dir/error" || failed=1
    cat "$dir/error" >&2
    kill $extender
    wait $extender || wait $extender || true # SIGTERM ends a wait
    # After the last delivery the message moves to the dead queue, with the text of the error.
    done=", \"ack\": [$(cat "$dir/lease")]"
    [ -z "$failed" ] || done=", \"nack\": [$(jq -c --rawfile error "$dir/error" '. + {error: $error}' "$dir/lease")]"
done
