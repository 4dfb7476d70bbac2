#!/bin/sh
# Sends twenty orders and processes them, with the AWS CLI: aws.sh URL NAME
# The seventh fails the first time, and is received again.
set -eu
export AWS_ACCESS_KEY_ID=WORKER AWS_SECRET_ACCESS_KEY=nJ4x0v2Yq8sT6wZb1LkR AWS_DEFAULT_REGION=us-east-1 AWS_DEFAULT_OUTPUT=text
url=$1 name=$2

sqs() { # ACTION [ARGUMENT…]
    aws --endpoint-url "$url" sqs "$@"
}

queue=$(sqs create-queue --queue-name "$name" --attributes VisibilityTimeout=60)
for ten in "1 2 3 4 5 6 7 8 9 10" "11 12 13 14 15 16 17 18 19 20"; do
    entries=
    for n in $ten; do
        entries="$entries Id=$n,MessageBody=$n,MessageAttributes={queue={DataType=String,StringValue=$name}}"
    done
    sqs send-message-batch --queue-url "$queue" --entries $entries >/dev/null
done

# Bodies, numbers of deliveries, receipt handles and attributes, one message a line.
query='Messages[].[Body, Attributes.ApproximateReceiveCount, ReceiptHandle, MessageAttributes.queue.StringValue]'
while
    messages=$(sqs receive-message --queue-url "$queue" --max-number-of-messages 10 --attribute-names All --message-attribute-names All --query "$query")
    [ "$messages" != None ]
do
    entries=
    while read -r number delivery handle attribute; do
        if [ "$number $delivery" = "7 1" ]; then
            sqs change-message-visibility --queue-url "$queue" --receipt-handle "$handle" --visibility-timeout 0
            continue
        fi
        echo "$attribute $number $delivery"
        entries="$entries Id=$number,ReceiptHandle=$handle"
    done <<END
$messages
END
    [ -z "$entries" ] || sqs delete-message-batch --queue-url "$queue" --entries $entries >/dev/null
done
sqs delete-queue --queue-url "$queue"
