#!/bin/sh
# Inserts twenty messages, looks at them and reads them: worker.sh URL CHANNEL
set -eu
url=$1 channel=$2

# field prints a member of the message in an answer, if there is one.
field() { # NAME ANSWER
    printf '%s' "$2" | tr -d '\n' | sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\).*/\1/p'
}

fail() {
    echo "$*" >&2
    exit 1
}

seq=1
while [ $seq -le 20 ]; do
    answer=$(curl -fsS "$url/message" -H 'Content-Type: application/json' -d '{"channel": "'"$channel"'", "message": {"seq": '$seq'}}')
    [ "$(field status "$answer")" = 'Message inserted!' ] || fail "$answer"
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
    answer=$(curl -fsS "$url/queue/$channel")
    [ -n "$answer" ] || break
    echo "$(field channel "$answer") $(field seq "$answer")"
done

status=$(curl -sS -w '%{http_code}' "$url/messages?channel=$channel")
[ "$status" = 204 ] || fail "a browse of nothing is $status"
