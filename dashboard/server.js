// The page of the server that responds: its database, its delays and its connections, as
// GET /metrics has them.

import { now, text } from './api.js'
import { h, setText, syncRows } from './dom.js'
import { count, duration } from './format.js'
import { live, serversSeen } from './live.js'

const interval = 5000 // milliseconds between two requests
const recent = 60_000 // milliseconds over which delays are calculated, at most

// serverPage returns the page of the server.
export function serverPage() {
  const scrapes = new Map() // the recent scrapes of each server, oldest first, by its start
  const tiles = [
    ['Version', () => live.server?.version ?? '–'],
    ['Uptime', () => (live.server ? duration(live.server.uptime_seconds, 1) : '–')],
    ['PostgreSQL', (m) => (single(m, 'queued_database_up') === 1 ? live.server?.database?.version.split(' ')[0] ?? '–' : 'unavailable')],
    ['Database latency', () => latency(live.server?.database?.latency_seconds ?? null)],
    ['99 % of statements', (m, before) => below(histogram(m, before, 'queued_statement_duration_seconds'))],
    ['99 % of deliveries', (m, before) => below(histogram(m, before, 'queued_delivery_delay_seconds'))],
    ['Last cleanup', (m) => `${duration(now() / 1000 - single(m, 'queued_cleanup_last_success_timestamp_seconds'))} ago`],
    ['Connections', (m) => count(single(m, 'queued_connections'))],
    ['Evicted connections', (m) => count(single(m, 'queued_connections_evicted_total') ?? 0)],
    ['Buffered', (m) => `${(single(m, 'queued_buffered_bytes') / (1 << 20)).toFixed(1)} MiB`],
    ['Memory', (m) => `${(single(m, 'process_resident_memory_bytes') / (1 << 20)).toFixed(0)} MiB`],
  ].map(([label, show]) => ({ label, show, value: h('b', {}, '–') }))
  const placeholder = h('p', { class: 'placeholder' }, 'Loading…')
  const delays = newDelays()
  const servers = h('tbody')
  const serverRows = new Map()
  const place = h('p', { class: 'muted' })
  const content = h('div', { hidden: true },
    h('div', { class: 'tiles wide' }, tiles.map((t) => h('p', { class: 'tile' }, h('span', {}, t.label), t.value))),
    place,
    h('h2', {}, 'Servers that this page has seen'),
    h('table', { tabindex: 0, class: 'dense' }, h('thead', {}, h('tr', {}, ['Id', 'Version', 'Uptime', 'Last response'].map((t) => h('th', { scope: 'col' }, t)))), servers),
    delays.element)
  let timer = null

  async function load() {
    try {
      if (!document.hidden) show(parse(await text('/metrics')))
    } catch (error) {
      if (content.hidden) setText(placeholder, error.status === 403 ? 'Your token has no permission for the metrics of the server.' : error.message)
    }
    if (timer !== undefined) timer = setTimeout(load, interval)
  }

  function show(metrics) {
    const start = single(metrics, 'process_start_time_seconds')
    const kept = [...(scrapes.get(start) ?? []), { at: Date.now(), metrics }].filter((s) => s.at > Date.now() - recent)
    scrapes.set(start, kept)
    const before = kept.length > 1 ? kept[0] : null
    for (const t of tiles) setText(t.value, t.show(metrics, before?.metrics))
    delays.update(metrics, before?.metrics, before ? (Date.now() - before.at) / 1000 : now() / 1000 - start)
    content.hidden = false
    placeholder.hidden = true
  }

  load()
  return {
    element: h('div', {}, h('div', { class: 'title' }, h('h1', {}, 'Server')), placeholder, content),
    update() {
      const database = live.server?.database
      setText(place, database ? `${database.private ? 'Its own PostgreSQL in' : 'Database:'} ${database.location}` : '')
      const seen = serversSeen()
      syncRows(servers, serverRows, seen, (s) => s.id, serverRow).forEach((row, i) => row.update(seen[i]))
    },
    close() {
      clearTimeout(timer)
      timer = undefined
    },
  }
}

// serverRow returns the row of a server.
function serverRow(id) {
  const cells = [h('td'), h('td'), h('td')]
  return {
    element: h('tr', {}, h('th', { scope: 'row' }, h('code', {}, id)), cells),
    update(s) {
      [s.version, duration(s.uptime), `${duration((performance.now() - s.respondedAt) / 1000)} ago`].forEach((text, i) => setText(cells[i], text))
    },
  }
}

const shownStatements = 12 // those on which the database spends most time

