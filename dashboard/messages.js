// The messages of a queue: a list with a search and a selection, and the operations on
// the selected messages.

import { call, maybeTruncated, parseExactly, path } from './api.js'
import { attempt, confirm, inputs, notify } from './dialogs.js'
import { h, setText, syncRows } from './dom.js'
import { exact } from './format.js'
import { newPager, pageSize, parameters, poll, setParameters } from './lists.js'
import { isAdmin, refresh, sourcesOf } from './live.js'
import { isMessageID, messageRow } from './message.js'

// messagesTab lists the messages, a page at a time.
export function messagesTab(id) {
  const rows = new Map() // by message id
  const list = h('ul', { class: 'messages' })
  const placeholder = h('p', { class: 'placeholder' }, 'Loading…')
  const search = newSearch(() => {
    pager.reset()
    polling.again()
  })
  const pager = newPager(() => polling.again())
  const selection = newSelection(rows, () => polling.again())

  async function load() {
    const query = search.query()
    const from = pager.position
    let response
    try {
      response = await (query === '' ? peek(id, from) : find(id, query, from, () => from !== pager.position || query !== search.query()))
    } catch (error) {
      if (error.status === 422) syncRows(list, rows, []) // the search is refused
      if (!rows.size) setText(placeholder, error.message)
      placeholder.hidden = rows.size > 0
      return
    }
    if (from !== pager.position || query !== search.query()) return
    const { messages, exactly, next } = response
    syncRows(list, rows, messages, (m) => m.id, (messageID) => messageRow(id, messageID, () => polling.again(), selection))
      .forEach((row, i) => row.update(messages[i], exactly[i].data))
    selection.update(sourcesOf(id).length > 0)
    setText(placeholder, query !== '' ? (next ? 'No message matches so far. Next searches on.' : 'No message matches.') : from ? 'No messages on this page.' : 'No messages.')
    placeholder.hidden = messages.length > 0
    const first = Number(from) + 1
    pager.update(next, messages.length === 0 ? '' : query === '' ? `${first} to ${first + messages.length - 1}, oldest due first` : `${messages.length} found, oldest due first`)
  }

  const polling = poll(load)
  return {
    element: h('section', { 'aria-label': 'Messages' }, h('div', { class: 'tools' }, selection.all, search.element, selection.element), placeholder, list, pager.element),
    navigate: search.read,
    update() {
      for (const row of rows.values()) row.name()
      selection.update(sourcesOf(id).length > 0)
    },
    close: polling.close,
  }
}

// peek returns a page of the messages of a queue.
async function peek(id, from) {
  const { value, text } = await call('GET', path`/queues/${id}/messages/peek` + `?offset=${Number(from) || 0}&limit=${pageSize}`)
  const messages = value.data
  const more = messages.length === pageSize || maybeTruncated(text)
  return { messages, exactly: parseExactly(text).data, next: more ? String(Number(from) + messages.length) : null }
}

const searches = 30 // maximum requests that find nothing, one after the other

// find returns a page of the messages that a search finds. The server searches in a part of
// the messages a request, so it takes more requests, until one finds something or isOver.
async function find(id, query, from, isOver) {
  for (let n = 1, next = from; ; n++) {
    const { value, text } = await call('GET', path`/queues/${id}/messages/peek` + `?${query}&limit=${pageSize}${next && `&next=${next}`}`)
    next = value.next
    if (value.data.length > 0 || next === null || n === searches || isOver()) return { messages: value.data, exactly: parseExactly(text).data, next }
  }
}

// newSearch returns inputs for the conditions of a search. The address keeps them. It calls
// change when they change.
function newSearch(change) {
  const about = 'Text in the data, the attributes or the last error; or a JSON object that the data contains; or the id of a message'
  const fields = {
    state: inputs.choice([['', 'Any state'], ['ready', 'Ready'], ['delayed', 'Delayed'], ['in_flight', 'In flight'], ['exhausted', 'Exhausted']], { 'aria-label': 'State' }),
    q: inputs.text({ type: 'search', 'aria-label': about, title: about, placeholder: 'Text, {"order": 17}, or id' }),
    attribute: inputs.text({ type: 'search', 'aria-label': 'Attribute, such as country=es', placeholder: 'Attribute, as country=es' }),
    group: inputs.text({ type: 'search', 'aria-label': 'Group', placeholder: 'Group' }),
  }
  let timer = null
  const apply = () => {
    clearTimeout(timer)
    if (isMessageID(fields.q.value)) location.hash = `#/messages/${fields.q.value.trim().toLowerCase()}`
    else {
      setParameters({ ...Object.fromEntries(Object.entries(fields).map(([name, input]) => [name, input.value.trim()])), from: '' })
      change()
    }
  }
  for (const input of Object.values(fields)) {
    input.addEventListener('input', () => {
      clearTimeout(timer)
      timer = setTimeout(apply, 300) // more letters may follow
    })
    input.addEventListener('change', apply)
  }
  const show = () => {
    for (const [name, input] of Object.entries(fields)) input.value = parameters().get(name) ?? ''
  }
  show()
  return {
    element: h('div', { class: 'search', role: 'search', 'aria-label': 'Search in the messages' }, Object.values(fields)),
    // read shows what the address has.
    read() {
      show()
      change()
    },
    // query returns the parameters of the request, empty without conditions.
    query() {
      const query = new URLSearchParams()
      for (const [name, value] of parameters()) {
        const [key, ...rest] = value.split('=')
        if (name === 'attribute' && rest.length > 0) query.set(`attribute.${key.trim()}`, rest.join('=').trim())
        else if (name === 'q' && value.startsWith('{')) query.set('contains', value)
        else if (name in fields && name !== 'attribute' && value) query.set(name, value)
      }
      return query.toString()
    },
  }
}

// newSelection returns the selected messages of a page, with the operations on them. rows
// are the rows of the page by message id. It calls reload after an operation.
function newSelection(rows, reload) {
  const ids = new Set()
  const all = h('input', {
    type: 'checkbox',
    'aria-label': 'Select all messages of this page',
    title: 'Select all messages of this page',
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
    all,
    element: h('div', { class: 'buttons', hidden: true }, retry, remove),
    // update shows the number of selected messages; isDead tells whether this is a dead
    // queue.
    update(isDead = !retry.hidden) {
      for (const id of ids) if (!rows.has(id)) ids.delete(id)
      all.hidden = rows.size === 0 || !isAdmin()
      all.checked = ids.size > 0 && ids.size === rows.size
      all.indeterminate = ids.size > 0 && !all.checked
      setText(retry, `Retry ${ids.size}`)
      setText(remove, `Delete ${ids.size}…`)
      retry.hidden = !isDead
      selection.element.hidden = ids.size === 0
    },
  }
  return selection
}

// moved describes the result of a redrive.
export function moved({ headers }, where) {
  const left = Number(headers.get('X-Messages-Left'))
  return `${exact(Number(headers.get('X-Messages-Moved')))} moved ${where}.${left > 0 ? ` ${exact(left)} stayed.` : ''}`
}
