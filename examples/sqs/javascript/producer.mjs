// Sends each line of its input, a JSON object: node producer.mjs QUEUE < FILE
// It needs the package @aws-sdk/client-sqs, which reads AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import { GetQueueUrlCommand, SendMessageCommand, SQSClient } from "@aws-sdk/client-sqs";

const sqs = new SQSClient({
  endpoint: process.env.AWS_ENDPOINT_URL_SQS ?? "http://localhost:8000",
  region: "us-east-1",
  maxAttempts: 14, // take less than the five minutes in which a FIFO queue recognises duplicates
  requestHandler: { connectionTimeout: 5_000, requestTimeout: 10_000 },
});
const { QueueUrl } = await sqs.send(new GetQueueUrlCommand({ QueueName: process.argv[2] }));

for await (const line of createInterface({ input: process.stdin })) {
  const fifo = QueueUrl.endsWith(".fifo") && {
    MessageGroupId: JSON.parse(line).to ?? "unknown", // the messages of an address keep their order
    MessageDeduplicationId: randomUUID(), // the same in each attempt. If you have one, use the number of the order
  };
  const { MessageId } = await sqs.send(new SendMessageCommand({ QueueUrl, MessageBody: line, ...fifo }));
  console.log(MessageId);
}
