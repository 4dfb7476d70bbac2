#!/bin/sh
# Enqueues twenty jobs of three users and works them off: worker.sh URL QUEUE_TYPE
# A user gets one job every 100 ms.
set -eu
url=$1 queue_type=$2

# field prints a member of an answer.
field() { # NAME ANSWER
    printf '%s' "$2" | tr -d '\n' | sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",} ]*\).*/\1/p'
}

fail() {
    echo "$*" >&2
    exit 1
}

n=1
while [ $n -le 20 ]; do
    answer=$(curl -fsS -H 'Accept: application/json' -H 'Content-type: application/json' -X POST \
        -d '{"job_id": "job-'$n'", "interval": 100, "payload": {"number": '$n'}, "requeue_limit": 5}' \
        "$url/enqueue/$queue_type/user-$((n % 3))/")
    [ "$(field status "$answer")" = queued ] || fail "$answer"
    n=$((n + 1))
done

finished=0
while [ $finished -lt 20 ]; do
    # A shell cannot sleep for less than a second: let the server wait.
    answer=$(curl -sS -w ' %{http_code}' "$url/dequeue/$queue_type/?wait_seconds=5")
    case $answer in
    *' 200') ;;
    *' 404') continue ;;
    *) fail "$answer" ;;
    esac
    queue_id=$(field queue_id "$answer")
    echo "$queue_id $(field number "$answer") $(field requeues_remaining "$answer")"
    answer=$(curl -fsS -X POST "$url/finish/$queue_type/$queue_id/$(field job_id "$answer")/")
    [ "$(field status "$answer")" = success ] || fail "$answer"
    finished=$((finished + 1))
done

for user in 0 1 2; do
    answer=$(curl -fsS "$url/metrics/$queue_type/user-$user/")
    [ "$(field queue_length "$answer")" = 0 ] || fail "$answer"
done
