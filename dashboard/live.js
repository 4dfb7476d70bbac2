// What the server says of all queues, asked for again and again.

import { Away, get } from './api.js'

const interval = 2000 // milliseconds between an answer and the next question, at least
const samples = 60 // that a chart shows
const memory = 10_000 // milliseconds for which a server counts that does not answer any more

// live is the present state. Queues have, besides what GET /overview says, their
// rates, and a history of these and of what is ready, oldest first.
export const live = {
  queues: [],
  server: null, // that answered last; null: none has yet
  token: null,
  error: null, // why the last question failed
  askedAt: 0, // when the question began whose answer this is, by performance.now()
}

const rates = ['published', 'delivered', 'acked']
const charted = [...rates, 'ready']
const histories = new Map() // by queue id
const servers = new Map() // by their ids, what each said last: behind a balancer there may be several
const listeners = new Set()
let wake = null
let again = false // asked for while a question is under way, whose answer may be too old

// listen has f called after each answer and failure, and returns how to end that.
export function listen(f) {
  listeners.add(f)
  return () => listeners.delete(f)
}

// refresh asks at once.
export function refresh() {
  again = true
  wake?.()
}

// deadQueueOf returns the queues whose dead queue this is.
export const deadQueueOf = (id) => live.queues.filter((q) => q.dead_queue_id === id)

export const queueCalled = (id) => live.queues.find((q) => q.id === id)

// run asks for ever, but not while nobody looks.
export async function run() {
  for (;;) {
    again = false
    const began = performance.now()
    try {
      take(await ask())
      live.askedAt = began
      live.error = null
    } catch (error) {
      if (!(error instanceof Away) && error.status === undefined) console.error(error)
      live.error = error
    }
    for (const f of [...listeners]) f()
    if (!again) await rest(Math.max(interval, 4 * (performance.now() - began))) // a fifth of the time for what is slow
    while (document.hidden) await new Promise((resolve) => document.addEventListener('visibilitychange', resolve, { once: true }))
  }
}

// rest returns after so many milliseconds, or when a refresh is asked for.
function rest(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds)
    wake = () => {
      clearTimeout(timer)
      resolve()
    }
  })
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

// take works out rates and receivers, which each server knows of itself: a rate is
// by how much a total grew since the last answer of the same process. One that was
// started again counts from anew.
function take(answer) {
  const { id, uptime_seconds } = answer.server
  const before = servers.get(id)
  const passed = uptime_seconds - before?.at
  const seen = new Map() // by queue id
  for (const q of answer.data) {
    const was = passed > 0 ? before.seen.get(q.id) : null
    const grown = (name) => (was ? Math.max(0, q[`${name}_total`] - was.totals[name]) / passed : null) // a queue made again counts from zero
    seen.set(q.id, {
      totals: Object.fromEntries(rates.map((name) => [name, q[`${name}_total`]])),
      rates: Object.fromEntries(rates.map((name) => [name, grown(name)])),
      receivers: q.waiting_receivers,
    })
  }
  servers.set(id, { at: uptime_seconds, seen, heard: performance.now() })
  for (const [id, s] of servers) if (performance.now() - s.heard > memory) servers.delete(id)

  for (const q of answer.data) {
    const parts = [...servers.values()].map((s) => s.seen.get(q.id)).filter(Boolean)
    q.waiting_receivers = parts.reduce((sum, part) => sum + part.receivers, 0)
    for (const name of rates) {
      const known = parts.map((part) => part.rates[name]).filter((n) => n !== null)
      q[name] = known.length ? known.reduce((a, b) => a + b) : null
    }
    q.ready = q.messages?.ready ?? null
    q.history = histories.get(q.id) ?? Object.fromEntries(charted.map((name) => [name, []]))
    for (const name of charted) {
      if (q[name] === null) continue
      q.history[name].push(q[name])
      if (q.history[name].length > samples) q.history[name].shift()
    }
  }
  histories.clear()
  for (const q of answer.data) histories.set(q.id, q.history)
  Object.assign(live, { queues: answer.data, server: answer.server, token: answer.token })
}

// mayChange reports whether topics and queues may be made, changed and deleted here.
export const mayChange = () => !live.token || live.token.admin
