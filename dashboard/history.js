// The last hour of a queue, or of all queues.

import { get, now } from './api.js'
import { time } from './format.js'
import { live, rates } from './live.js'

const interval = 60_000 // milliseconds between two requests

// newHistory returns the history of a queue, or of all queues without an id. It calls
// update when it has changed.
export function newHistory(queueID, update) {
  const servers = new Map() // samples by server id: a load balancer may have several
  let ready = {} // ready messages of each minute by queue id, if this is the history of all queues
  let timer = null
  async function load() {
    try {
      const response = await get(`/overview/history?${queueID ? `queue_id=${encodeURIComponent(queueID)}` : 'ready=true'}`)
      servers.set(response.server_id, response.data)
      ready = longest(ready, response.ready ?? {})
      update()
    } catch {
      // The page shows the error of the next overview, which fails for the same reason.
    }
    if (timer !== undefined) timer = setTimeout(load, interval)
  }
  load()
  return {
    close() {
      clearTimeout(timer)
      timer = undefined
    },
    // readyOf returns the ready messages of a queue at each full minute, and then now. A value
    // is null where the queue was not counted.
    readyOf: (q) => [...(ready[q.id] ?? []), q.messages?.ready ?? null],
    // samples returns the full minutes, with the sums of the servers, and then the recent
    // samples, which this page has taken. Each has the time, the rates and the ready
    // messages. queue is the queue, or live.all, and undefined if the queue is unknown.
    samples(queue) {
      const recent = queue ? recentSamples(queue) : []
      const begins = recent[0]?.at ?? now()
      return [...minutes([...servers.values()]).filter((s) => s.at < begins), ...recent]
    },
  }
}

// longest returns the history with more minutes: all servers count the same messages, and
// one that started earlier knows more.
function longest(a, b) {
  const length = (all) => Math.max(0, ...Object.values(all).map((values) => values.length))
  return length(b) >= length(a) ? b : a
}

// minutes returns the rates of each minute, added up over the servers. All servers count
// the same messages.
function minutes(all) {
  const sums = new Map() // samples by time
  for (const samples of all) {
    samples.forEach((sample, i) => {
      const at = time(sample.at)
      const sum = sums.get(at) ?? { at, ready: null, ...Object.fromEntries(rates.map((name) => [name, null])) }
      if (sample.ready !== null) sum.ready = Math.max(sum.ready ?? 0, sample.ready)
      const before = samples[i - 1]
      if (before) for (const name of rates) sum[name] = (sum[name] ?? 0) + Math.max(0, sample[`${name}_total`] - before[`${name}_total`]) / ((at - time(before.at)) / 1000)
      sums.set(at, sum)
    })
  }
  return [...sums.values()].sort((a, b) => a.at - b.at)
}

// recentSamples returns the samples that this page has taken of a queue. A value is null
// where the history of the queue is shorter.
function recentSamples({ history }) {
  return live.times.map((at, i) => {
    const back = i - live.times.length
    return { at, ...Object.fromEntries(Object.entries(history).map(([name, values]) => [name, values.at(back) ?? null])) }
  })
}
