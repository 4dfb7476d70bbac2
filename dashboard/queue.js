// The page of one queue: its numbers, messages, settings and groups, and what can be
// done with them.

import { call, get, mayBeCut, now, page, parseExactly, path } from './api.js'
import { chart, ratesChart } from './chart.js'
import { attempt, confirm, inputs, note, numberIn, suggested } from './dialogs.js'
import { count, deliveries, duration, exact, field, h, keep, replace, setCurrent, setText, time } from './dom.js'
import { deadQueueOf, live, mayChange, queueCalled, refresh } from './live.js'
import { publishForm } from './publish.js'
import { describe } from './queues.js'
import { settingsForm } from './settings.js'

const tabs = [['messages', 'Messages'], ['publish', 'Publish'], ['settings', 'Settings'], ['groups', 'Groups']]

export function queuePage(id) {
  const tiles = [
    ['ready', 'Ready', (q) => count(q.messages?.ready)],
    ['in_flight', 'In flight', (q) => count(q.messages?.in_flight)],
    ['delayed', 'Delayed', (q) => count(q.messages?.delayed)],
    ['exhausted', 'Exhausted', (q) => count(q.messages?.exhausted)],
    ['oldest', 'Oldest', (q) => (q.oldest_message_age_seconds > 0 ? duration(q.oldest_message_age_seconds) : '–')],
    ['receivers', 'Receivers', (q) => count(q.waiting_receivers)],
  ].map(([name, label, show]) => ({ show, value: h('b'), label, name }))
  const rates = ratesChart()
  const ready = chart('Ready messages', [{ kind: 'ready', label: 'Now', show: (n) => count(Math.round(n)) }])
  const about = h('p', { class: 'about' })
  const actions = h('div', { class: 'buttons' },
    h('button', { onclick: () => attempt(() => redrive(id)) }, 'Redrive…'),
    h('button', { onclick: () => attempt(() => purge(id)) }, 'Purge…'),
    h('button', { onclick: () => attempt(() => remove(id)) }, 'Delete…'))
  const links = tabs.map(([name, label]) => h('a', { href: `#/queues/${encodeURIComponent(id)}/${name}`, 'data-tab': name }, label))
  const part = h('div', { class: 'part' })
  const gone = h('p', { class: 'panel', hidden: true }, 'Queue not found, or the token has no access to it. ', h('a', { href: '#/' }, 'All queues'))
  const content = h('div', {},
    h('section', { class: 'totals', 'aria-label': 'Current state' },
      h('div', { class: 'tiles' }, tiles.map((t) => h('p', { class: `tile ${t.name}` }, h('span', {}, t.label), t.value))),
      rates.element, ready.element),
    h('nav', { class: 'tabs', 'aria-label': 'Queue sections' }, links),
    part)
  let shown = null // {name, element, update(), close()}
  const opened = performance.now()

  return {
    id,
    element: h('div', {},
      h('div', { class: 'title' }, h('div', {}, h('p', { class: 'soft' }, h('a', { href: '#/' }, 'Queues'), ' /'), h('h1', {}, id), about), actions),
      gone, content),
    tab(name) {
      if (shown?.name === name) return
      shown?.close?.()
      const make = { messages: messagesPart, publish: publishPart, settings: settingsPart, groups: groupsPart }[name] ?? messagesPart
      shown = { ...make(id), name }
      for (const a of links) setCurrent(a, a.dataset.tab === name)
      part.replaceChildren(shown.element)
    },
    update() {
      const q = queueCalled(id)
      gone.hidden = Boolean(q) || live.askedAt < opened // it may have been made since
      content.hidden = Boolean(live.server) && !q
      actions.hidden = !mayChange() || !q
      if (!q) return
      replace(about, ...describe({ ...q, topic_id: null }, []),
        q.topic_id && h('a', { class: 'tag', href: '#/topics' }, `topic ${q.topic_id}`),
        ...deadQueueOf(id).map((other) => h('a', { class: 'tag bad', href: `#/queues/${encodeURIComponent(other.id)}` }, `dead queue of ${other.id}`)),
        q.dead_queue_id && h('a', { class: 'tag', href: `#/queues/${encodeURIComponent(q.dead_queue_id)}` }, `dead queue after ${deliveries(q.message_max_deliveries)}: ${q.dead_queue_id}`))
      for (const t of tiles) setText(t.value, t.show(q))
      rates.update([q.history.published, q.history.delivered, q.history.acked])
      ready.update([q.history.ready])
      shown?.update?.()
    },
    close() {
      shown?.close?.()
    },
  }
}

