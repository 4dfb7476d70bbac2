// One message: its row in a list, and its page.

import { call, now, parseExactly, path } from './api.js'
import { attempt, confirm, dialog, notify } from './dialogs.js'
import { h, setText, syncRows, updateChildren } from './dom.js'
import { deliveries, duration, time, when } from './format.js'
import { poll } from './lists.js'
import { isAdmin, live, refresh, sourcesOf } from './live.js'
import { publishForm } from './publish.js'

// isMessageID reports whether a text is the id of a message.
export const isMessageID = (text) => /^\s*[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\s*$/i.test(text)

const queueLink = (id) => h('a', { href: `#/queues/${encodeURIComponent(id)}` }, id)

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
    updateChildren(where, ...(found.length ? ['in queue ', queueLink(found[0].queue_id)] : []))
    placeholder.hidden = found.length > 0
  })
  return {
    element: h('div', {}, h('div', { class: 'title' }, h('div', {}, h('h1', {}, h('span', { class: 'parent' }, h('a', { href: '#/' }, 'Queues'), ' / '), 'Message'), where)), placeholder, list),
    update: () => rows.forEach((row) => row.name()),
    close: polling.close,
  }
}

const longText = 20_000 // maximum characters of data to show at first
const longError = 160 // maximum characters of an error in a row; the details have all

// messageRow returns the row of a message of a queue, with buttons to change it. It calls
// reload after a change. In a list it gets a selection and has a checkbox; otherwise its
// details are open.
export function messageRow(queueID, id, reload, selection = null) {
  let message = null
  let data = null
  let showAll = false
  const state = h('span', { class: 'state' })
  const story = h('span', { class: 'story' })
  const tags = h('span', { class: 'tags' })
  const preview = h('span', { class: 'preview', dir: 'auto' })
  const facts = h('dl')
  const pretty = h('pre', { tabindex: 0, dir: 'auto' })
  const more = h('button', { hidden: true, onclick: () => { showAll = true; showData() } }, 'Show all')
  const again = h('button', {
    onclick() {
      const target = message.source_queue_id ?? queueID
      dialog(`Publish again to ${target}`, publishForm('queues', target, {
        draft: { data: prettyText(data), attributes: message.attributes && JSON.stringify(message.attributes), group: message.group, sqs: message.sqs },
      }))
    },
  }, 'Publish again, edited…')
  const details = h('details', { open: !selection, ontoggle: () => showData() },
    h('summary', {}, h('code', {}, id), preview), facts, pretty, h('div', { class: 'buttons' }, more, again))

  function showData() {
    if (!details.open) return
    const text = textOf(data) ?? prettyText(data)
    more.hidden = showAll || text.length <= longText
    setText(pretty, more.hidden ? text : `${text.slice(0, longText)} …`)
    updateChildren(facts, ...factsOf(message, data).flatMap(([name, value]) => [h('dt', {}, name), h('dd', { dir: 'auto' }, value)]))
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
    element: h('li', { class: 'message' }, check, h('div', { class: 'body' }, h('p', { class: 'facts' }, state, story, tags), details), h('div', { class: 'buttons' }, retry, nack, ack)),
    // name names the buttons. Until the first overview, it is not known whether this is a dead
    // queue.
    name() {
      setText(ack, isDead() ? 'Delete…' : 'Ack…')
      ack.setAttribute('aria-label', `${isDead() ? 'Delete' : 'Ack'} ${id}`)
      ack.disabled = !live.server
    },
    update(m, exactData) {
      message = m
      data = exactData
      setText(state, m.state.replace('_', ' '))
      state.className = `state ${m.state}`
      updateChildren(story, ...storyOf(m))
      updateChildren(tags, ...tagsOf(m, queueID))
      setText(preview, (textOf(data) ?? prettyText(data, 0)).slice(0, 300))
      row.name()
      nack.hidden = m.state !== 'in_flight'
      retry.hidden = !m.source_queue_id || m.state === 'in_flight' || !isAdmin()
      check.hidden = !selection || !isAdmin()
      showData()
    },
  }
  return row
}

