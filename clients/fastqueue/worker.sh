#!/bin/sh
# Publishes twenty events and processes them: worker.sh URL NAME
# The seventh fails the first time, and is delivered again.
set -eu
url=$1 name=$2

call() { # METHOD PATH [BODY]
    curl -fsS -X "$1" -H 'Accept: application/json' -H 'Content-Type: application/json' ${3:+-d "$3"} "$url$2"
}

# field prints a member of the one message in a response, if there is one.
field() { # NAME RESPONSE
    printf '%s' "$2" | tr -d '\n' | sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",} ]*\).*/\1/p'
}

call POST /topics '{"id": "'"$name"'"}' >/dev/null
call POST /queues '{"id": "'"$name"'", "topic_id": "'"$name"'", "ack_deadline_seconds": 30, "message_retention_seconds": 1209600}' >/dev/null
n=1
while [ $n -le 20 ]; do
    call POST "/topics/$name/messages" '{"data": {"number": '$n'}, "attributes": {"event_name": "event1"}}' >/dev/null
    n=$((n + 1))
done

while :; do
    response=$(call GET "/queues/$name/messages?limit=1")
    id=$(field id "$response")
    [ -n "$id" ] || break
    number=$(field number "$response")
    delivery=$(field delivery_attempts "$response")
    if [ "$number $delivery" = "7 1" ]; then
        call PUT "/messages/$id/nack"
        continue
    fi
    echo "$(field queue_id "$response") $number $delivery"
    call PUT "/messages/$id/ack"
done
