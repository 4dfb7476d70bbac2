// What the server says of all queues, asked for again and again.

import { Away, get } from './api.js'

const interval = 2000 // milliseconds between an answer and the next question, at least
const samples = 60 // that a chart shows

// live is the present state. Queues have, besides what GET /overview says, their
// rates, and a history of these and of what is ready, oldest first.
export const live = {
  queues: [],
  server: null,
  token: null,
  error: null, // why the last question failed
  has: false, // an answer has come at least once
}

const charted = ['published', 'delivered', 'acked', 'ready']
const histories = new Map() // by queue id
const totals = { name: null, at: 0, queues: new Map() } // of the last answer
const listeners = new Set()
let wake = null

// listen has f called after each answer and failure, and returns how to end that.
export function listen(f) {
  listeners.add(f)
  return () => listeners.delete(f)
}

// refresh asks at once.
export function refresh() {
  wake?.()
}

// deadQueueOf returns the queues whose dead queue this is.
export const deadQueueOf = (id) => live.queues.filter((q) => q.dead_queue_id === id)

export const queueCalled = (id) => live.queues.find((q) => q.id === id)

// run asks for ever, but not while nobody looks.
export async function run() {
  for (;;) {
    const began = Date.now()
    try {
      take(await ask())
      live.error = null
    } catch (error) {
      if (!(error instanceof Away) && error.status === undefined) console.error(error)
      live.error = error
    }
    for (const f of [...listeners]) f()
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.max(interval, 4 * (Date.now() - began))) // a fifth of the time for what is slow
      wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
    while (document.hidden) await new Promise((resolve) => document.addEventListener('visibilitychange', resolve, { once: true }))
  }
}

async function ask() {
  const first = await get('/overview')
  for (let next = first.next_offset; next !== null; ) {
    const page = await get(`/overview?offset=${next}`)
    first.data.push(...page.data)
    next = page.next_offset
  }
  return first
}

// take works out the rates: by how much totals grew since the last answer of the
// same process. Another one, or one that was started again, counts from anew.
function take(answer) {
  const { id, uptime_seconds } = answer.server
  const same = totals.name === id
  const passed = uptime_seconds - totals.at
  const next = new Map()
  for (const q of answer.data) {
    const before = same && totals.queues.get(q.id)
    for (const name of ['published', 'delivered', 'acked']) {
      const grown = before ? q[`${name}_total`] - before[`${name}_total`] : null
      q[name] = grown === null || passed <= 0 ? null : Math.max(0, grown) / passed // a queue made again counts from zero
    }
    q.ready = q.messages?.ready ?? null
    next.set(q.id, q)
  }
  Object.assign(totals, { name: id, at: uptime_seconds, queues: next })
  for (const id of histories.keys()) if (!next.has(id)) histories.delete(id)
  for (const q of answer.data) {
    q.history = histories.get(q.id) ?? Object.fromEntries(charted.map((name) => [name, []]))
    histories.set(q.id, q.history)
    for (const name of charted) {
      if (q[name] === null) continue
      q.history[name].push(q[name])
      if (q.history[name].length > samples) q.history[name].shift()
    }
  }
  Object.assign(live, { queues: answer.data, server: answer.server, token: answer.token, has: true })
}

// mayChange reports whether topics and queues may be made, changed and deleted here.
export const mayChange = () => !live.token || live.token.admin
