// The page of all queues: a table of their counts and rates, with totals and filters.

import { now, token } from './api.js'
import { ratesChart, spanChoice, spark } from './chart.js'
import { inputs, notify } from './dialogs.js'
import { h, longName, setText, updateChildren } from './dom.js'
import { count, duration, rate } from './format.js'
import { newHistory } from './history.js'
import { isAdmin, live } from './live.js'
import { isMessageID } from './message.js'
import { hasNoConsumer, isFailing, problemOf } from './problems.js'
import { openQueueForm } from './settings.js'

// The columns: by returns the value of a row that a column shows and sorts by, show
// formats it. The class says at which widths the column is shown.
const columns = [
  { name: 'id', label: 'Queue', by: (row) => row.queue.id },
  { name: 'problem', label: 'Problem', by: (row) => row.problem?.rank ?? 0, descending: true },
  { name: 'ready', label: 'Ready', by: ({ queue }) => queue.messages?.ready, show: count },
  { name: 'in_flight', label: 'In flight', by: ({ queue }) => queue.messages?.in_flight, show: count },
  { name: 'delayed', label: 'Delayed', by: ({ queue }) => queue.messages?.delayed, show: count, class: 'fourth' },
  { name: 'oldest', label: 'Oldest', by: ({ queue }) => queue.oldest_message_age_seconds, show: (age) => (age > 0 ? duration(age, 1) : '–') },
  { name: 'receivers', label: 'Waiting consumers', short: 'Waiting', by: ({ queue }) => queue.waiting_receivers, show: count, class: 'second' },
  { name: 'published', label: 'Published/s', by: ({ queue }) => queue.published, show: rate, class: 'second' },
  { name: 'acked', label: 'Acked/s', by: ({ queue }) => queue.acked, show: rate },
  { name: 'nacked', label: 'Nacked/s', by: ({ queue }) => queue.nacked, show: rate },
  { name: 'dead_lettered', label: 'Dead/s: moved to the dead queue', short: 'Dead/s', by: ({ queue }) => queue.dead_lettered, show: rate, class: 'third' },
  { name: 'expired', label: 'Expired/s', by: ({ queue }) => queue.expired, show: rate, class: 'third' },
]
const failures = ['nacked', 'dead_lettered', 'expired']

// The kinds of queues to choose from.
const kinds = [
  ['all', 'All queues', () => true],
  ['problems', 'With a problem', (row) => row.problem !== null],
  ['waiting', 'With ready messages', (row) => row.queue.messages?.ready > 0],
  ['idle', 'Without consumer', (row) => hasNoConsumer(row.queue, row.sources.length > 0)],
  ['dead', 'Dead queues', (row) => row.sources.length > 0],
]

const rowBatch = 100 // rows to add whenever the user scrolls to the last one

// The part of the address after "?" has what is shown, so that a link shows the same.
// It lacks what is as at first: the queues with the worst problems at the top.
const first = { sort: 'problem', order: 'down', filter: '', show: 'all' }

// addressOf returns the address of the page with a view.
const addressOf = (view) => {
  const changed = Object.entries({ ...first, ...view }).filter(([name, value]) => value !== first[name])
  return `#/${changed.length ? `?${new URLSearchParams(changed)}` : ''}`
}

