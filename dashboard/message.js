// One message: its row in a list, and its page.

import { call, now, parseExactly, path } from './api.js'
import { attempt, confirm, dialog, notify } from './dialogs.js'
import { h, setText, syncRows, updateChildren } from './dom.js'
import { deliveries, duration, time, when } from './format.js'
import { poll } from './lists.js'
import { isAdmin, refresh, sourcesOf } from './live.js'
import { publishForm } from './publish.js'

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
export function messageRow(queueID, id, reload, selection = null) {
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

function prettyText(data, space = 2) {
  try {
    return JSON.stringify(data, null, space)
  } catch (error) {
    return `Cannot be displayed: ${error.message}` // the data is nested too deeply
  }
}
