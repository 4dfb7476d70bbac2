#!/bin/sh
# Puts twenty jobs into a queue and takes them out: worker.sh URL QUEUE
set -eu
url=$1 queue=$2
producer='Authorization: Bearer 5c2f8a1e-6b0d-4e77-9a43'
worker='Authorization: Bearer e17d94b3-20fa-4c8b-8d56'

n=1
while [ $n -le 20 ]; do
    curl -fsS -X POST -H "$producer" "$url/in/$queue" --data '{"context": "job '$n'"}'
    n=$((n + 1))
done

while :; do
    response=$(curl -sS -w ' %{http_code}' -X GET -H "$worker" "$url/out/$queue")
    case $response in
    *' 200') echo "$queue ${response% *}" ;;
    *' 404') break ;;
    *)
        echo "$response" >&2
        exit 1
        ;;
    esac
done