// queuesPage returns the page of all queues. parameters are those of the address.
export function queuesPage(parameters) {
  const view = { ...first, ...Object.fromEntries(parameters) }
  if (!columns.some((c) => c.name === view.sort)) view.sort = first.sort
  if (!kinds.some(([name]) => name === view.show)) view.show = first.show
  const rows = new Map() // by queue id
  const visible = new Set() // ids of the rows in the viewport; only those are drawn
  let rowLimit = rowBatch // maximum rows in the table
  const observer = new IntersectionObserver((entries) => {
    for (const e of entries) {
      if (e.target === more) {
        if (e.isIntersecting && !more.hidden) {
          rowLimit += rowBatch
          arrangeRows(true)
          observer.unobserve(more) // so that observe reports again if it is still visible
          observer.observe(more)
        }
        continue
      }
      const row = rows.get(e.target.dataset.id)
      if (!row) continue
      if (e.isIntersecting) {
        visible.add(e.target.dataset.id)
        row.update()
      } else visible.delete(e.target.dataset.id)
    }
  }, { rootMargin: '300px' })

  const totals = totalsSection()
  const heads = columns.map((column) => {
    const button = h('button', { class: 'plain', 'aria-label': column.short && column.label, title: column.short && column.label, onclick: () => sortBy(column.name) }, column.short ?? column.label)
    return { column, element: h('th', { scope: 'col', role: 'columnheader', class: `${column.name} ${column.show ? 'number' : ''} ${column.class ?? ''}` }, button) }
  })
  const body = h('tbody', { role: 'rowgroup' })
  const more = h('p', { class: 'placeholder', hidden: true }, 'More…')
  observer.observe(more)
  const noMatch = h('p', { class: 'placeholder', hidden: true }, 'No queues match. To search messages, open their queue.')
  const table = h('table', { class: 'queues', role: 'table', 'aria-label': 'Queues' },
    h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, heads.map((head) => head.element), h('th', { scope: 'col', role: 'columnheader', class: 'charted', title: 'Ready messages in the last hour; all on one logarithmic scale' }, '1 hour'))), body)
  const filter = inputs.text({ type: 'search', 'aria-label': 'Filter by name of queue, topic or dead queue, or find a message by its id', placeholder: 'Filter, or message id', value: view.filter })
  const kind = inputs.choice(kinds.map(([value, label]) => [value, label]), { 'aria-label': 'Queues to show' })
  const sort = inputs.choice(columns.map((c) => [c.name, `Sort by ${c.label.toLowerCase()}`]), { 'aria-label': 'Sort', class: 'small-only' })
  kind.value = view.show
  sort.value = view.sort
  filter.addEventListener('input', () => {
    if (isMessageID(filter.value)) location.hash = `#/messages/${filter.value.trim().toLowerCase()}`
    else change({ filter: filter.value })
  })
  kind.addEventListener('change', () => {
    change({ show: kind.value })
  })
  sort.addEventListener('change', () => sortBy(sort.value))
  const reverse = h('button', { class: 'small-only', 'aria-label': 'Reverse order', onclick: () => sortBy(view.sort) }, '↑↓')
  const number = h('span', { class: 'muted' })
  const content = h('div', { hidden: true },
    totals.element,
    h('div', { class: 'tools' }, filter, kind, sort, reverse, number, h('button', { class: 'primary admin', onclick: () => openQueueForm().catch((e) => notify(e.message, true)) }, 'New queue')),
    table, more, noMatch)
  const welcome = h('div')
  const loading = h('p', { class: 'placeholder' }, 'Loading…')

  function sortBy(name) {
    const { show, descending } = columns.find((c) => c.name === name)
    const down = view.sort === name ? view.order !== 'down' : Boolean(show || descending) // numbers start with the largest
    sort.value = name
    change({ sort: name, order: down ? 'down' : 'up' })
  }

  // change shows another view, and puts it into the address.
  function change(changed) {
    Object.assign(view, changed)
    history.replaceState(null, '', addressOf(view))
    rowLimit = rowBatch
    arrangeRows(true)
  }

  // arrangeRows filters and sorts the rows. Unless the user asked for it, rows keep
  // their places while the pointer or the keyboard focus is in the table.
  function arrangeRows(asked) {
    const keepPlaces = !asked && (body.matches(':hover') || body.contains(document.activeElement))
    for (const head of heads) {
      if (head.column.name === view.sort) head.element.setAttribute('aria-sort', view.order === 'down' ? 'descending' : 'ascending')
      else head.element.removeAttribute('aria-sort')
    }
    const words = view.filter.toLowerCase().split(/\s+/).filter(Boolean)
    const isKind = kinds.find(([name]) => name === view.show)[2]
    const { by } = columns.find((c) => c.name === view.sort)
    const sign = view.order === 'down' ? -1 : 1
    const order = live.queues
      .filter((q) => isKind(rows.get(q.id)) && words.every((w) => [q.id, q.topic_id, q.dead_queue_id].some((name) => name?.toLowerCase().includes(w))))
      .map((q) => [by(rows.get(q.id)) ?? -1, q])
      .sort(([a, p], [b, q]) => (a < b ? -sign : a > b ? sign : p.id < q.id ? -1 : 1))
      .map(([, q]) => rows.get(q.id).element)
    const found = order.length
    order.length = Math.min(found, rowLimit)
    more.hidden = found <= rowLimit
    table.setAttribute('aria-rowcount', found + 1)
    if (keepPlaces) {
      for (const element of [...body.children]) if (rows.get(element.dataset.id)?.element !== element) element.remove()
      body.append(...order.filter((element) => !element.isConnected))
    } else if (order.length !== body.children.length || order.some((element, i) => element !== body.children[i])) body.replaceChildren(...order)
    noMatch.hidden = order.length > 0
    setText(number, found === live.queues.length ? `${found}` : `${found} of ${live.queues.length}`)
  }

  return {
    element: h('div', {}, h('h1', { class: 'visually-hidden' }, 'Queues'), loading, welcome, content),
    close() {
      observer.disconnect()
      totals.close()
    },
    update() {
      loading.hidden = Boolean(live.server)
      if (!live.server) return
      const empty = live.queues.length === 0
      content.hidden = empty
      if (empty && !welcome.firstChild) welcome.append(gettingStarted())
      if (!empty) welcome.replaceChildren()
      content.querySelector('.admin').hidden = !isAdmin()
      const existing = new Set(live.queues.map((q) => q.id))
      for (const [id, row] of rows) {
        if (existing.has(id)) continue
        observer.unobserve(row.element)
        rows.delete(id)
        visible.delete(id)
      }
      const sources = new Map() // ids of the queues that have a dead queue, by the dead queue's id
      for (const q of live.queues) if (q.dead_queue_id) sources.set(q.dead_queue_id, [...(sources.get(q.dead_queue_id) ?? []), q.id])
      for (const q of live.queues) {
        let row = rows.get(q.id)
        if (!row) {
          row = newRow(q.id)
          rows.set(q.id, row)
          observer.observe(row.element)
        }
        row.queue = q
        row.sources = sources.get(q.id) ?? []
        row.problem = problemOf(q, row.sources.length > 0)
      }
      scale.max = 0
      for (const row of rows.values()) {
        row.ready = totals.readyOf(row.queue)
        scale.max = Math.max(scale.max, ...row.ready)
      }
      arrangeRows(false)
      for (const id of visible) rows.get(id).update()
      totals.update([...rows.values()])
    },
  }
}

