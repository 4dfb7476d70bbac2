// Processes the messages of a queue until SIGTERM or Ctrl-C: node worker.mjs QUEUE
// It needs the package @aws-sdk/client-sqs, which reads AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
import { setTimeout } from "node:timers/promises";
import {
  ChangeMessageVisibilityCommand, DeleteMessageCommand, GetQueueUrlCommand, ReceiveMessageCommand, SQSClient,
} from "@aws-sdk/client-sqs";

const lease = Number(process.env.LEASE_SECONDS ?? 30); // the time after a crash until a message is delivered again
const wait = 5; // less than the time from SIGTERM to SIGKILL, which is 10 s in Docker

// Your work. It may take longer than the lease, and an exception is a failed delivery.
// The lease is extended only while it awaits: run long computations in a worker thread.
async function work(body) {
  const data = JSON.parse(body);
  if (!data.to) throw new Error("the message has no address");
  console.log(data.to);
  await setTimeout((data.seconds ?? 0) * 1000);
}

let stopping = false;
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => { stopping = true; });
const sqs = new SQSClient({
  endpoint: process.env.AWS_ENDPOINT_URL_SQS ?? "http://localhost:8000",
  region: "us-east-1",
  maxAttempts: 5,
  requestHandler: { connectionTimeout: 5_000, requestTimeout: (wait + 10) * 1000 },
});
const { QueueUrl } = await sqs.send(new GetQueueUrlCommand({ QueueName: process.argv[2] }));

// attempt returns undefined if all attempts of the SDK fail. The message is then delivered
// again when its lease ends.
const attempt = (Command, parameters) =>
  sqs.send(new Command({ QueueUrl, ...parameters })).catch((error) => console.error(error.message));

while (!stopping) {
  const received = await attempt(ReceiveMessageCommand, {
    MaxNumberOfMessages: 1, WaitTimeSeconds: wait, VisibilityTimeout: lease, MessageSystemAttributeNames: ["ApproximateReceiveCount"],
  });
  if (!received) await setTimeout(1000);
  for (const { Body, ReceiptHandle, Attributes } of received?.Messages ?? []) {
    let extending;
    const timer = setInterval(() => { extending = attempt(ChangeMessageVisibilityCommand, { ReceiptHandle, VisibilityTimeout: lease }); }, lease * 1000 / 3);
    const failure = await work(Body).then(() => null, (error) => error);
    clearInterval(timer);
    await extending; // so that it does not come after what follows
    if (!failure) {
      await attempt(DeleteMessageCommand, { ReceiptHandle });
      continue;
    }
    // The next delivery comes later each time. After the last one the message moves to the dead-letter queue.
    console.error(failure);
    const delay = Math.min(2 ** Attributes.ApproximateReceiveCount, 900);
    await attempt(ChangeMessageVisibilityCommand, { ReceiptHandle, VisibilityTimeout: delay });
  }
}
