// The groups of a queue.

import { call, now, page, path } from './api.js'
import { confirm, inputs, notify, numberIn } from './dialogs.js'
import { field, h, setText, syncRows } from './dom.js'
import { breakdown, count, duration, exact, sum, time } from './format.js'
import { newPager, poll } from './lists.js'
import { isAdmin, refresh } from './live.js'

// groupsTab lists the groups, a page at a time.
export function groupsTab(id) {
  const rows = new Map()
  const body = h('tbody')
  const table = h('table', { class: 'dense', hidden: true }, h('thead', {}, h('tr', {}, ['Group', 'State', 'Waiting', 'In flight', 'Interval', h('span', { class: 'visually-hidden' }, 'Actions')].map((t, i) => h('th', { scope: 'col', class: i > 1 && i < 5 ? 'number' : '' }, t)))), body)
  const placeholder = h('p', { class: 'placeholder' }, 'Loading…')
  const pager = newPager(() => polling.again())
  const polling = poll(async () => {
    let groups, more
    const from = pager.position
    try {
      ({ items: groups, more } = await page(path`/queues/${id}/groups`, Number(from) || 0))
    } catch (error) {
      if (!rows.size) setText(placeholder, error.message)
      return
    }
    if (from !== pager.position) return
    syncRows(body, rows, groups, (g) => g.group, (group) => groupRow(id, group, () => polling.again()))
      .forEach((row, i) => row.update(groups[i]))
    setText(placeholder, 'There are no groups with messages or an interval of their own.')
    placeholder.hidden = groups.length > 0
    table.hidden = groups.length === 0
    pager.update(more ? String(Number(from) + groups.length) : null)
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
    element: h('tr', {}, h('th', { scope: 'row' }, h('a', { dir: 'auto', href: `#/queues/${encodeURIComponent(queueID)}/messages?${new URLSearchParams({ group: id })}` }, id)), h('td', {}, cells.state),
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
