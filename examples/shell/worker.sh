#!/bin/sh
# Processes the messages of a queue until SIGTERM, with curl and jq: worker.sh QUEUE
# "queued receive -exec COMMAND QUEUE" does the same.
set -eu
url=${QUEUED_URL:-http://localhost:8000}
lease=${LEASE_SECONDS:-30} # the time after a crash until a message is delivered again
wait=5                     # less than the time from SIGTERM to SIGKILL, which is 10 s in Docker
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
stopping=
trap 'stopping=1' TERM

# Your work, with the data of the message on its input. It may take longer than the
# lease. A status other than 0 is a failed delivery.
process() {
    data=$(cat)
    printf '%s\n' "$data" | jq -er '.to // error("the message has no address")' || return
    sleep "$(printf '%s\n' "$data" | jq '.seconds // 0')"
}

# call METHOD PATH BODY FILE [OPTION…] sends a request and writes the response to FILE.
call() {
    method=$1 path=$2 body=$3 file=$4
    shift 4
    status=$(printf 'Authorization: Bearer %s\n' "${QUEUED_TOKEN:-}" |
        curl --no-progress-meter -o "$file" -w '%{http_code}' --max-time $((wait + 10)) "$@" -X "$method" -H @- "$url$path" -d "$body") || return
    case $status in 2*) ;; *) echo "$method $path: $status $(cat "$file")" >&2 && return 1 ;; esac
}

# The file "token" has the lease token, which changes with each extension.
extend() {
    trap 'ended=1; kill $! 2>/dev/null' TERM
    ended=
    while [ -z "$ended" ]; do
        sleep "$((lease / 3))" & wait $! || continue
        call PUT "/messages/$id/extend?scheduled_at=$(cat "$dir/token")" "{\"ack_deadline_seconds\": $lease}" "$dir/extended" || continue
        jq -r .scheduled_at "$dir/extended" >"$dir/token"
    done
}

while [ -z "$stopping" ]; do
    call POST "/queues/$1/messages/receive" "{\"limit\": 1, \"wait_seconds\": $wait, \"ack_deadline_seconds\": $lease}" "$dir/received" || { sleep 1; continue; }
    id=$(jq -r '.data[0].id // empty' "$dir/received")
    [ -n "$id" ] || continue
    jq -r '.data[0].scheduled_at' "$dir/received" >"$dir/token"
    extend & extender=$!
    action=ack body=
    # After the last delivery the message moves to the dead queue, with this text.
    jq -c '.data[0].data' "$dir/received" | process 2>"$dir/error" || { action=nack; body=$(jq -Rs '{error: .}' "$dir/error"); }
    kill $extender
    wait $extender || true
    # A 409 says that the lease has ended, and another worker may have the message.
    call PUT "/messages/$id/$action?scheduled_at=$(cat "$dir/token")" "$body" "$dir/response" --retry 4 --retry-all-errors || true
done
