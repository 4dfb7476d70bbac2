// The consumers that received from a queue in the last hour.

import { get, path } from './api.js'
import { h, setText, syncRows } from './dom.js'
import { count, duration } from './format.js'
import { poll } from './lists.js'

const serverTimeout = 60_000 // milliseconds after its last response for which a server still counts
const maxInFlight = 100 // messages in flight up to which a server counts those of a consumer

// consumersTab lists the consumers of a queue, the one that was seen last first.
export function consumersTab(id) {
  const servers = new Map() // {at, data} by server id: a load balancer may have several
  const rows = new Map()
  const body = h('tbody')
  const table = h('table', { class: 'dense', hidden: true, tabindex: 0 }, h('thead', {}, h('tr', {},
    ['Consumer', 'Last receive', 'In flight', 'Messages, last minute', 'Messages, last hour'].map((t, i) => h('th', { scope: 'col', class: i ? 'number' : '' }, t)))), body)
  const placeholder = h('p', { class: 'placeholder' }, 'Loading…')
  const polling = poll(async () => {
    try {
      const { server_id, data } = await get(path`/queues/${id}/consumers`)
      servers.set(server_id, { at: Date.now(), data })
    } catch (error) {
      if (!rows.size) setText(placeholder, error.message)
      return
    }
    for (const [server, { at }] of servers) if (Date.now() - at > serverTimeout) servers.delete(server)
    const consumers = addUp([...servers.values()].flatMap((s) => s.data))
    syncRows(body, rows, consumers, (c) => c.name, consumerRow).forEach((row, i) => row.update(consumers[i]))
    setText(placeholder, 'No consumer has received from this queue in the last hour.')
    placeholder.hidden = consumers.length > 0
    table.hidden = consumers.length === 0
  })
  return { element: h('section', { 'aria-label': 'Consumers' }, placeholder, table), close: polling.close }
}

// addUp returns the consumers by name. One that received from several servers is one
// consumer.
function addUp(seen) {
  const all = new Map()
  for (const c of seen) {
    const name = c.token ?? c.address
    const sum = all.get(name) ?? { name, ago: Infinity, inFlight: 0, orMore: false, minute: 0, hour: 0 }
    all.set(name, {
      name,
      ago: Math.min(sum.ago, c.last_seen_seconds_ago),
      inFlight: sum.inFlight + c.in_flight,
      orMore: sum.orMore || c.in_flight >= maxInFlight,
      minute: sum.minute + c.received_last_minute,
      hour: sum.hour + c.received_last_hour,
    })
  }
  return [...all.values()].sort((a, b) => a.ago - b.ago)
}

function consumerRow(name) {
  const cells = ['', '', '', ''].map(() => h('td', { class: 'number' }))
  return {
    element: h('tr', {}, h('th', { scope: 'row' }, name), cells),
    update(c) {
      [`${duration(c.ago, 1)} ago`, count(c.inFlight) + (c.orMore ? ' or more' : ''), count(c.minute), count(c.hour)].forEach((text, i) => setText(cells[i], text))
    },
  }
}
