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
    let failure, retryAfter = delay;
    try {
      const response = await fetch(`${url}/queues/${queue}/messages`, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "idempotency-key": key },
        body: JSON.stringify({ data }),
        signal: AbortSignal.timeout(15_000),
      });
      const text = await response.text();
      if (response.ok) return JSON.parse(text).data[0].id;
      failure = new Error(`publish: ${response.status} ${text}`);
      if (response.status < 500 && response.status !== 429) delay = Infinity; // no attempt can succeed
      retryAfter = Number(response.headers.get("retry-after") ?? delay);
    } catch (error) { // no response, or not all of it
      failure = new Error(`publish: ${error.cause ?? error}`);
    }
    if (delay > 16) throw failure;
    console.error(`${failure.message}; next attempt in ${retryAfter} s`);
    await setTimeout(retryAfter * 1000);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(await publish(process.argv[2], JSON.parse(line)));
}
