#!/bin/sh
# Sends twenty orders and processes them: worker.sh URL NAME
# The seventh fails the first time, and is received again.
set -eu
url=$1 name=$2

call() { # PATH ACTION [NAME=VALUE…]
    path=$1 action=$2
    shift 2
    for parameter; do
        set -- "$@" --data-urlencode "$parameter"
        shift
    done
    curl -fsS --aws-sigv4 aws:amz:us-east-1:sqs --user WORKER:nJ4x0v2Yq8sT6wZb1LkR "$url$path" -d "Action=$action" "$@"
}

# element prints the text of an element of XML, if there is one.
element() { # NAME RESPONSE
    printf '%s' "$2" | sed -n "s|.*<$1>\([^<]*\)</$1>.*|\1|p"
}

call / CreateQueue "QueueName=$name" Attribute.1.Name=VisibilityTimeout Attribute.1.Value=60 >/dev/null
queue=/000000000000/$name
n=1
while [ $n -le 20 ]; do
    call "$queue" SendMessage "MessageBody=$n" >/dev/null
    n=$((n + 1))
done

while :; do
    response=$(call "$queue" ReceiveMessage AttributeName=ApproximateReceiveCount)
    handle=$(element ReceiptHandle "$response")
    [ -n "$handle" ] || break
    number=$(element Body "$response")
    delivery=$(element Value "$response")
    if [ "$number $delivery" = "7 1" ]; then
        call "$queue" ChangeMessageVisibility "ReceiptHandle=$handle" VisibilityTimeout=0 >/dev/null
        continue
    fi
    echo "$name $number $delivery"
    call "$queue" DeleteMessage "ReceiptHandle=$handle" >/dev/null
done
call "$queue" DeleteQueue >/dev/null
