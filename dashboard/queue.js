// The page of one queue: its counts, messages, settings and groups, and the actions
// on them. And the page of one message.

import { call, get, maybeTruncated, now, page, parseExactly, path } from './api.js'
import { chart, ratesChart, spanChoice } from './chart.js'
import { attempt, confirm, dialog, inputs, notify, numberIn, suggested } from './dialogs.js'
import { count, deliveries, duration, exact, field, h, setCurrent, setText, syncRows, time, updateChildren } from './dom.js'
import { newHistory } from './history.js'
import { isAdmin, live, queueByID, refresh, sourcesOf } from './live.js'
import { publishForm } from './publish.js'
import { settingTags } from './queues.js'
import { settingsForm } from './settings.js'

const tabs = [['messages', 'Messages'], ['publish', 'Publish'], ['settings', 'Settings'], ['groups', 'Groups']]

// queuePage returns the page of a queue.
export function queuePage(id) {
  const tiles = [
    ['ready', 'Ready', (q) => count(q.messages?.ready)],
    ['in_flight', 'In flight', (q) => count(q.messages?.in_flight)],
    ['delayed', 'Delayed', (q) => count(q.messages?.delayed)],
    ['exhausted', 'Exhausted', (q) => count(q.messages?.exhausted)],
    ['oldest', 'Oldest', (q) => (q.oldest_message_age_seconds > 0 ? duration(q.oldest_message_age_seconds) : '–')],
    ['receivers', 'Waiting consumers', (q) => count(q.waiting_receivers)],
  ].map(([name, label, show]) => ({ show, value: h('b'), label, name }))
  const rates = ratesChart()
  const ready = chart('Messages', [{ name: 'ready', label: 'Ready', show: (n) => count(Math.round(n)) }])
  const draw = () => {
    const samples = past.samples(queueByID(id))
    for (const c of [rates, ready]) c.update(samples, Number(span.value), now())
  }
  const span = spanChoice(draw)
  const past = newHistory(id, draw)
  const tags = h('p', { class: 'tags' })
  const move = h('button', { onclick: () => attempt(() => redrive(id)) }, 'Move messages…')
  const pause = h('button', {
    onclick: () => attempt(async () => {
      const action = queueByID(id).paused ? 'resume' : 'pause'
      await call('PUT', path`/queues/${id}/` + action)
      notify(`Queue ${id} ${action}d.`)
      refresh()
    }),
  })
  const actions = h('div', { class: 'buttons' },
    pause,
    move,
    h('button', { onclick: () => attempt(() => purge(id)) }, 'Purge…'),
    h('button', { onclick: () => attempt(() => remove(id)) }, 'Delete…'))
  const links = tabs.map(([name, label]) => h('a', { href: `#/queues/${encodeURIComponent(id)}/${name}`, 'data-tab': name }, label))
  const tabContent = h('div', { class: 'tab-content' })
  const missing = h('p', { class: 'panel', hidden: true }, 'Queue not found, or your token has no permission for it. ', h('a', { href: '#/' }, 'All queues'))
  const content = h('div', {},
    h('section', { class: 'totals', 'aria-label': 'Current state' },
      h('div', { class: 'tiles' }, tiles.map((t) => h('p', { class: `tile ${t.name}` }, h('span', {}, t.label), t.value))),
      rates.element, ready.element),
    h('div', { class: 'tabs' }, h('nav', { 'aria-label': 'Queue sections' }, links), span),
    tabContent)
  let currentTab = null // {name, element, update(), close()}
  const opened = performance.now()

  return {
    id,
    element: h('div', {},
      h('div', { class: 'title' }, h('div', {}, h('p', { class: 'muted' }, h('a', { href: '#/' }, 'Queues'), ' /'), h('h1', {}, id), tags), actions),
      missing, content),
    showTab(name) {
      if (currentTab?.name === name) return
      currentTab?.close?.()
      const newTab = { messages: messagesTab, publish: publishTab, settings: settingsTab, groups: groupsTab }[name] ?? messagesTab
      currentTab = { ...newTab(id), name }
      for (const a of links) setCurrent(a, a.dataset.tab === name)
      tabContent.replaceChildren(currentTab.element)
    },
    update() {
      const q = queueByID(id)
      missing.hidden = Boolean(q) || live.requestedAt < opened // an older response may not have a new queue
      content.hidden = Boolean(live.server) && !q
      actions.hidden = !isAdmin() || !q
      if (!q) return
      setText(move, sourcesOf(id).length > 0 ? 'Redrive…' : 'Move messages…')
      move.disabled = q.messages?.ready === 0
      setText(pause, q.paused ? 'Resume' : 'Pause')
      updateChildren(tags, q.paused && h('span', { class: 'tag bad' }, 'paused: messages are not delivered'), ...settingTags({ ...q, topic_id: null }, []),
        q.topic_id && h('a', { class: 'tag', href: '#/topics' }, `topic ${q.topic_id}`),
        ...sourcesOf(id).map((other) => h('a', { class: 'tag bad', href: `#/queues/${encodeURIComponent(other.id)}` }, `dead queue of ${other.id}`)),
        q.dead_queue_id && h('a', { class: 'tag', href: `#/queues/${encodeURIComponent(q.dead_queue_id)}` }, `dead queue after ${deliveries(q.message_max_deliveries)}: ${q.dead_queue_id}`))
      for (const t of tiles) setText(t.value, t.show(q))
      draw()
      currentTab?.update?.()
    },
    close() {
      currentTab?.close?.()
      past.close()
    },
  }
}

