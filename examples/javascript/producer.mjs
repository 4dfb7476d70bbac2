// Publishes each line of its input, a JSON object: node producer.mjs QUEUE < FILE
import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";

const url = process.env.QUEUED_URL ?? "http://localhost:8000";
const token = process.env.QUEUED_TOKEN ?? "";

// publish publishes a message and returns its id. It tries for up to two minutes, which
// has to be less than the deduplication window of the queue (5 minutes).
async function publish(queue, data) {
  const key = randomUUID(); // the same in each attempt: the message is stored once
  for (let delay = 1; ; delay *= 2) {
    let status, failure;
    try {
      const response = await fetch(`${url}/queues/${queue}/messages`, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "idempotency-key": key },
        body: JSON.stringify({ data }),
        signal: AbortSignal.timeout(15_000),
      });
      const text = await response.text();
      if (response.ok) return JSON.parse(text).data[0].id;
      status = response.status;
      failure = `publish: ${status} ${text}`;
    } catch (error) { // no response, or not all of it
      failure = `publish: ${error.cause ?? error}`;
    }
    const final = status >= 400 && status < 500 && status !== 429; // no attempt can succeed
    if (final || delay > 16) throw new Error(failure);
    console.error(`${failure}; next attempt in ${delay} s`);
    await setTimeout(delay * 1000);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(await publish(process.argv[2], JSON.parse(line)));
}
