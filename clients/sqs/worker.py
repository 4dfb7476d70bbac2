"""Sends twenty orders and processes them: worker.py URL NAME

The seventh fails the first time, and is received again.
"""

import sys

import boto3

url, name = sys.argv[1:]
client = boto3.client("sqs", endpoint_url=url, region_name="us-east-1", aws_access_key_id="WORKER", aws_secret_access_key="nJ4x0v2Yq8sT6wZb1LkR")
try:
    client.get_queue_url(QueueName=name)
    sys.exit("the queue exists")
except client.exceptions.QueueDoesNotExist:
    pass
queue = client.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "60"})["QueueUrl"]
for n in (1, 11):
    sent = client.send_message_batch(QueueUrl=queue, Entries=[{
        "Id": str(i),
        "MessageBody": str(i),
        "MessageAttributes": {"queue": {"DataType": "String", "StringValue": name}, "bytes": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}},
    } for i in range(n, n + 10)])
    assert len(sent["Successful"]) == 10, sent

while messages := client.receive_message(
        QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"], AttributeNames=["ApproximateReceiveCount"]).get("Messages"):
    for message in messages:
        handle, delivery = message["ReceiptHandle"], message["Attributes"]["ApproximateReceiveCount"]
        assert message["MessageAttributes"]["bytes"]["BinaryValue"] == b"\x00\xff", message
        if message["Body"] == "7" and delivery == "1":
            client.change_message_visibility(QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=0)
            continue
        print(message["MessageAttributes"]["queue"]["StringValue"], message["Body"], delivery)
        client.delete_message(QueueUrl=queue, ReceiptHandle=handle)
client.delete_queue(QueueUrl=queue)
