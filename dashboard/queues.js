// The page of all queues: what is in them, how fast, and which of them to look at.

import { token } from './api.js'
import { ratesChart, spark } from './chart.js'
import { inputs, note } from './dialogs.js'
import { count, duration, h, rate, replace, setText } from './dom.js'
import { live, mayChange } from './live.js'
import { askForQueue } from './settings.js'

// The columns: what they show of a queue, and what they are sorted by.
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

// Which queues to show: what feeds a queue are those whose dead queue it is.
const shownKinds = [
  ['all', 'All queues', () => true],
  ['waiting', 'With ready messages', (q) => q.messages?.ready > 0],
  ['idle', 'Ready messages, no receivers', (q) => q.messages?.ready > 0 && q.waiting_receivers === 0 && !q.delivered],
  ['dead', 'Dead queues', (_, feeds) => feeds.length > 0],
]

const portion = 100 // rows that are there at first, and that come when the last is seen

// view is kept while other pages are shown.
const view = { sort: 'id', descending: false, filter: '', kind: 'all' }

export function queuesPage() {
  const rows = new Map() // by queue id
  const visible = new Set() // ids of rows that can be seen
  let room = portion // rows that may be in the table
  const observer = new IntersectionObserver((entries) => {
    for (const e of entries) {
      if (e.target === more) {
        if (e.isIntersecting && !more.hidden) {
          room += portion
          arrange(true)
          observer.unobserve(more) // to be told again if it can still be seen
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

  const totals = totalsOf()
  const heads = columns.map((column) => {
    const button = h('button', { class: 'plain', onclick: () => sortBy(column.name) }, column.label)
    return { column, element: h('th', { scope: 'col', role: 'columnheader', class: column.chart ? 'number charted' : column.show ? 'number' : '' }, button) }
  })
  const body = h('tbody', { role: 'rowgroup' })
  const more = h('p', { class: 'nothing', hidden: true }, 'More…')
  observer.observe(more)
  const nothing = h('p', { class: 'nothing', hidden: true }, 'No queues match.')
  const table = h('table', { class: 'queues', role: 'table', 'aria-label': 'Queues' },
    h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, heads.map((head) => head.element))), body)
  const filter = inputs.text({ type: 'search', 'aria-label': 'Filter by name of queue, topic or dead queue', placeholder: 'Filter', value: view.filter })
  const kind = inputs.choice(shownKinds.map(([value, label]) => [value, label]), { 'aria-label': 'Queues to show' })
  const sort = inputs.choice(columns.map((c) => [c.name, `Sort by ${c.label.toLowerCase()}`]), { 'aria-label': 'Sort', class: 'small-only' })
  kind.value = view.kind
  sort.value = view.sort
  filter.addEventListener('input', () => {
    view.filter = filter.value
    room = portion
    arrange(true)
  })
  kind.addEventListener('change', () => {
    view.kind = kind.value
    room = portion
    arrange(true)
  })
  sort.addEventListener('change', () => sortBy(sort.value))
  const turnRound = h('button', { class: 'small-only', 'aria-label': 'Reverse order', onclick: () => sortBy(view.sort) }, '↑↓')
  const number = h('span', { class: 'soft' })
  const full = h('div', { hidden: true },
    totals.element,
    h('div', { class: 'tools' }, filter, kind, sort, turnRound, number, h('button', { class: 'primary admin', onclick: () => askForQueue().catch((e) => note(e.message, true)) }, 'New queue')),
    table, more, nothing)
  const welcome = h('div')
  const loading = h('p', { class: 'nothing' }, 'Loading…')

  function sortBy(name) {
    const column = columns.find((c) => c.name === name)
    view.descending = view.sort === name ? !view.descending : Boolean(column.show) // largest first
    view.sort = name
    sort.value = name
    room = portion
    arrange(true)
  }

  // arrange puts the rows in order. While somebody points at a row, or is in it by
  // keyboard, the rows stay where they are.
  function arrange(asked) {
    const held = !asked && (body.matches(':hover') || body.contains(document.activeElement))
    for (const head of heads) {
      if (head.column.name === view.sort) head.element.setAttribute('aria-sort', view.descending ? 'descending' : 'ascending')
      else head.element.removeAttribute('aria-sort')
    }
    const words = view.filter.toLowerCase().split(/\s+/).filter(Boolean)
    const wanted = shownKinds.find(([name]) => name === view.kind)[2]
    const { by } = columns.find((c) => c.name === view.sort)
    const sign = view.descending ? -1 : 1
    const order = live.queues
      .filter((q) => wanted(q, rows.get(q.id).feeds) && words.every((w) => [q.id, q.topic_id, q.dead_queue_id].some((name) => name?.toLowerCase().includes(w))))
      .map((q) => [by(q) ?? -1, q])
      .sort(([a, p], [b, q]) => (a < b ? -sign : a > b ? sign : p.id < q.id ? -1 : 1))
      .map(([, q]) => rows.get(q.id).element)
    const found = order.length
    order.length = Math.min(found, room)
    more.hidden = found <= room
    table.setAttribute('aria-rowcount', found + 1)
    if (held) {
      for (const element of [...body.children]) if (rows.get(element.dataset.id)?.element !== element) element.remove()
      body.append(...order.filter((element) => !element.isConnected))
    } else if (order.length !== body.children.length || order.some((element, i) => element !== body.children[i])) body.replaceChildren(...order)
    nothing.hidden = order.length > 0
    setText(number, found === live.queues.length ? `${found}` : `${found} of ${live.queues.length}`)
  }

  return {
    element: h('div', {}, h('h1', { class: 'unseen' }, 'Queues'), loading, welcome, full),
    close: () => observer.disconnect(),
    update() {
      loading.hidden = Boolean(live.server)
      if (!live.server) return
      const empty = live.queues.length === 0
      full.hidden = empty
      if (empty && !welcome.firstChild) welcome.append(greeting())
      if (!empty) welcome.replaceChildren()
      full.querySelector('.admin').hidden = !mayChange()
      const there = new Set(live.queues.map((q) => q.id))
      for (const [id, row] of rows) {
        if (there.has(id)) continue
        observer.unobserve(row.element)
        rows.delete(id)
        visible.delete(id)
      }
      const feeds = new Map() // by dead queue, the queues that it is for
      for (const q of live.queues) if (q.dead_queue_id) feeds.set(q.dead_queue_id, [...(feeds.get(q.dead_queue_id) ?? []), q.id])
      for (const q of live.queues) {
        let row = rows.get(q.id)
        if (!row) {
          row = newRow(q.id)
          rows.set(q.id, row)
          observer.observe(row.element)
        }
        row.queue = q
        row.feeds = feeds.get(q.id) ?? []
      }
      arrange(false)
      for (const id of visible) rows.get(id).update()
      totals.update()
    },
  }
}

// newRow returns the row of a queue, which shows the latest when it is updated.
function newRow(id) {
  const cells = columns.slice(1).map((column) => {
    const text = h('span')
    const line = column.chart && spark(column.name)
    return { column, text, line, element: h('td', { role: 'cell', 'data-label': column.label, class: column.chart ? 'number charted' : 'number' }, text, line?.element) }
  })
  const about = h('span', { class: 'about' })
  const row = {
    queue: null,
    feeds: [],
    element: h('tr', { role: 'row', 'data-id': id },
      h('th', { scope: 'row', role: 'rowheader' }, h('a', { href: `#/queues/${encodeURIComponent(id)}` }, id), about),
      cells.map((c) => c.element)),
    update() {
      const q = row.queue
      row.element.classList.toggle('dead', row.feeds.length > 0)
      replace(about, ...describe(q, row.feeds))
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

// describe says in small labels what a queue hangs on, and what hangs on it.
export function describe(q, feeds) {
  return [
    q.topic_id && h('span', { class: 'tag' }, `topic ${q.topic_id}`),
    feeds.length > 0 && h('span', { class: 'tag bad' }, `dead queue of ${feeds.slice(0, 3).join(', ')}${feeds.length > 3 ? ' …' : ''}`),
    q.message_filters && h('span', { class: 'tag' }, 'filtered'),
    q.ordered && h('span', { class: 'tag' }, 'ordered'),
    q.delivery_interval_ms > 0 && h('span', { class: 'tag' }, 'limited'),
  ].filter(Boolean)
}

// totalsOf returns the strip above the table.
function totalsOf() {
  const states = [['ready', 'Ready'], ['in_flight', 'In flight'], ['delayed', 'Delayed'], ['exhausted', 'Exhausted']]
  const numbers = states.map(([name, label]) => ({ name, value: h('b'), label }))
  const age = h('p', { class: 'soft' })
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

// greeting is what a server without queues shows: how to begin.
function greeting() {
  if (!mayChange()) return h('p', { class: 'panel' }, 'There are no queues that this token can access.')
  const here = location.origin
  const bearer = token.get() ? ` -H "Authorization: Bearer $TOKEN"` : ''
  const steps = [
    ['Create a topic', `curl${bearer} ${here}/topics -d '{"id": "orders"}'`],
    ['Create a queue that subscribes to the topic', `curl${bearer} ${here}/queues -d '{"id": "invoices", "topic_id": "orders", "ack_deadline_seconds": 30, "message_retention_seconds": 3600}'`],
    ['Publish a message', `curl${bearer} ${here}/topics/orders/messages -d '{"data": {"order": 1}}'`],
    ['Receive the message', `curl${bearer} '${here}/queues/invoices/messages?wait_seconds=20'`],
  ]
  return h('section', { class: 'panel' },
    h('h2', {}, 'There are no queues yet'),
    h('p', {}, token.get() ? 'Run these commands in a terminal, with TOKEN set to your token, or ' : 'Run these commands in a terminal, or ', h('button', { class: 'link', onclick: () => askForQueue().catch((e) => note(e.message, true)) }, 'create a queue here'), '.'),
    h('ol', { class: 'steps' }, steps.map(([what, command]) => h('li', {}, what, h('div', { class: 'command' }, h('pre', { tabindex: 0 }, command), copyButton(command))))))
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