// countMessages returns the current number of messages in each state.
const countMessages = async (id) => (await get(path`/queues/${id}/stats` + '?detail=true')).messages

const sum = (messages) => Object.values(messages).reduce((a, b) => a + b, 0)

// breakdown formats the number of messages in each state. It is empty if all are in one.
function breakdown(messages) {
  const parts = Object.entries(messages).filter(([, n]) => n > 0).map(([state, n]) => `${count(n)} ${state.replace('_', ' ')}`)
  return parts.length > 1 ? ` (${parts.join(', ')})` : ''
}

// purge asks before it deletes all messages of a queue.
async function purge(id) {
  const messages = await countMessages(id)
  confirm({
    title: `Purge queue ${id}?`,
    text: `${exact(sum(messages))}${breakdown(messages)} will be permanently deleted${queueByID(id)?.consumed_retention_seconds ? ', and so will the retained consumed messages' : ''}.`,
    action: `Delete ${exact(sum(messages))}`,
    async send() {
      await call('PUT', path`/queues/${id}/purge`)
      notify(`Queue ${id} purged.`)
      refresh()
    },
  })
}

// remove asks before it deletes a queue.
async function remove(id) {
  const messages = await countMessages(id)
  confirm({
    title: `Delete queue ${id}?`,
    text: `The queue and its ${exact(sum(messages))}${breakdown(messages)} will be permanently deleted.`,
    action: 'Delete queue',
    async send() {
      await call('DELETE', path`/queues/${id}`)
      notify(`Queue ${id} deleted.`)
      refresh()
      location.hash = '#/'
    },
  })
}

// redrive asks where to move the messages of a queue, and how many. It suggests the
// queue that has this one as its dead queue, if there is exactly one.
async function redrive(id) {
  const { ready } = await countMessages(id)
  const [source, ...others] = sourcesOf(id)
  confirm({
    title: sourcesOf(id).length > 0 ? `Redrive queue ${id}` : `Move messages of ${id}`,
    text: `${exact(ready)} can be moved to another queue, where delivery attempts start again at zero.`,
    action: `Move up to ${exact(ready)}`,
    danger: false,
    fields: {
      destination_queue_id: suggested('Destination queue', live.queues.map((q) => q.id).filter((other) => other !== id), 'Leave empty to send each message back to the queue that it came from.',
        { name: 'destination_queue_id', value: source && others.length === 0 ? source.id : null }),
      limit: field('Maximum number of messages', inputs.integer({ name: 'limit' }), 'Leave empty to move all.'),
    },
    async send(input) {
      const body = { destination_queue_id: input.destination_queue_id.value.trim() || null }
      if (input.limit.value.trim()) body.limit = numberIn(input.limit)
      notify(moved(await call('PUT', path`/queues/${id}/redrive`, body), `from ${id} ${body.destination_queue_id ? `to ${body.destination_queue_id}` : 'back to where they came from'}`))
      refresh()
    },
  })
}

