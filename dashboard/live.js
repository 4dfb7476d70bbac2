// The state of all queues, which the dashboard polls from GET /overview.

import { get, NetworkError, now } from './api.js'

const interval = 2000 // minimum milliseconds between a response and the next request
const firstInterval = 500 // the same after the first response, because rates take two
const samples = 60 // length of a chart's history
const serverTimeout = 10_000 // milliseconds after its last response for which a server still counts

export const rates = ['published', 'delivered', 'redelivered', 'acked', 'nacked', 'dead_lettered', 'expired']
const charted = [...rates, 'ready']
const newHistory = () => Object.fromEntries(charted.map((name) => [name, []]))

// live is the current state. Besides the fields of GET /overview, each queue has its
// rates, and a history of its rates and ready messages, oldest first. Its recent numbers are
// the sums of the servers.
export const live = {
  queues: [],
  server: null, // the server that responded last; null before the first response
  token: null,
  error: null, // the error of the last request, null if it succeeded
  all: { history: newHistory() }, // the sums of all queues
  times: [], // of the samples in the histories, by the server's clock in milliseconds
  requestedAt: 0, // start of the last successful request, by performance.now()
}

const byID = new Map() // live.queues by id
const sources = new Map() // lists of live.queues by the id of their dead queue
const histories = new Map() // by queue id
const servers = new Map() // last response of each server by server id: a load balancer may have several
const listeners = new Set()
let wake = null // ends the pause between two requests
let refreshRequested = false // since the last request began, whose response may therefore be outdated

// listen registers a function to call after each response and each failure. It
// returns a function that removes the registration.
export function listen(f) {
  listeners.add(f)
  return () => listeners.delete(f)
}

// refresh requests the state now, or as soon as a running request has ended.
export function refresh() {
  refreshRequested = true
  wake?.()
}

// sourcesOf returns the queues whose dead queue has this id.
export const sourcesOf = (id) => sources.get(id) ?? []

// queueByID returns a queue, undefined if there is none.
export const queueByID = (id) => byID.get(id)

// run polls the server forever, except while the page is hidden.
export async function run() {
  for (;;) {
    refreshRequested = false
    const isFirst = !live.server
    const began = performance.now()
    try {
      merge(await fetchOverview())
      live.requestedAt = began
      live.error = null
    } catch (error) {
      if (!(error instanceof NetworkError) && error.status === undefined) console.error(error)
      live.error = error
    }
    for (const f of [...listeners]) f()
    // Slow requests take at most a fifth of the time.
    if (!refreshRequested) await pause(Math.max(isFirst ? firstInterval : interval, 4 * (performance.now() - began)))
    while (document.hidden) await new Promise((resolve) => document.addEventListener('visibilitychange', resolve, { once: true }))
  }
}

// pause returns after a number of milliseconds, or when a refresh is requested.
function pause(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds)
    wake = () => {
      clearTimeout(timer)
      resolve()
    }
  })
}

async function fetchOverview() {
  const first = await get('/overview')
  for (let next = first.next_offset; next !== null; ) {
    const page = await get(`/overview?offset=${next}`)
    first.data.push(...page.data)
    next = page.next_offset
  }
  return first
}

// merge updates the state from an overview. Totals and receivers are those of the
// server that responded, so it computes rates per server, from two responses of the
// same process, and adds up the servers.
function merge(overview) {
  const { id, uptime_seconds } = overview.server
  const before = servers.get(id)
  const elapsed = uptime_seconds - before?.uptime
  const queues = new Map() // by queue id
  for (const q of overview.data) {
    const last = elapsed > 0 ? before.queues.get(q.id) : null
    // The totals of a queue that was deleted and created again restart at zero.
    const rateOf = (name) => (last ? Math.max(0, q[`${name}_total`] - last.totals[name]) / elapsed : null)
    queues.set(q.id, {
      totals: Object.fromEntries(rates.map((name) => [name, q[`${name}_total`]])),
      rates: Object.fromEntries(rates.map((name) => [name, rateOf(name)])),
      receivers: q.waiting_receivers,
      recent: { seconds: overview.server.recent_seconds, ...q.recent },
    })
  }
  servers.set(id, { id, version: overview.server.version, uptime: uptime_seconds, queues, respondedAt: performance.now() })
  for (const [id, s] of servers) if (performance.now() - s.respondedAt > serverTimeout) servers.delete(id)

  for (const q of overview.data) {
    const parts = [...servers.values()].map((s) => s.queues.get(q.id)).filter(Boolean)
    q.waiting_receivers = parts.reduce((sum, part) => sum + part.receivers, 0)
    for (const name of rates) {
      const known = parts.map((part) => part.rates[name]).filter((n) => n !== null)
      q[name] = known.length ? known.reduce((a, b) => a + b) : null
    }
    q.recent = { seconds: Math.max(...parts.map((part) => part.recent.seconds)) }
    for (const name of rates) q.recent[name] = parts.reduce((sum, part) => sum + (part.recent[name] ?? 0), 0)
    q.ready = q.messages?.ready ?? null
    q.history = histories.get(q.id) ?? newHistory()
    for (const name of charted) remember(q.history[name], q[name])
  }
  for (const name of charted) {
    const known = overview.data.map((q) => q[name]).filter((n) => n !== null)
    remember(live.all.history[name], known.length ? known.reduce((a, b) => a + b) : null)
  }
  remember(live.times, now())
  for (const m of [byID, sources, histories]) m.clear()
  for (const q of overview.data) {
    byID.set(q.id, q)
    histories.set(q.id, q.history)
    if (!sources.has(q.dead_queue_id)) sources.set(q.dead_queue_id, [])
    sources.get(q.dead_queue_id).push(q)
  }
  Object.assign(live, { queues: overview.data, server: overview.server, token: overview.token })
}

// remember adds a sample to a history, except null, and drops the oldest if there are too
// many.
function remember(history, sample) {
  if (sample === null) return
  history.push(sample)
  if (history.length > samples) history.shift()
}

// serversSeen returns the servers that have responded recently.
export const serversSeen = () => [...servers.values()]

// isAdmin reports whether the user may create, change and delete topics and queues.
export const isAdmin = () => !live.token || live.token.admin
