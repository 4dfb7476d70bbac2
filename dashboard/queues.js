// The page of all queues: a table of their counts and rates, with totals and filters.

import { token } from './api.js'
import { ratesChart, spark } from './chart.js'
import { inputs, notify } from './dialogs.js'
import { count, duration, h, rate, setText, updateChildren } from './dom.js'
import { isAdmin, live } from './live.js'
import { openQueueForm } from './settings.js'

// The columns: by returns the value that a column shows and sorts by, show formats it.
const columns = [
  { name: 'id', label: 'Queue', by: (q) => q.id },
  { name: 'ready', label: 'Ready', by: (q) => q.messages?.ready, show: count },
  { name: 'in_flight', label: 'In flight', by: (q) => q.messages?.in_flight, show: count },
  { name: 'delayed', label: 'Delayed', by: (q) => q.messages?.delayed, show: count },
  { name: 'exhausted', label: 'Exhausted', by: (q) => q.messages?.exhausted, show: count },
  { name: 'oldest', label: 'Oldest', by: (q) => q.oldest_message_age_seconds, show: (age) => (age > 0 ? duration(age) : '–') },
  { name: 'receivers', label: 'Receivers', by: (q) => q.waiting_receivers, show: count },
  { name: 'published', label: 'Published/s', by: (q) => q.published, show: rate, chart: true },
  { name: 'delivered', label: 'Delivered/s', by: (q) => q.delivered, show: rate, chart: true },
  { name: 'acked', label: 'Acked/s', by: (q) => q.acked, show: rate, chart: true },
]

// The kinds of queues to choose from. sources are the queues that have q as dead queue.
const kinds = [
  ['all', 'All queues', () => true],
  ['waiting', 'With ready messages', (q) => q.messages?.ready > 0],
  ['idle', 'Ready messages, no receivers', (q) => q.messages?.ready > 0 && q.waiting_receivers === 0 && !q.delivered],
  ['dead', 'Dead queues', (q, sources) => sources.length > 0],
]

const rowBatch = 100 // rows to add whenever the user scrolls to the last one

// view is kept while the user is on other pages.
const view = { sort: 'id', descending: false, filter: '', kind: 'all' }

// queuesPage returns the page of all queues.
export function queuesPage() {
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
    const button = h('button', { class: 'plain', onclick: () => sortBy(column.name) }, column.label)
    return { column, element: h('th', { scope: 'col', role: 'columnheader', class: column.chart ? 'number charted' : column.show ? 'number' : '' }, button) }
  })
  const body = h('tbody', { role: 'rowgroup' })
  const more = h('p', { class: 'placeholder', hidden: true }, 'More…')
  observer.observe(more)
  const noMatch = h('p', { class: 'placeholder', hidden: true }, 'No queues match.')
  const table = h('table', { class: 'queues', role: 'table', 'aria-label': 'Queues' },
    h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, heads.map((head) => head.element))), body)
  const filter = inputs.text({ type: 'search', 'aria-label': 'Filter by name of queue, topic or dead queue', placeholder: 'Filter', value: view.filter })
  const kind = inputs.choice(kinds.map(([value, label]) => [value, label]), { 'aria-label': 'Queues to show' })
  const sort = inputs.choice(columns.map((c) => [c.name, `Sort by ${c.label.toLowerCase()}`]), { 'aria-label': 'Sort', class: 'small-only' })
  kind.value = view.kind
  sort.value = view.sort
  filter.addEventListener('input', () => {
    view.filter = filter.value
    rowLimit = rowBatch
    arrangeRows(true)
  })
  kind.addEventListener('change', () => {
    view.kind = kind.value
    rowLimit = rowBatch
    arrangeRows(true)
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
    const column = columns.find((c) => c.name === name)
    view.descending = view.sort === name ? !view.descending : Boolean(column.show) // numbers start with the largest
    view.sort = name
    sort.value = name
    rowLimit = rowBatch
    arrangeRows(true)
  }

  // arrangeRows filters and sorts the rows. Unless the user asked for it, rows keep
  // their places while the pointer or the keyboard focus is in the table.
  function arrangeRows(asked) {
    const keepPlaces = !asked && (body.matches(':hover') || body.contains(document.activeElement))
    for (const head of heads) {
      if (head.column.name === view.sort) head.element.setAttribute('aria-sort', view.descending ? 'descending' : 'ascending')
      else head.element.removeAttribute('aria-sort')
    }
    const words = view.filter.toLowerCase().split(/\s+/).filter(Boolean)
    const isKind = kinds.find(([name]) => name === view.kind)[2]
    const { by } = columns.find((c) => c.name === view.sort)
    const sign = view.descending ? -1 : 1
    const order = live.queues
      .filter((q) => isKind(q, rows.get(q.id).sources) && words.every((w) => [q.id, q.topic_id, q.dead_queue_id].some((name) => name?.toLowerCase().includes(w))))
      .map((q) => [by(q) ?? -1, q])
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
    close: () => observer.disconnect(),
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
      }
      arrangeRows(false)
      for (const id of visible) rows.get(id).update()
      totals.update()
    },
  }
}

