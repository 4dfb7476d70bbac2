#!/bin/sh
# Enqueues twenty jobs of three users and processes them: worker.sh URL QUEUE_TYPE
# A user gets one job every 100 ms.
set -eu
url=$1 queue_type=$2

# field prints a member of a response.
field() { # NAME RESPONSE
    printf '%s' "$2" | tr -d '\n' | sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",} ]*\).*/\1/p'
}

fail() {
    echo "$*" >&2
    exit 1
}

n=1
while [ $n -le 20 ]; do
    response=$(curl -fsS -H 'Accept: application/json' -H 'Content-type: application/json' -X POST \
        -d '{"job_id": "job-'$n'", "interval": 100, "payload": {"number": '$n'}, "requeue_limit": 5}' \
        "$url/enqueue/$queue_type/user-$((n % 3))/")
    [ "$(field status "$response")" = queued ] || fail "$response"
    n=$((n + 1))
done

finished=0
while [ $finished -lt 20 ]; do
    # POSIX sleep takes whole seconds, so let the server wait.
    response=$(curl -sS -w ' %{http_code}' "$url/dequeue/$queue_type/?wait_seconds=5")
    case $response in
    *' 200') ;;
    *' 404') continue ;;
    *) fail "$response" ;;
    esac
    queue_id=$(field queue_id "$response")
    echo "$queue_id $(field number "$response") $(field requeues_remaining "$response")"
    response=$(curl -fsS -X POST "$url/finish/$queue_type/$queue_id/$(field job_id "$response")/")
    [ "$(field status "$response")" = success ] || fail "$response"
    finished=$((finished + 1))
done

for user in 0 1 2; do
    response=$(curl -fsS "$url/metrics/$queue_type/user-$user/")
    [ "$(field queue_length "$response")" = 0 ] || fail "$response"
done
