// Processes the messages of a queue until SIGTERM: node worker.mjs QUEUE
import { setInterval, setTimeout } from "node:timers/promises";

const url = process.env.QUEUED_URL ?? "http://localhost:8000";
const token = process.env.QUEUED_TOKEN ?? "";
const lease = Number(process.env.LEASE_SECONDS ?? 30); // the time after a crash until a message is delivered again
const wait = 5; // less than the time from SIGTERM to SIGKILL, which is 10 s in Docker

let stopping = false;
process.on("SIGTERM", () => { stopping = true; });

// Your work. It may take longer than the lease, and an exception is a failed delivery.
// The lease is extended only while it awaits: run long computations in a worker thread.
async function handle(data) {
  if (!data.to) throw new Error("the message has no address");
  console.log(data.to);
  await setTimeout((data.seconds ?? 0) * 1000);
}

async function call(method, path, body, attempts = 1) {
  for (let attempt = 1; ; attempt++) {
    let status, failure;
    try {
      const response = await fetch(url + path, {
        method,
        headers: { authorization: `Bearer ${token}` },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout((wait + 10) * 1000),
      });
      const text = await response.text();
      if (response.ok) return text && JSON.parse(text);
      status = response.status;
      failure = `${status} ${text}`;
    } catch (error) { // no response, or not all of it
      failure = error.cause ?? error;
    }
    if (attempt === attempts || (status < 500 && status !== 429)) throw new Error(`${method} ${path}: ${failure}`);
    await setTimeout(attempt * 1000);
  }
}

const path = (message, action) => `/messages/${message.id}/${action}?scheduled_at=${message.scheduled_at}`;

async function extend(message, signal) {
  try {
    for await (const _ of setInterval(lease * 1000 / 3, null, { signal })) {
      await call("PUT", path(message, "extend"), { ack_deadline_seconds: lease }).then(
        (extended) => { message.scheduled_at = extended.scheduled_at; }, // the lease token changes with each extension
        (error) => console.error(error.message));
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

while (!stopping) {
  let received;
  try {
    received = await call("POST", `/queues/${process.argv[2]}/messages/receive`, { limit: 1, wait_seconds: wait, ack_deadline_seconds: lease });
  } catch (error) {
    console.error(error.message);
    await setTimeout(1000);
    continue;
  }
  for (const message of received.data) {
    const done = new AbortController();
    const extending = extend(message, done.signal);
    let action = "ack", body;
    try {
      await handle(message.data);
    } catch (error) { // after the last delivery the message moves to the dead queue, with this text
      action = "nack";
      body = { error: String(error) };
    }
    done.abort();
    await extending;
    // A 409 says that the lease has ended, and another worker may have the message.
    await call("PUT", path(message, action), body, 5).catch((error) => console.error(error.message));
  }
}
