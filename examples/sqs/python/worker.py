"""Processes the messages of a queue with boto3 until SIGTERM or Ctrl-C: python3 worker.py QUEUE

The SDK reads AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

LEASE = int(os.environ.get("LEASE_SECONDS", 30))  # the time after a crash until a message is delivered again
WAIT = 5  # less than the time from SIGTERM to SIGKILL, which is 10 s in Docker


def work(body):
    """Your work. It may take longer than the lease, and an exception is a failed delivery."""
    data = json.loads(body)
    print(data["to"], flush=True)
    time.sleep(data.get("seconds", 0))


stopping = threading.Event()
for number in signal.SIGTERM, signal.SIGINT:
    signal.signal(number, lambda *_: stopping.set())
config = Config(connect_timeout=5, read_timeout=WAIT + 10, retries={"mode": "standard", "total_max_attempts": 5})
sqs = boto3.client("sqs", endpoint_url=os.environ.get("AWS_ENDPOINT_URL_SQS", "http://localhost:8000"), region_name="us-east-1", config=config)
queue = sqs.get_queue_url(QueueName=sys.argv[1])["QueueUrl"]


def attempt(action, **parameters):
    """Returns None if all attempts of the SDK fail. The message is then delivered again when its lease ends."""
    try:
        return action(QueueUrl=queue, **parameters)
    except (BotoCoreError, ClientError) as error:
        print(error, file=sys.stderr)


with ThreadPoolExecutor(1) as pool:
    while not stopping.is_set():
        received = attempt(sqs.receive_message, MaxNumberOfMessages=1, WaitTimeSeconds=WAIT, VisibilityTimeout=LEASE, AttributeNames=["ApproximateReceiveCount"])
        if received is None:
            stopping.wait(1)
            continue
        for message in received.get("Messages", []):
            handle = message["ReceiptHandle"]
            job = pool.submit(work, message["Body"])
            while wait([job], LEASE / 3).not_done:  # the lease is extended while the work goes on
                attempt(sqs.change_message_visibility, ReceiptHandle=handle, VisibilityTimeout=LEASE)
            if job.exception() is None:
                attempt(sqs.delete_message, ReceiptHandle=handle)
                continue
            # The next delivery comes later each time. After the last one the message moves to the dead-letter queue.
            print(repr(job.exception()), file=sys.stderr)
            delay = min(2 ** int(message["Attributes"]["ApproximateReceiveCount"]), 900)
            attempt(sqs.change_message_visibility, ReceiptHandle=handle, VisibilityTimeout=delay)
