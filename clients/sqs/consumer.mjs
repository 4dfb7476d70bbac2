// Sends twenty orders, and processes them with sqs-consumer: consumer.mjs URL NAME
//
// The seventh fails the first time, and is received again.
import { CreateQueueCommand, DeleteQueueCommand, SendMessageCommand, SQSClient } from "@aws-sdk/client-sqs";
import { Consumer } from "sqs-consumer";

const [endpoint, name] = process.argv.slice(2);
const sqs = new SQSClient({ endpoint, region: "us-east-1", credentials: { accessKeyId: "WORKER", secretAccessKey: "nJ4x0v2Yq8sT6wZb1LkR" } });
const { QueueUrl } = await sqs.send(new CreateQueueCommand({ QueueName: name }));

const extended = new Promise((resolve) => { // once a heartbeat has extended a visibility timeout
  sqs.middlewareStack.add((next, { commandName }) => async (request) => {
    const response = await next(request);
    if (commandName === "ChangeMessageVisibilityCommand" && request.input.VisibilityTimeout > 0) resolve();
    return response;
  }, { step: "initialize" });
});
let processed = 0;
const consumer = Consumer.create({
  sqs,
  queueUrl: QueueUrl,
  batchSize: 10,
  waitTimeSeconds: 20,
  visibilityTimeout: 30,
  heartbeatInterval: 1,
  terminateVisibilityTimeout: true,
  pollingCompleteWaitTimeMs: 10000, // when it stops
  attributeNames: ["ApproximateReceiveCount"],
  messageAttributeNames: ["customer"],
  handleMessage: async ({ Body, Attributes, MessageAttributes }) => {
    const delivery = Attributes.ApproximateReceiveCount;
    if (Body === "7" && delivery === "1") throw new Error("the order failed");
    if (Body === "3") await extended; // this order takes longer
    console.log(MessageAttributes.customer.StringValue, Body, delivery);
    if (++processed === 20) consumer.stop();
  },
});
const stopped = new Promise((resolve) => consumer.on("stopped", resolve));
let failures = 0;
consumer.on("processing_error", () => failures++);
consumer.on("error", console.error); // also of a heartbeat that overlaps the delete of its message
consumer.start();

for (let order = 1; order <= 20; order++) {
  await sqs.send(new SendMessageCommand({
    QueueUrl, MessageBody: String(order), MessageAttributes: { customer: { DataType: "String", StringValue: name } },
  }));
}
await stopped;
if (failures !== 1) throw new Error(`${failures} orders failed`);
await sqs.send(new DeleteQueueCommand({ QueueUrl }));