// counted asks how many messages there are right now.
const counted = async (id) => (await get(path`/queues/${id}/stats` + '?detail=true')).messages

const sum = (messages) => Object.values(messages).reduce((a, b) => a + b, 0)

// listed says how many there are in each state.
function listed(messages) {
  const parts = Object.entries(messages).filter(([, n]) => n > 0).map(([state, n]) => `${count(n)} ${state.replace('_', ' ')}`)
  return parts.length > 1 ? ` (${parts.join(', ')})` : ''
}

async function purge(id) {
  const messages = await counted(id)
  confirm({
    title: `Purge queue ${id}?`,
    text: `${exact(sum(messages))}${listed(messages)} will be permanently deleted${queueCalled(id)?.consumed_retention_seconds ? ', and so will the retained consumed messages' : ''}.`,
    action: `Delete ${exact(sum(messages))}`,
    async send() {
      await call('PUT', path`/queues/${id}/purge`)
      note(`Queue ${id} purged.`)
      refresh()
    },
  })
}

async function remove(id) {
  const messages = await counted(id)
  confirm({
    title: `Delete queue ${id}?`,
    text: `The queue and its ${exact(sum(messages))}${listed(messages)} will be permanently deleted.`,
    action: 'Delete queue',
    async send() {
      await call('DELETE', path`/queues/${id}`)
      note(`Queue ${id} deleted.`)
      refresh()
      location.hash = '#/'
    },
  })
}

async function redrive(id) {
  const { ready } = await counted(id)
  const [home, ...others] = deadQueueOf(id)
  confirm({
    title: `Redrive queue ${id}`,
    text: `${exact(ready)} can be moved to another queue, where delivery attempts start again at zero.`,
    action: `Move up to ${exact(ready)}`,
    danger: false,
    fields: {
      destination_queue_id: suggested('Destination queue', live.queues.map((q) => q.id).filter((other) => other !== id), null,
        { name: 'destination_queue_id', value: home && others.length === 0 ? home.id : null }),
      limit: field('Maximum number of messages', inputs.whole({ name: 'limit' }), 'Leave empty to move all.'),
    },
    async send(input) {
      const body = { destination_queue_id: input.destination_queue_id.value.trim() || null }
      if (input.limit.value.trim()) body.limit = numberIn(input.limit)
      await call('PUT', path`/queues/${id}/redrive`, body)
      note(`Messages moved from ${id} to ${body.destination_queue_id}.`)
      refresh()
    },
  })
}

// repeating has f called at once, and again some time after it ended, until close
// is called.
function repeating(f) {
  let timer = null
  let closed = false
  async function again() {
    clearTimeout(timer)
    const began = Date.now()
    if (!document.hidden) await f()
    if (!closed) timer = setTimeout(again, Math.max(2000, 10 * (Date.now() - began))) // not all the time for what is slow
  }
  again()
  return {
    again,
    close() {
      closed = true
      clearTimeout(timer)
    },
  }
}

// turner returns buttons that turn pages: what turn is called after, and how many
// items the present page shows. Pages need not be of one size.
function turner(turn, shown) {
  const before = [] // where the pages before this one begin
  const to = (offset) => {
    turning.offset = offset
    turn()
  }
  const previous = h('button', { onclick: () => to(before.pop() ?? 0) }, 'Previous')
  const next = h('button', { onclick: () => { before.push(turning.offset); to(turning.offset + shown()) } }, 'Next')
  const where = h('span', { class: 'soft' })
  const turning = {
    offset: 0,
    element: h('div', { class: 'tools' }, previous, next, where),
    // show says whether there is another page, and which this one is.
    show(more, text = '') {
      previous.disabled = turning.offset === 0
      next.disabled = !more
      turning.element.hidden = previous.disabled && next.disabled && !text
      setText(where, text)
    },
  }
  return turning
}

const pageSize = 25

