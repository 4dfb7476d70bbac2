// The messages of a queue: a list with a selection, and the operations on the selection.

import { call, maybeTruncated, parseExactly, path } from './api.js'
import { attempt, confirm, notify } from './dialogs.js'
import { h, setText, syncRows } from './dom.js'
import { exact } from './format.js'
import { newPager, pageSize, poll } from './lists.js'
import { isAdmin, refresh, sourcesOf } from './live.js'
import { messageRow } from './message.js'

// messagesTab lists the messages, a page at a time.
export function messagesTab(id) {
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

// moved describes the result of a redrive.
export function moved({ headers }, where) {
  const left = Number(headers.get('X-Messages-Left'))
  return `${exact(Number(headers.get('X-Messages-Moved')))} moved ${where}.${left > 0 ? ` ${exact(left)} stayed.` : ''}`
}