// newRow returns the row of a queue. Its update method shows the current row.queue.
function newRow(id) {
  const cells = columns.slice(1).map((column) => {
    const text = h('span')
    const line = column.chart && spark(column.name)
    return { column, text, line, element: h('td', { role: 'cell', 'data-label': column.label, class: column.chart ? 'number charted' : 'number' }, text, line?.element) }
  })
  const tags = h('span', { class: 'tags' })
  const row = {
    queue: null,
    sources: [],
    element: h('tr', { role: 'row', 'data-id': id },
      h('th', { scope: 'row', role: 'rowheader' }, h('a', { href: `#/queues/${encodeURIComponent(id)}` }, id), tags),
      cells.map((c) => c.element)),
    update() {
      const q = row.queue
      row.element.classList.toggle('dead', row.sources.length > 0)
      updateChildren(tags, ...settingTags(q, row.sources))
      for (const { column, text, line, element } of cells) {
        const value = column.by(q)
        setText(text, column.show(value))
        element.classList.toggle('zero', !value)
        element.classList.toggle('alarm', column.name === 'exhausted' && value > 0)
        line?.update(q.history[column.name])
      }
    },
  }
  return row
}

// settingTags returns the tags that show a queue's settings, and the ids of the queues
// that have it as their dead queue.
export function settingTags(q, sources) {
  return [
    q.topic_id && h('span', { class: 'tag' }, `topic ${q.topic_id}`),
    sources.length > 0 && h('span', { class: 'tag bad' }, `dead queue of ${sources.slice(0, 3).join(', ')}${sources.length > 3 ? ' …' : ''}`),
    q.message_filters && h('span', { class: 'tag' }, 'filtered'),
    q.ordered && h('span', { class: 'tag' }, 'ordered'),
    q.delivery_interval_ms > 0 && h('span', { class: 'tag' }, 'rate limited'),
  ].filter(Boolean)
}

// totalsSection returns the totals above the table.
function totalsSection() {
  const states = [['ready', 'Ready'], ['in_flight', 'In flight'], ['delayed', 'Delayed'], ['exhausted', 'Exhausted']]
  const numbers = states.map(([name, label]) => ({ name, value: h('b'), label }))
  const age = h('p', { class: 'muted' })
  const rates = ratesChart()
  const sums = { published: [], delivered: [], acked: [] }
  return {
    element: h('section', { class: 'totals', 'aria-label': 'Totals of all queues' },
      h('div', { class: 'tiles' }, numbers.map((n) => h('p', { class: `tile ${n.name}` }, h('span', {}, n.label), n.value)), age),
      rates.element),
    update() {
      for (const n of numbers) setText(n.value, count(live.queues.reduce((sum, q) => sum + (q.messages?.[n.name] ?? 0), 0)))
      const ago = live.server.counted_seconds_ago
      setText(age, ago > 5 ? `counted ${duration(ago)} ago` : '')
      const longest = Math.max(0, ...live.queues.map((q) => q.history.published.length))
      for (const name of Object.keys(sums)) {
        sums[name] = Array.from({ length: longest }, (_, i) => live.queues.reduce((sum, q) => sum + (q.history[name].at(i - longest) ?? 0), 0))
      }
      rates.update([sums.published, sums.delivered, sums.acked])
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