// untilDue says when a message becomes due, null if it is.
function untilDue(m) {
  const left = duration((time(m.scheduled_at) - now()) / 1000)
  return { in_flight: `lease ends in ${left}`, delayed: `due in ${left}` }[m.state] ?? null
}

const longBinary = 80 // maximum characters of a binary attribute to show

// beginning returns a text without its end if it is long.
const beginning = (text) => (text.length > longBinary ? `${text.slice(0, longBinary)} …` : text)

// ends returns a text without its middle if it is long. The end of an error says the most if
// it ends in the last lines of a program's output.
function ends(text) {
  const first = Math.floor(longError / 3)
  return text.length > longError ? `${text.slice(0, first)} … ${text.slice(first - longError)}` : text
}

// storyOf returns what has happened to a message: text and elements. That of a dead message
// is how it died.
function storyOf(m) {
  const error = m.last_error && h('b', { dir: 'auto' }, ends(m.last_error))
  if (m.source_queue_id) {
    const attempts = m.source_delivery_attempts
    return ['from ', queueLink(m.source_queue_id), attempts ? ` after ${deliveries(attempts)}` : '', `, ${when(m.dead_at)}`, error ? ': ' : '', error]
  }
  return [[deliveries(m.delivery_attempts), `published ${when(m.created_at)}`, untilDue(m)].filter(Boolean).join(' · '), error ? ` · last error ${when(m.last_error_at)}: ` : '', error]
}

// tagsOf returns links for the group and the attributes of a message, which lead to the
// messages that share them, and the binary attributes of SQS's API in base64.
function tagsOf(m, queueID) {
  const types = m.sqs?.types ?? {}
  const attribute = (name, value) => `${name}: ${value}${types[name] ? ` (${types[name]})` : ''}`
  const tag = (name, value, text) => h('a', { class: 'tag', dir: 'auto', href: `#/queues/${encodeURIComponent(queueID)}/messages?${new URLSearchParams([[name, value]])}` }, text)
  return [
    m.group !== undefined && tag('group', m.group, `group ${m.group}`),
    ...Object.entries(m.attributes ?? {}).map(([name, value]) => tag('attribute', `${name}=${value}`, attribute(name, value))),
    ...Object.entries(m.sqs?.binary ?? {}).map(([name, value]) => h('span', { class: 'tag', dir: 'auto' }, attribute(name, beginning(value)))),
  ]
}

// factsOf returns the names and values of what the row has no space for.
function factsOf(m, data) {
  return [
    textOf(data) !== null && ['Content type', data.content_type],
    ['Published', when(m.created_at)],
    m.source_queue_id && ['Moved here', when(m.dead_at)],
    ['Deliveries', m.source_queue_id ? `${m.source_delivery_attempts ?? 'unknown'} in ${m.source_queue_id}, ${m.delivery_attempts} here` : String(m.delivery_attempts)],
    untilDue(m) && ['Due', when(m.scheduled_at)],
    ['Expires', when(m.expired_at)],
    m.last_error && ['Last error', `${m.last_error} · ${when(m.last_error_at)}`],
    m.sqs?.deduplication_id && ['Deduplication id', m.sqs.deduplication_id],
    m.sqs?.trace_header && ['X-Ray trace', m.sqs.trace_header],
    m.request_id !== undefined && ['Request', m.request_id],
    m.traceparent !== undefined && ['Trace', m.traceparent.slice(3, 35)],
  ].filter(Boolean)
}

// textOf returns the body in data, null if there is none. A body that is no JSON object is
// stored in an object with its content type by the APIs of Amazon SQS and micro-queue.
function textOf(data) {
  const names = Object.keys(data ?? {}).join(' ')
  return names === 'content_type body' && typeof data.content_type === 'string' && typeof data.body === 'string' ? data.body : null
}

// prettyText returns data as JSON, indented by a number of spaces.
function prettyText(data, space = 2) {
  try {
    return JSON.stringify(data, null, space)
  } catch (error) {
    return `Cannot be displayed: ${error.message}` // the data is nested too deeply
  }
}