// scale.max is the largest value of all sparklines.
const scale = { max: 0 }

// newRow returns the row of a queue. Its update method shows the current row.queue.
function newRow(id) {
  const cells = columns.slice(2).map((column) => {
    const text = h('span')
    return { column, text, element: h('td', { role: 'cell', 'data-label': column.label, class: `number ${column.class ?? ''}` }, text) }
  })
  const tags = h('span', { class: 'tags' })
  const problem = h('span')
  const line = spark('ready')
  const row = {
    queue: null,
    ready: [], // messages in the last hour
    sources: [],
    problem: null,
    element: h('tr', { role: 'row', 'data-id': id },
      h('th', { scope: 'row', role: 'rowheader' }, h('div', { class: 'name' }, h('a', { class: 'long', title: id, href: `#/queues/${encodeURIComponent(id)}` }, longName(id)), tags)),
      h('td', { role: 'cell', class: 'problem' }, problem),
      cells.map((c) => c.element),
      h('td', { role: 'cell', class: 'charted' }, line.element)),
    update() {
      const q = row.queue
      updateChildren(tags, ...settingTags(q, row.sources))
      tags.title = [...tags.children].map((tag) => tag.title || tag.textContent).join(', ')
      setText(problem, row.problem?.text ?? '')
      problem.className = row.problem ? `mark ${row.problem.kind}` : ''
      const failing = isFailing(q, row.sources.length > 0)
      for (const { column, text, element } of cells) {
        const value = column.by(row)
        setText(text, column.show(value))
        element.classList.toggle('zero', !value)
        element.classList.toggle('alarm', failing ? failures.includes(column.name) && value > 0 : column.name === 'expired' && value > 0)
      }
      line.update(row.ready, scale.max)
    },
  }
  return row
}

// settingTags returns the tags that show a queue's settings, and the ids of the queues
// that have it as their dead queue.
export function settingTags(q, sources) {
  return [
    q.topic_id && h('span', { class: 'tag' }, `topic ${q.topic_id}`),
    sources.length > 0 && h('span', { class: 'tag', title: sources.join(', ') }, `dead queue of ${sources.length === 1 ? sources[0] : `${sources.length}`}`),
    q.message_filters && h('span', { class: 'tag' }, 'filtered'),
    q.ordered && h('span', { class: 'tag' }, q.id.endsWith('.fifo') ? 'FIFO' : 'ordered'),
    q.delivery_interval_ms > 0 && h('span', { class: 'tag' }, 'rate limited'),
  ].filter(Boolean)
}