// messagesPart peeks at the messages, page by page.
function messagesPart(id) {
  const rows = new Map() // by message id
  const list = h('ul', { class: 'messages' })
  const nothing = h('p', { class: 'nothing' }, 'Loading…')
  const turning = turner(() => asking.again(), () => list.children.length)
  async function ask() {
    let answer
    const from = turning.offset
    try {
      answer = await call('GET', path`/queues/${id}/messages/peek` + `?offset=${from}&limit=${pageSize}`)
    } catch (error) {
      if (!rows.size) setText(nothing, error.message)
      return
    }
    if (from !== turning.offset) return
    const messages = answer.value.data
    const exactly = parseExactly(answer.text).data
    keep(list, rows, messages, (m) => m.id, (id) => messageRow(id, () => asking.again()))
      .forEach((row, i) => row.update(messages[i], exactly[i].data))
    setText(nothing, from > 0 ? 'No messages on this page.' : 'No messages.')
    nothing.hidden = messages.length > 0
    turning.show(messages.length === pageSize || answer.text.length >= mayBeCut, messages.length ? `${from + 1} to ${from + messages.length}, oldest due first` : '')
  }
  const asking = repeating(ask)
  return {
    element: h('section', { 'aria-label': 'Messages' }, nothing, list, turning.element),
    close: asking.close,
  }
}

const longText = 20_000 // characters of data that are shown at first

// messageRow shows one message, and acks and nacks it.
function messageRow(id, changed) {
  let message = null
  let data = null
  let whole = false
  const state = h('span', { class: 'state' })
  const facts = h('p', { class: 'facts' })
  const tags = h('p', { class: 'about' })
  const preview = h('span', { class: 'preview' })
  const pretty = h('pre', { tabindex: 0 })
  const more = h('button', { hidden: true, onclick: () => { whole = true; showData() } }, 'Show all')
  const details = h('details', { ontoggle: () => showData() }, h('summary', {}, h('code', {}, id), preview), pretty, more)

  function showData() {
    if (!details.open) return
    const text = prettyText(data)
    more.hidden = whole || text.length <= longText
    setText(pretty, more.hidden ? text : `${text.slice(0, longText)} …`)
  }

  // The guard: what was in flight is settled only while it is in that same lease.
  const guard = () => (message.state === 'in_flight' ? `?scheduled_at=${encodeURIComponent(message.scheduled_at)}` : '')
  const settle = async (how, done) => {
    await call('PUT', path`/messages/${id}/` + how + guard())
    note(`Message ${id} ${done}.`)
    changed()
    refresh()
  }
  const nack = h('button', { 'aria-label': `Nack ${id}`, onclick: () => attempt(() => settle('nack', 'nacked')) }, 'Nack')
  const ack = h('button', {
    'aria-label': `Ack ${id}`,
    onclick: () => confirm({
      title: 'Ack this message?',
      text: `Message ${id} will be permanently deleted, as if a consumer had processed it.`,
      action: 'Ack message',
      send: () => settle('ack', 'acked'),
    }),
  }, 'Ack…')
  return {
    element: h('li', { class: 'message' }, h('div', { class: 'what' }, h('p', { class: 'facts' }, state, facts), details, tags), h('div', { class: 'buttons' }, nack, ack)),
    update(m, exactData) {
      message = m
      data = exactData
      const due = time(m.scheduled_at) - now()
      setText(state, m.state.replace('_', ' '))
      state.className = `state ${m.state}`
      setText(facts, [
        deliveries(m.delivery_attempts),
        `published ${ago(m.created_at)}`,
        m.state === 'in_flight' && `lease ends in ${duration(due / 1000)}`,
        m.state === 'delayed' && `due in ${duration(due / 1000)}`,
        `expires in ${duration((time(m.expired_at) - now()) / 1000)}`,
      ].filter(Boolean).join(' · '))
      replace(tags,
        m.group !== undefined && h('span', { class: 'tag' }, `group ${m.group}`),
        m.request_id !== undefined && h('span', { class: 'tag' }, `request ${m.request_id}`),
        m.traceparent !== undefined && h('span', { class: 'tag' }, `trace ${m.traceparent.slice(3, 35)}`),
        ...Object.entries(m.attributes ?? {}).map(([name, value]) => h('span', { class: 'tag' }, `${name}: ${value}`)))
      setText(preview, prettyText(data, 0).slice(0, 200))
      nack.hidden = m.state !== 'in_flight'
      showData()
    },
  }
}

const ago = (text) => `${duration((now() - time(text)) / 1000)} ago`

function prettyText(data, space = 2) {
  try {
    return JSON.stringify(data, null, space)
  } catch (error) {
    return `Cannot be displayed: ${error.message}` // it is nested too deeply
  }
}

