// Sends twenty orders and processes them: worker.mjs URL NAME
//
// The seventh fails the first time, and is received again.
import {
  ChangeMessageVisibilityCommand, CreateQueueCommand, DeleteMessageBatchCommand, DeleteQueueCommand, GetQueueUrlCommand,
  QueueDoesNotExist, ReceiveMessageCommand, SendMessageBatchCommand, SQSClient,
} from "@aws-sdk/client-sqs";

const [endpoint, name] = process.argv.slice(2);
const client = new SQSClient({ endpoint, region: "us-east-1", credentials: { accessKeyId: "WORKER", secretAccessKey: "nJ4x0v2Yq8sT6wZb1LkR" } });

const missing = await client.send(new GetQueueUrlCommand({ QueueName: name })).catch((error) => error);
if (!(missing instanceof QueueDoesNotExist)) throw new Error(`the queue exists: ${missing}`);

const { QueueUrl } = await client.send(new CreateQueueCommand({ QueueName: name, Attributes: { VisibilityTimeout: "60" } }));
for (const first of [1, 11]) {
  const { Successful } = await client.send(new SendMessageBatchCommand({
    QueueUrl,
    Entries: Array.from({ length: 10 }, (_, i) => ({
      Id: `order-${first + i}`,
      MessageBody: String(first + i),
      MessageAttributes: {
        queue: { DataType: "String", StringValue: name },
        bytes: { DataType: "Binary", BinaryValue: Uint8Array.of(0, 255) },
      },
    })),
  }));
  if (Successful.length !== 10) throw new Error(`sent ${Successful.length} of 10 messages`);
}

for (;;) {
  const { Messages } = await client.send(new ReceiveMessageCommand({
    QueueUrl, MaxNumberOfMessages: 10, MessageAttributeNames: ["All"], MessageSystemAttributeNames: ["ApproximateReceiveCount"],
  }));
  if (!Messages) break;
  const done = [];
  for (const { Body, ReceiptHandle, Attributes, MessageAttributes } of Messages) {
    const delivery = Attributes.ApproximateReceiveCount;
    if (MessageAttributes.bytes.BinaryValue[1] !== 255) throw new Error("the bytes are different");
    if (Body === "7" && delivery === "1") {
      await client.send(new ChangeMessageVisibilityCommand({ QueueUrl, ReceiptHandle, VisibilityTimeout: 0 }));
      continue;
    }
    console.log(MessageAttributes.queue.StringValue, Body, delivery);
    done.push({ Id: Body, ReceiptHandle });
  }
  if (done.length) await client.send(new DeleteMessageBatchCommand({ QueueUrl, Entries: done }));
}
await client.send(new DeleteQueueCommand({ QueueUrl }));
