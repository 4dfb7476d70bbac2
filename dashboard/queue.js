// The page of one queue: its counts, messages, settings and groups, and the actions on them.

import { call, get, now, path } from './api.js'
import { chart, ratesChart, spanChoice } from './chart.js'
import { consumersTab } from './consumers.js'
import { attempt, confirm, inputs, Invalid, notify, numberIn, suggested } from './dialogs.js'
import { field, h, setCurrent, setText, updateChildren } from './dom.js'
import { ago, breakdown, count, deliveries, duration, exact, sum } from './format.js'
import { groupsTab } from './groups.js'
import { newHistory } from './history.js'
import { isAdmin, live, queueByID, refresh, sourcesOf } from './live.js'
import { messagesTab, moved } from './messages.js'
import { problemOf } from './problems.js'
import { publishForm } from './publish.js'
import { settingTags } from './queues.js'
import { settingsForm, sqsAttributes } from './settings.js'

const tabs = [['messages', 'Messages'], ['publish', 'Publish'], ['settings', 'Settings'], ['groups', 'Groups'], ['consumers', 'Consumers']]

// queuePage returns the page of a queue.
export function queuePage(id) {
  const tiles = [
    ['ready', 'Ready', (q) => count(q.messages?.ready)],
    ['in_flight', 'In flight', (q) => count(q.messages?.in_flight)],
    ['delayed', 'Delayed', (q) => count(q.messages?.delayed)],
    ['exhausted', 'Exhausted', (q) => count(q.messages?.exhausted)],
    ['oldest', 'Oldest', (q) => (q.oldest_message_age_seconds > 0 ? duration(q.oldest_message_age_seconds, 1) : '–')],
    ['receivers', 'Waiting consumers', (q) => count(q.waiting_receivers), 'consumers'],
  ].map(([name, label, show, tab]) => ({ show, value: h('b'), label, name, tab }))
  const span = spanChoice(() => draw())
  const rates = ratesChart(span)
  const ready = chart('Messages', [{ name: 'ready', label: 'Ready', show: (n) => count(Math.round(n)) }])
  const draw = () => {
    const samples = past.samples(queueByID(id))
    for (const c of [rates, ready]) c.update(samples, Number(span.value), now())
  }
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
      h('div', { class: 'tiles' }, tiles.map((t) => h(t.tab ? 'a' : 'p', { class: `tile ${t.name}`, href: t.tab && `#/queues/${encodeURIComponent(id)}/${t.tab}` }, h('span', {}, t.label), t.value))),
      rates.element, ready.element),
    h('nav', { class: 'tabs', 'aria-label': 'Queue sections' }, links),
    tabContent)
  let currentTab = null // {name, element, update(), close()}
  const opened = performance.now()

  return {
    id,
    element: h('div', {},
      h('div', { class: 'title' }, h('div', {}, h('h1', {}, h('span', { class: 'parent' }, h('a', { href: '#/' }, 'Queues'), ' / '), id), tags), actions),
      missing, content),
    showTab(name) {
      if (currentTab?.name === name) {
        currentTab.navigate?.()
        return
      }
      currentTab?.close?.()
      const newTab = { messages: messagesTab, publish: publishTab, settings: settingsTab, groups: groupsTab, consumers: consumersTab }[name] ?? messagesTab
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
      updateChildren(tags, ...tagsOf(q))
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

const shownSources = 3 // maximum queues to show of those that share a dead queue

// tagsOf returns what is wrong with a queue, its settings, and links to the queues that
// belong to it.
function tagsOf(q) {
  const sources = sourcesOf(q.id)
  const problem = problemOf(q, sources.length > 0)
  const dead = queueByID(q.dead_queue_id)?.messages?.ready
  const link = (href, text) => h('a', { class: 'tag', href }, text)
  const toQueue = (id, text) => link(`#/queues/${encodeURIComponent(id)}`, text)
  return [
    q.paused && h('span', { class: 'mark info' }, 'paused: messages are not delivered'),
    problem && problem.text !== 'paused' && h('span', { class: `mark ${problem.kind}` }, problem.text),
    q.topic_id && link('#/topics', `topic ${q.topic_id}`),
    ...settingTags({ ...q, topic_id: null }, []),
    q.dead_queue_id && toQueue(q.dead_queue_id, `dead queue after ${deliveries(q.message_max_deliveries)}: ${q.dead_queue_id}`),
    dead > 0 && h('a', { class: 'mark bad', href: `#/queues/${encodeURIComponent(q.dead_queue_id)}` }, `${count(dead)} dead`),
    sources.length > 0 && h('span', { class: 'muted' }, 'dead queue of'),
    ...sources.slice(0, shownSources).map((other) => toQueue(other.id, other.id)),
    sources.length > shownSources && link(`#/?filter=${encodeURIComponent(q.id)}`, `${sources.length - shownSources} more`),
  ]
}

// countMessages returns the current number of messages in each state.
const countMessages = async (id) => (await get(path`/queues/${id}/stats` + '?detail=true')).messages

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

// toExistingQueue awaits a redrive, and turns the error for a missing queue into an error of
// the destination.
async function toExistingQueue(request) {
  try {
    return await request
  } catch (error) {
    throw error.status === 404 ? new Invalid('destination_queue_id', 'There is no such queue. Choose one from the list.') : error
  }
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
      notify(moved(await toExistingQueue(call('PUT', path`/queues/${id}/redrive`, body)), `from ${id} ${body.destination_queue_id ? `to ${body.destination_queue_id}` : 'back to where they came from'}`))
      refresh()
    },
  })
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
      h('p', { class: 'muted' }, `Created ${ago(q.created_at)}, updated ${ago(q.updated_at)}.`),
      await sqsAttributes(id).catch(() => '')) // a proxy may serve the dashboard alone
  })
  fill()
  return { element }
}
