"""Sends each line of its input, a JSON object, with boto3: python3 producer.py QUEUE < FILE

The SDK reads AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import json
import os
import sys
import uuid

import boto3
from botocore.config import Config

# Ten attempts take less than the five minutes in which a FIFO queue recognises duplicates.
config = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 10})
sqs = boto3.client("sqs", endpoint_url=os.environ.get("AWS_ENDPOINT_URL_SQS", "http://localhost:8000"), region_name="us-east-1", config=config)
queue = sqs.get_queue_url(QueueName=sys.argv[1])["QueueUrl"]

for line in sys.stdin:
    fifo = {}
    if queue.endswith(".fifo"):
        fifo = {
            "MessageGroupId": json.loads(line).get("to", "unknown"),  # the messages of an address keep their order
            "MessageDeduplicationId": str(uuid.uuid4()),  # the same in each attempt. If you have one, use the number of the order
        }
    print(sqs.send_message(QueueUrl=queue, MessageBody=line.strip(), **fifo)["MessageId"], flush=True)