function publishPart(id) {
  const form = publishForm('queues', id)
  return { element: h('section', { class: 'panel', 'aria-label': 'Publish' }, h('p', { class: 'soft' }, 'Publish a test message directly to this queue, bypassing its topic and filters.'), form.element) }
}

function settingsPart(id) {
  const element = h('section', { class: 'panel', 'aria-label': 'Settings' }, 'Loading…')
  const fill = () => attempt(async () => {
    const q = await get(path`/queues/${id}`)
    element.replaceChildren(
      mayChange() ? '' : h('p', { class: 'soft' }, 'Your token does not allow you to change these settings.'),
      await settingsForm(q, mayChange(), () => fill().then(() => element.querySelector('[type=submit]')?.focus())),
      h('p', { class: 'soft' }, `Created ${ago(q.created_at)}, updated ${ago(q.updated_at)}.`))
  })
  fill()
  return { element }
}

// groupsPart lists the groups, page by page.
function groupsPart(id) {
  const rows = new Map()
  const body = h('tbody')
  const table = h('table', { hidden: true }, h('thead', {}, h('tr', {}, ['Group', 'State', 'Waiting', 'In flight', 'Interval', ''].map((t, i) => h('th', { scope: 'col', class: i > 1 && i < 5 ? 'number' : '' }, t)))), body)
  const nothing = h('p', { class: 'nothing' }, 'Loading…')
  const turning = turner(() => asking.again(), () => body.children.length)
  const asking = repeating(async () => {
    let groups, more
    const from = turning.offset
    try {
      ({ items: groups, more } = await page(path`/queues/${id}/groups`, from))
    } catch (error) {
      if (!rows.size) setText(nothing, error.message)
      return
    }
    if (from !== turning.offset) return
    keep(body, rows, groups, (g) => g.group, (group) => groupRow(id, group, () => asking.again()))
      .forEach((row, i) => row.update(groups[i]))
    setText(nothing, 'There are no groups with messages or an interval of their own.')
    nothing.hidden = groups.length > 0
    table.hidden = groups.length === 0
    turning.show(more)
  })
  return { element: h('section', { 'aria-label': 'Groups' }, nothing, table, turning.element), close: asking.close }
}

function groupRow(queueID, id, changed) {
  const cells = Object.fromEntries(['state', 'length', 'in_flight', 'interval'].map((name) => [name, h('span')]))
  let group = null
  const setInterval = () => confirm({
    title: `Delivery interval of group ${id}`,
    text: 'At most one message of the group is delivered per interval. Leave the field empty to use the interval of the queue.',
    action: 'Save',
    danger: false,
    fields: { delivery_interval_ms: field('Interval in milliseconds', inputs.whole({ name: 'delivery_interval_ms', value: String(group.delivery_interval_ms ?? '') })) },
    async send(input) {
      await call('PUT', path`/queues/${queueID}/groups/${id}`, { delivery_interval_ms: numberIn(input.delivery_interval_ms) })
      note(`Interval of group ${id} saved.`)
      changed()
    },
  })
  const remove = () => {
    const n = sum(group.messages)
    confirm({
      title: `Delete group ${id}?`,
      text: `${exact(n)}${listed(group.messages)} of the group will be permanently deleted, and so will its own interval.`,
      action: `Delete ${exact(n)}`,
      async send() {
        await call('DELETE', path`/queues/${queueID}/groups/${id}`)
        note(`Group ${id} deleted.`)
        changed()
        refresh()
      },
    })
  }
  const admin = mayChange()
  return {
    element: h('tr', {}, h('th', { scope: 'row' }, id), h('td', {}, cells.state),
      ['length', 'in_flight', 'interval'].map((name) => h('td', { class: 'number' }, cells[name])),
      h('td', {}, admin && h('div', { class: 'buttons' }, h('button', { 'aria-label': `Interval of ${id}`, onclick: setInterval }, 'Interval…'), h('button', { 'aria-label': `Delete ${id}`, onclick: remove }, 'Delete…')))),
    update(g) {
      group = g
      setText(cells.state, g.state === 'limited' ? `limited for ${duration((time(g.limited_until) - now()) / 1000)}` : g.state.replace('_', ' '))
      cells.state.className = `state ${g.state}`
      setText(cells.length, count(g.length))
      setText(cells.in_flight, count(g.messages.in_flight))
      setText(cells.interval, !g.delivery_interval_ms ? '–' : g.delivery_interval_ms < 1000 ? `${g.delivery_interval_ms} ms` : duration(g.delivery_interval_ms / 1000))
    },
  }
}