// moved describes the result of a redrive.
function moved({ headers }, where) {
  const left = Number(headers.get('X-Messages-Left'))
  return `${exact(Number(headers.get('X-Messages-Moved')))} moved ${where}.${left > 0 ? ` ${exact(left)} stayed.` : ''}`
}

// poll calls f now, and then again and again with pauses, until close is called.
function poll(f) {
  let timer = null
  let closed = false
  async function again() {
    clearTimeout(timer)
    const began = Date.now()
    if (!document.hidden) await f()
    // Slow requests take at most a tenth of the time.
    if (!closed) timer = setTimeout(again, Math.max(2000, 10 * (Date.now() - began)))
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

// newPager returns buttons for the previous and the next page, with the offset of the
// current page. The address keeps the offset, so that a link shows the same page. It calls
// load to load another page, and itemCount for the number of items of the current page:
// pages may differ in size.
function newPager(load, itemCount) {
  const before = [] // offsets of the previous pages
  const goTo = (offset) => {
    pager.offset = offset
    history.replaceState(null, '', `${location.hash.split('?')[0]}${offset ? `?offset=${offset}` : ''}`)
    load()
  }
  const previous = h('button', { onclick: () => goTo(before.pop() ?? Math.max(0, pager.offset - pageSize)) }, 'Previous')
  const next = h('button', { onclick: () => { before.push(pager.offset); goTo(pager.offset + itemCount()) } }, 'Next')
  const range = h('span', { class: 'muted' })
  const pager = {
    offset: Number(new URLSearchParams(location.hash.split('?')[1]).get('offset')) || 0,
    element: h('div', { class: 'tools' }, previous, next, range),
    // update takes whether there are more pages, and a text that describes the current one.
    update(more, text = '') {
      previous.disabled = pager.offset === 0
      next.disabled = !more
      pager.element.hidden = previous.disabled && next.disabled && !text
      setText(range, text)
    },
  }
  return pager
}

const pageSize = 25

// messagesTab lists the messages, a page at a time.
function messagesTab(id) {
  const rows = new Map() // by message id
  const list = h('ul', { class: 'messages' })
  const placeholder = h('p', { class: 'placeholder' }, 'Loading…')
  const pager = newPager(() => polling.again(), () => list.children.length)
  const selection = newSelection(rows, () => polling.again())
  async function load() {
    let response
    const from = pager.offset
    try {
      response = await call('GET', path`/queues/${id}/messages/peek` + `?offset=${from}&limit=${pageSize}`)
    } catch (error) {
      if (!rows.size) setText(placeholder, error.message)
      return
    }
    if (from !== pager.offset) return
    const messages = response.value.data
    const exactly = parseExactly(response.text).data
    syncRows(list, rows, messages, (m) => m.id, (messageID) => messageRow(id, messageID, () => polling.again(), selection))
      .forEach((row, i) => row.update(messages[i], exactly[i].data))
    selection.update(sourcesOf(id).length > 0)
    setText(placeholder, from > 0 ? 'No messages on this page.' : 'No messages.')
    placeholder.hidden = messages.length > 0
    pager.update(messages.length === pageSize || maybeTruncated(response.text), messages.length ? `${from + 1} to ${from + messages.length}, oldest due first` : '')
  }
  const polling = poll(load)
  return {
    element: h('section', { 'aria-label': 'Messages' }, placeholder, selection.element, list, pager.element),
    close: polling.close,
  }
}

// newSelection returns the checked messages of a page, with the operations on them. rows
// are the rows of the page by message id. It calls reload after an operation.
function newSelection(rows, reload) {
  const ids = new Set()
  const all = h('input', {
    type: 'checkbox',
    'aria-label': 'Select all messages of this page',
    onchange() {
      const { checked } = all // each check updates it
      for (const row of rows.values()) row.check(checked)
    },
  })
  const retry = h('button', {
    onclick: () => attempt(async () => {
      notify(moved(await call('PUT', '/messages/redrive', { ids: [...ids] }), 'back to where they came from'))
      reload()
      refresh()
    }),
  })
  const remove = h('button', {
    onclick() {
      const some = [...ids]
      confirm({
        title: `Delete ${exact(some.length)}?`,
        text: `${exact(some.length)} will be permanently deleted.`,
        action: `Delete ${exact(some.length)}`,
        async send() {
          const { headers } = await call('DELETE', '/messages', { ids: some })
          notify(`${exact(Number(headers.get('X-Messages-Deleted')))} deleted.`)
          reload()
          refresh()
        },
      })
    },
  })
  const selection = {
    ids,
    element: h('div', { class: 'tools', hidden: true }, h('label', {}, all, ' All of this page'), retry, remove),
    // update shows the number of checked messages; isDead tells whether this is a dead queue.
    update(isDead = !retry.hidden) {
      for (const id of ids) if (!rows.has(id)) ids.delete(id)
      selection.element.hidden = rows.size === 0 || !isAdmin()
      all.checked = ids.size > 0 && ids.size === rows.size
      all.indeterminate = ids.size > 0 && !all.checked
      setText(retry, `Retry ${ids.size}`)
      setText(remove, `Delete ${ids.size}…`)
      retry.hidden = !isDead
      retry.disabled = remove.disabled = ids.size === 0
    },
  }
  return selection
}

// messagePage returns the page of one message, in whichever queue it is.
export function messagePage(id) {
  const rows = new Map() // of at most one message
  const list = h('ul', { class: 'messages' })
  const where = h('p', { class: 'muted' })
  const placeholder = h('p', { class: 'placeholder' }, 'Loading…')
  const polling = poll(async () => {
    let found = []
    let exactly = null
    try {
      const { value, text } = await call('GET', path`/messages/${id}`)
      found = [value]
      exactly = parseExactly(text).data
    } catch (error) {
      setText(placeholder, error.status === 404 ? 'No queue has a message with this id. It may have been acked or deleted, or its retention has ended.' : error.message)
    }
    syncRows(list, rows, found, (m) => m.id, (id) => messageRow(found[0].queue_id, id, () => polling.again()))
      .forEach((row) => row.update(found[0], exactly))
    updateChildren(where, ...(found.length ? ['in queue ', h('a', { href: `#/queues/${encodeURIComponent(found[0].queue_id)}` }, found[0].queue_id)] : []))
    placeholder.hidden = found.length > 0
  })
  return {
    element: h('div', {}, h('div', { class: 'title' }, h('div', {}, h('p', { class: 'muted' }, h('a', { href: '#/' }, 'Queues'), ' /'), h('h1', {}, 'Message'), where)), placeholder, list),
    close: polling.close,
  }
}

const longText = 20_000 // maximum characters of data to show at first

// messageRow returns the row of a message of a queue, with buttons to change it. It calls
// reload after a change. The row has a checkbox if it gets a selection.
function messageRow(queueID, id, reload, selection = null) {
  let message = null
  let data = null
  let showAll = false
  const state = h('span', { class: 'state' })
  const facts = h('p', { class: 'facts' })
  const tags = h('p', { class: 'tags' })
  const preview = h('span', { class: 'preview' })
  const pretty = h('pre', { tabindex: 0 })
  const more = h('button', { hidden: true, onclick: () => { showAll = true; showData() } }, 'Show all')
  const again = h('button', {
    onclick() {
      const target = message.source_queue_id ?? queueID
      dialog(`Publish again to ${target}`, publishForm('queues', target, {
        draft: { data: prettyText(data), attributes: message.attributes && JSON.stringify(message.attributes), group: message.group },
      }))
    },
  }, 'Publish again, edited…')
  const story = h('p', { class: 'story' })
  const details = h('details', { ontoggle: () => showData() }, h('summary', {}, h('code', {}, id), preview), pretty, h('div', { class: 'buttons' }, more, again))

  function showData() {
    if (!details.open) return
    const text = prettyText(data)
    more.hidden = showAll || text.length <= longText
    setText(pretty, more.hidden ? text : `${text.slice(0, longText)} …`)
  }

  // The lease token of a message in flight: the server changes the message only while
  // it is still in the lease that the page shows.
  const leaseToken = () => (message.state === 'in_flight' ? `?scheduled_at=${encodeURIComponent(message.scheduled_at)}` : '')
  const change = async (action, done) => {
    await call('PUT', path`/messages/${id}/` + action + leaseToken())
    notify(`Message ${id} ${done}.`)
    reload()
    refresh()
  }
  const nack = h('button', { 'aria-label': `Nack ${id}`, onclick: () => attempt(() => change('nack', 'nacked')) }, 'Nack')
  // In a dead queue there is no consumer whose ack this could be.
  const isDead = () => sourcesOf(queueID).length > 0
  const ack = h('button', {
    onclick: () => confirm({
      title: isDead() ? 'Delete this message?' : 'Ack this message?',
      text: isDead() ? `Message ${id} will be permanently deleted.` : `Message ${id} will be permanently deleted, as if a consumer had processed it.`,
      action: isDead() ? 'Delete message' : 'Ack message',
      send: () => change('ack', isDead() ? 'deleted' : 'acked'),
    }),
  })
  const retry = h('button', {
    'aria-label': `Retry ${id}`,
    hidden: true,
    onclick: () => attempt(async () => {
      await call('PUT', '/messages/redrive', { ids: [id] })
      notify(`Message ${id} moved back to ${message.source_queue_id}.`)
      reload()
      refresh()
    }),
  }, 'Retry')
  const check = h('input', { type: 'checkbox', 'aria-label': `Select ${id}`, hidden: true, onchange: () => row.check(check.checked) })
  const row = {
    // check selects the message, or no longer.
    check(checked) {
      check.checked = checked
      if (checked) selection.ids.add(id)
      else selection.ids.delete(id)
      selection.update()
    },
    element: h('li', { class: 'message' }, check, h('div', { class: 'body' }, h('p', { class: 'facts' }, state, facts), story, details, tags), h('div', { class: 'buttons' }, retry, nack, ack)),
    update(m, exactData) {
      message = m
      data = exactData
      const due = time(m.scheduled_at) - now()
      setText(state, m.state.replace('_', ' '))
      state.className = `state ${m.state}`
      setText(facts, [
        deliveries(m.delivery_attempts),
        `published ${when(m.created_at)}`,
        m.state === 'in_flight' && `lease ends in ${duration(due / 1000)}`,
        m.state === 'delayed' && `due in ${duration(due / 1000)}`,
        `expires in ${duration((time(m.expired_at) - now()) / 1000)}`,
      ].filter(Boolean).join(' · '))
      updateChildren(tags,
        m.group !== undefined && h('span', { class: 'tag' }, `group ${m.group}`),
        m.request_id !== undefined && h('span', { class: 'tag' }, `request ${m.request_id}`),
        m.traceparent !== undefined && h('span', { class: 'tag' }, `trace ${m.traceparent.slice(3, 35)}`),
        ...Object.entries(m.attributes ?? {}).map(([name, value]) => h('span', { class: 'tag' }, `${name}: ${value}`)))
      setText(preview, prettyText(data, 0).slice(0, 200))
      updateChildren(story, ...[
        m.source_queue_id && ['moved from ', h('a', { href: `#/queues/${encodeURIComponent(m.source_queue_id)}` }, m.source_queue_id), ` ${when(m.dead_at)}`],
        m.last_error && [m.source_queue_id ? ': ' : 'last error: ', h('b', {}, m.last_error)],
        m.last_error && m.last_error_at !== m.dead_at && ` ${when(m.last_error_at)}`,
      ].flat())
      story.hidden = !story.hasChildNodes()
      setText(ack, isDead() ? 'Delete…' : 'Ack…')
      ack.setAttribute('aria-label', `${isDead() ? 'Delete' : 'Ack'} ${id}`)
      nack.hidden = m.state !== 'in_flight'
      retry.hidden = !m.source_queue_id || m.state === 'in_flight' || !isAdmin()
      check.hidden = !selection || !isAdmin()
      showData()
    },
  }
  return row
}

// when formats a time of the API, in the time zone of the browser, and how long ago it was.
const when = (text) => `${local.format(time(text))} (${ago(text)})`

const local = new Intl.DateTimeFormat('sv', { dateStyle: 'short', timeStyle: 'medium' })

// ago formats the time that has passed since a time of the API.
const ago = (text) => `${duration((now() - time(text)) / 1000)} ago`

function prettyText(data, space = 2) {
  try {
    return JSON.stringify(data, null, space)
  } catch (error) {
    return `Cannot be displayed: ${error.message}` // the data is nested too deeply
  }
}

function publishTab(id) {
  const form = publishForm('queues', id, { inDialog: false })
  return { element: h('section', { class: 'panel', 'aria-label': 'Publish' }, h('p', { class: 'muted' }, 'Publish a test message directly to this queue, bypassing its topic and filters.'), form.element) }
}

function settingsTab(id) {
  const element = h('section', { class: 'panel', 'aria-label': 'Settings' }, 'Loading…')
  const fill = () => attempt(async () => {
    const q = await get(path`/queues/${id}`)
    element.replaceChildren(
      isAdmin() ? '' : h('p', { class: 'muted' }, 'Your token does not allow you to change these settings.'),
      await settingsForm(q, isAdmin(), () => fill().then(() => element.querySelector('[type=submit]')?.focus())),
      h('p', { class: 'muted' }, `Created ${ago(q.created_at)}, updated ${ago(q.updated_at)}.`))
  })
  fill()
  return { element }
}

// groupsTab lists the groups, a page at a time.
function groupsTab(id) {
  const rows = new Map()
  const body = h('tbody')
  const table = h('table', { hidden: true }, h('thead', {}, h('tr', {}, ['Group', 'State', 'Waiting', 'In flight', 'Interval', h('span', { class: 'visually-hidden' }, 'Actions')].map((t, i) => h('th', { scope: 'col', class: i > 1 && i < 5 ? 'number' : '' }, t)))), body)
  const placeholder = h('p', { class: 'placeholder' }, 'Loading…')
  const pager = newPager(() => polling.again(), () => body.children.length)
  const polling = poll(async () => {
    let groups, more
    const from = pager.offset
    try {
      ({ items: groups, more } = await page(path`/queues/${id}/groups`, from))
    } catch (error) {
      if (!rows.size) setText(placeholder, error.message)
      return
    }
    if (from !== pager.offset) return
    syncRows(body, rows, groups, (g) => g.group, (group) => groupRow(id, group, () => polling.again()))
      .forEach((row, i) => row.update(groups[i]))
    setText(placeholder, 'There are no groups with messages or an interval of their own.')
    placeholder.hidden = groups.length > 0
    table.hidden = groups.length === 0
    pager.update(more)
  })
  return { element: h('section', { 'aria-label': 'Groups' }, placeholder, table, pager.element), close: polling.close }
}

// groupRow returns the row of a group, with buttons to change its interval and to
// delete it. It calls reload after either.
function groupRow(queueID, id, reload) {
  const cells = Object.fromEntries(['state', 'length', 'in_flight', 'interval'].map((name) => [name, h('span')]))
  let group = null
  const setInterval = () => confirm({
    title: `Delivery interval of group ${id}`,
    text: 'At most one message of the group is delivered per interval. Leave the field empty to use the interval of the queue.',
    action: 'Save',
    danger: false,
    fields: { delivery_interval_ms: field('Interval in milliseconds', inputs.integer({ name: 'delivery_interval_ms', value: String(group.delivery_interval_ms ?? '') })) },
    async send(input) {
      await call('PUT', path`/queues/${queueID}/groups/${id}`, { delivery_interval_ms: numberIn(input.delivery_interval_ms) })
      notify(`Interval of group ${id} saved.`)
      reload()
    },
  })
  const remove = () => {
    const n = sum(group.messages)
    confirm({
      title: `Delete group ${id}?`,
      text: `${exact(n)}${breakdown(group.messages)} of the group, and its own interval, will be permanently deleted.`,
      action: `Delete ${exact(n)}`,
      async send() {
        await call('DELETE', path`/queues/${queueID}/groups/${id}`)
        notify(`Group ${id} deleted.`)
        reload()
        refresh()
      },
    })
  }
  const admin = isAdmin()
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
