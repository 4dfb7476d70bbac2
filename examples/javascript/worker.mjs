// Processes the messages of a queue until SIGTERM or Ctrl-C: node worker.mjs QUEUE
import { setTimeout } from "node:timers/promises";

const url = process.env.QUEUED_URL ?? "http://localhost:8000";
const headers = { authorization: `Bearer ${process.env.QUEUED_TOKEN ?? ""}` };
const lease = Number(process.env.LEASE_SECONDS ?? 30); // the time after a crash until a message is delivered again
const wait = 5; // less than the time from SIGTERM to SIGKILL, which is 10 s in Docker

// Your work. It may take longer than the lease, and an exception is a failed delivery.
// The lease is extended only while it awaits: run long computations in a worker thread.
async function work(data) {
  if (!data.to) throw new Error("the message has no address");
  console.log(data.to);
  await setTimeout((data.seconds ?? 0) * 1000);
}

// call returns undefined if the request fails.
async function call(method, path, body) {
  try {
    const response = await fetch(url + path, { method, headers, body: JSON.stringify(body), signal: AbortSignal.timeout((wait + 10) * 1000) });
    if (response.ok) return await response.json();
    console.error(`${method} ${path}: ${response.status} ${await response.text()}`);
  } catch (error) { // no response, or not all of it
    console.error(`${method} ${path}: ${error.cause ?? error}`);
  }
}

let stopping = false;
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => { stopping = true; });
let done; // the ack or nack of the last message, which is sent with the next receive
while (done || !stopping) {
  const receive = { limit: stopping ? 0 : 1, wait_seconds: wait, ack_deadline_seconds: lease, ...done };
  const received = await call("POST", `/queues/${process.argv[2]}/messages/receive`, receive);
  if (!received) {
    await setTimeout(1000); // and repeat the ack or nack
    continue;
  }
  done = undefined;
  for (let { id, scheduled_at, data } of received.data) {
    let extending;
    const timer = setInterval(() => {
      extending = call("PUT", `/messages/${id}/extend?scheduled_at=${scheduled_at}`, { ack_deadline_seconds: lease })
        .then((extended) => { scheduled_at = extended?.scheduled_at ?? scheduled_at; }); // the new lease token
    }, lease * 1000 / 3);
    const failure = await work(data).then(() => null, String);
    clearInterval(timer);
    await extending;
    if (failure) console.error(`${id}: ${failure}`);
    // After the last delivery the message moves to the dead queue, with the text of the failure.
    done = failure ? { nack: [{ id, scheduled_at, error: failure }] } : { ack: [{ id, scheduled_at }] };
  }
}
