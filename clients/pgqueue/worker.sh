#!/bin/sh
# Inserts twenty messages, browses them and reads them: worker.sh URL CHANNEL
set -eu
url=$1 channel=$2

# field prints a member of the message in a response, if there is one.
field() { # NAME RESPONSE
    printf '%s' "$2" | tr -d '\n' | sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\).*/\1/p'
}

fail() {
    echo "$*" >&2
    exit 1
}

seq=1
while [ $seq -le 20 ]; do
    response=$(curl -fsS "$url/message" -H 'Content-Type: application/json' -d '{"channel": "'"$channel"'", "message": {"seq": '$seq'}}')
    [ "$(field status "$response")" = 'Message inserted!' ] || fail "$response"
    seq=$((seq + 1))
done

channels=$(curl -fsS "$url/channels")
case $channels in
*"\"$channel\""*) ;;
*) fail "$channel is not among $channels" ;;
esac
browsed=$(curl -fsS "$url/messages?channel=$channel&offset=0&limit=25" | tr '{' '\n' | grep -c '"seq"')
[ "$browsed" -eq 20 ] || fail "a browse shows $browsed messages"

while :; do
    response=$(curl -fsS "$url/queue/$channel")
    [ -n "$response" ] || break
    echo "$(field channel "$response") $(field seq "$response")"
done

status=$(curl -sS -w '%{http_code}' "$url/messages?channel=$channel")
[ "$status" = 204 ] || fail "a browse of nothing is $status"