// newDelays returns a table of the delivery delay and of the durations of statements, those
// on which the database spends most time first.
function newDelays() {
  let limit = shownStatements
  const more = h('button', { hidden: true, onclick: () => { limit = Infinity; more.hidden = true; draw() } })
  let draw = () => {}
  const body = h('tbody')
  const rows = new Map()
  const span = h('span', { class: 'muted' })
  return {
    element: h('section', { 'aria-label': 'Delays' }, h('h2', {}, 'Delays ', span),
      h('table', { tabindex: 0, class: 'dense' }, h('thead', {}, h('tr', {}, ['Delay', 'Per second', 'Half below', '99 % below', 'All below', 'Total per second'].map((t, i) => h('th', { scope: 'col', class: i ? 'number' : '' }, t)))), body), h('div', { class: 'tools' }, more)),
    // update shows the differences of two scrapes, or the totals without an earlier one.
    update(metrics, before, seconds) {
      setText(span, before ? `in the last ${duration(seconds)}` : 'since the server started')
      const statements = [...new Set((metrics.get('queued_statement_duration_seconds_count') ?? []).map((s) => s.labels.statement))]
        .map((statement) => ({ name: `Database: ${statement.replaceAll('_', ' ')}`, ...histogram(metrics, before, 'queued_statement_duration_seconds', { statement }) }))
        .filter((d) => d.count > 0)
        .sort((a, b) => b.sum - a.sum)
      draw = () => {
        const all = [{ name: 'From due to delivered', ...histogram(metrics, before, 'queued_delivery_delay_seconds') }, ...statements.slice(0, limit)]
        syncRows(body, rows, all, (d) => d.name, delayRow).forEach((row, i) => row.update(all[i], seconds))
      }
      draw()
      more.hidden = statements.length <= limit
      setText(more, `Show all ${statements.length} statements`)
    },
  }
}

function delayRow(name) {
  const cells = ['', '', '', '', ''].map(() => h('td', { class: 'number' }))
  return {
    element: h('tr', {}, h('th', { scope: 'row' }, name), cells),
    update(d, seconds) {
      const texts = [(d.count / seconds).toFixed(1), ...[0.5, 0.99, 1].map((part) => latency(quantile(d.buckets, part))), latency(d.sum / seconds)]
      texts.forEach((text, i) => setText(cells[i], text))
    },
  }
}

// below formats a limit below which 99 % of the observations of a histogram are.
const below = ({ buckets }) => (buckets.at(-1)?.count ? `< ${latency(quantile(buckets, 0.99))}` : '–')

// latency formats a number of seconds that may be far below one.
function latency(seconds) {
  if (seconds === null) return '–'
  if (seconds === Infinity) return 'more'
  const short = (n) => Number(n.toPrecision(2))
  return seconds < 1 ? `${short(1000 * seconds)} ms` : `${short(seconds)} s`
}

// parse returns the samples of a scrape by name, each with its labels and its value. It
// skips those of single queues, which may be thousands.
function parse(text) {
  const metrics = new Map()
  for (const line of text.split('\n')) {
    if (line.includes('queue="')) continue
    const m = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line)
    if (!m) continue
    const labels = Object.fromEntries([...(m[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]))
    if (!metrics.has(m[1])) metrics.set(m[1], [])
    metrics.get(m[1]).push({ labels, value: m[3] === '+Inf' ? Infinity : Number(m[3]) })
  }
  return metrics
}

// single returns the value of a metric without labels, undefined if there is none.
const single = (metrics, name) => metrics.get(name)?.[0].value

// histogram returns the number of observations, their sum, and the buckets of a histogram,
// smallest first, without those of an earlier scrape. It adds up the histograms that have
// the labels.
function histogram(metrics, before, name, labels = {}) {
  const buckets = new Map() // counts by upper limit
  const totals = { count: 0, sum: 0 }
  for (const [from, sign] of [[metrics, 1], [before, -1]]) {
    const matching = (suffix) => (from?.get(name + suffix) ?? []).filter((s) => Object.entries(labels).every(([label, value]) => s.labels[label] === value))
    for (const s of matching('_bucket')) {
      const upTo = Number(s.labels.le.replace('+Inf', 'Infinity'))
      buckets.set(upTo, (buckets.get(upTo) ?? 0) + sign * s.value)
    }
    for (const part of ['count', 'sum']) for (const s of matching(`_${part}`)) totals[part] += sign * s.value
  }
  return { ...totals, buckets: [...buckets].map(([upTo, count]) => ({ upTo, count })).sort((a, b) => a.upTo - b.upTo) }
}

// quantile returns the upper limit of the bucket that the quantile is in, null without
// observations. The counts of buckets include those of all smaller ones.
function quantile(buckets, part) {
  const total = buckets.at(-1)?.count ?? 0
  return total === 0 ? null : buckets.find((b) => b.count >= part * total).upTo
}