// totalsSection returns the totals above the table. Messages in dead queues are apart
// from those that wait for a consumer.
function totalsSection() {
  const tile = (name, label, view, title) => ({ name, label, view, title, value: h('b') })
  const tiles = [tile('ready', 'Ready'), tile('in_flight', 'In flight'), tile('oldest', 'Oldest'),
    tile('delayed', 'Delayed'), tile('dead', 'Dead', { show: 'dead' }, 'Messages in dead queues'), tile('idle', 'No consumer', { show: 'idle' }, 'Queues whose ready messages nothing receives')]
  const age = h('p', { class: 'muted' })
  const span = spanChoice(() => drawRates())
  const rates = ratesChart(span)
  const drawRates = () => rates.update(past.samples(live.all), Number(span.value), now())
  const past = newHistory(null, drawRates)
  return {
    close: past.close,
    readyOf: past.readyOf,
    element: h('section', { class: 'totals', 'aria-label': 'Totals of all queues' },
      h('div', { class: 'tiles' }, tiles.map((t) => h(t.view ? 'a' : 'p', { class: `tile ${t.name}`, title: t.title, href: t.view && addressOf(t.view) }, h('span', {}, t.label), t.value)), age),
      rates.element),
    update(rows) {
      const alive = rows.filter((row) => row.sources.length === 0)
      const sum = (some, name) => some.reduce((sum, { queue }) => sum + (queue.messages?.[name] ?? 0), 0)
      const dead = rows.filter((row) => row.sources.length > 0)
      const oldest = Math.max(0, ...alive.map((row) => row.queue.oldest_message_age_seconds))
      const idle = alive.filter((row) => hasNoConsumer(row.queue, false)).length
      const values = {
        ready: count(sum(alive, 'ready')),
        in_flight: count(sum(rows, 'in_flight')),
        delayed: count(sum(rows, 'delayed')),
        oldest: oldest > 0 ? duration(oldest, 1) : '–',
        dead: count(sum(dead, 'ready')),
        idle: count(idle),
      }
      for (const t of tiles) setText(t.value, values[t.name])
      tiles[4].value.className = sum(dead, 'ready') > 0 ? 'alarm' : ''
      tiles[5].value.className = idle > 0 ? 'alarm' : ''
      const ago = live.server.counted_seconds_ago
      setText(age, ago > 5 ? `counted ${duration(ago)} ago` : '')
      drawRates()
    },
  }
}

// gettingStarted returns the first steps, shown while there are no queues.
function gettingStarted() {
  if (!isAdmin()) return h('p', { class: 'panel' }, 'Your token has no permission for any queue.')
  const origin = location.origin
  const bearer = token.get() ? ` -H "Authorization: Bearer $TOKEN"` : ''
  const steps = [
    ['Create a topic', `curl${bearer} ${origin}/topics -d '{"id": "orders"}'`],
    ['Create a queue that subscribes to the topic', `curl${bearer} ${origin}/queues -d '{"id": "invoices", "topic_id": "orders", "ack_deadline_seconds": 30, "message_retention_seconds": 3600}'`],
    ['Publish a message', `curl${bearer} ${origin}/topics/orders/messages -d '{"data": {"order": 1}}'`],
    ['Receive the message', `curl${bearer} '${origin}/queues/invoices/messages?wait_seconds=20'`],
  ]
  return h('section', { class: 'panel' },
    h('h2', {}, 'There are no queues yet'),
    h('p', {}, token.get() ? 'Run these commands in a terminal, with TOKEN set to your token, or ' : 'Run these commands in a terminal, or ', h('button', { class: 'link', onclick: () => openQueueForm().catch((e) => notify(e.message, true)) }, 'create a queue here'), '.'),
    h('ol', { class: 'steps' }, steps.map(([title, command]) => h('li', {}, title, h('div', { class: 'command' }, h('pre', { tabindex: 0 }, command), copyButton(command))))))
}

function copyButton(command) {
  const button = h('button', {
    class: 'plain',
    async onclick() {
      await navigator.clipboard?.writeText(command)
      setText(button, navigator.clipboard ? 'Copied' : 'Select the text to copy it')
    },
  }, 'Copy')
  return button
}
