// The page of topics, with the queues that subscribe to each and their dead queues.

import { all, call, path } from './api.js'
import { attempt, confirm, dialog, inputs, makeForm, notify } from './dialogs.js'
import { field, h, longName, setText, syncRows, updateChildren } from './dom.js'
import { count, deliveries } from './format.js'
import { isAdmin, live, queueByID, refresh, sourcesOf } from './live.js'
import { problemOf } from './problems.js'
import { publishForm } from './publish.js'
import { openQueueForm } from './settings.js'

// topicsPage returns the page of topics.
export function topicsPage() {
  const cards = new Map() // by topic id
  const list = h('div', { class: 'cards' })
  const placeholder = h('p', { class: 'placeholder' }, 'Loading…')
  const withoutTopic = h('div')
  const create = h('button', { class: 'primary', onclick: openTopicForm }, 'New topic')
  let loading = false

  async function load() {
    if (loading) return
    loading = true
    try {
      show(await all('/topics'))
    } catch (error) {
      if (!cards.size) setText(placeholder, error.message)
    } finally {
      loading = false
    }
  }

  function show(topics) {
    syncRows(list, cards, topics, (t) => t.id, topicCard)
      .forEach((card, i) => card.update(live.queues.filter((q) => q.topic_id === topics[i].id)))
    setText(placeholder, 'There are no topics yet.')
    placeholder.hidden = topics.length > 0
    // A dead queue is shown beside the queues whose messages move to it.
    const rest = live.queues.filter((q) => !q.topic_id && (q.dead_queue_id || sourcesOf(q.id).length === 0))
    updateChildren(withoutTopic, ...(rest.length ? [h('h2', {}, 'Queues without a topic'), h('div', { class: 'card' }, queueList(rest))] : []))
    create.hidden = !isAdmin()
  }

  return {
    element: h('div', {}, h('div', { class: 'title' }, h('h1', {}, 'Topics'), create), placeholder, list, withoutTopic),
    update: load,
  }
}

// queueList returns a picture of queues: on the left the queues with their filters, on
// the right the dead queue that they share.
function queueList(queues) {
  const flows = new Map() // queues by dead queue, with empty for none
  for (const q of queues) {
    const dead = q.dead_queue_id ?? ''
    if (!flows.has(dead)) flows.set(dead, [])
    flows.get(dead).push(q)
  }
  return h('div', { class: 'tree' }, [...flows].map(([dead, members]) => h('div', { class: 'flow' },
    h('ul', {}, members.map(queueItem)),
    dead && h('p', {}, h('span', {}, h('span', { class: 'muted' }, `dead queue after ${range(members.map((q) => q.message_max_deliveries))}: `),
      h('a', { class: 'tag', href: `#/queues/${encodeURIComponent(dead)}` }, dead), ' ',
      state(queueByID(dead) ?? {}))))))
}

function queueItem(q) {
  const sources = sourcesOf(q.id)
  return h('li', {},
    h('a', { class: 'long', title: q.id, href: `#/queues/${encodeURIComponent(q.id)}` }, longName(q.id)),
    state(q),
    h('span', { class: 'tags' },
      sources.length > 0 && h('span', { class: 'tag' }, `dead queue of ${sources.length === 1 ? sources[0].id : `${sources.length} queues`}`),
      Object.entries(q.message_filters ?? {}).map(([name, values]) => h('span', { class: 'tag' }, `${name}: ${values.join(' or ')}`))))
}

// state returns what is wrong with a queue, or its number of ready messages.
function state(q) {
  const problem = q.id && problemOf(q, sourcesOf(q.id).length > 0)
  return problem ? h('span', { class: `mark ${problem.kind}` }, problem.text) : h('span', { class: 'muted' }, `${count(q.messages?.ready)} ready`)
}

// range formats numbers of deliveries by the smallest and the largest.
function range(numbers) {
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)]
  return least === most ? deliveries(most) : `${least} to ${deliveries(most)}`
}

// topicCard returns the card of a topic.
function topicCard(id) {
  const queues = h('div')
  const admin = h('span', {},
    h('button', { onclick: () => attempt(() => openQueueForm(id)) }, 'New queue'),
    h('button', { onclick: () => removeTopic(id) }, 'Delete…'))
  return {
    element: h('section', { class: 'card', 'aria-label': `Topic ${id}` },
      h('div', { class: 'title' }, h('h2', {}, id),
        h('div', { class: 'buttons' }, h('button', { onclick: () => dialog(`Publish to ${id}`, publishForm('topics', id)) }, 'Publish…'), admin)),
      queues),
    update(subscribers) {
      updateChildren(queues, subscribers.length ? queueList(subscribers) : h('p', {}, h('span', { class: 'mark warn' }, 'no queue: messages are discarded')))
      admin.hidden = !isAdmin()
    },
  }
}

// openTopicForm opens a dialog that creates a topic.
function openTopicForm() {
  dialog('New topic', makeForm({
    fields: { id: field('Name', inputs.text({ name: 'id', autofocus: true }), 'Letters, digits, -, . and _') },
    action: 'Create topic',
    async send(input) {
      const { value } = await call('POST', '/topics', { id: input.id.value.trim() })
      notify(`Topic ${value.id} created.`)
      refresh()
    },
  }))
}

// removeTopic asks before it deletes a topic.
function removeTopic(id) {
  const n = live.queues.filter((q) => q.topic_id === id).length
  confirm({
    title: `Delete topic ${id}?`,
    text: n === 0 ? 'No queue subscribes to it.' : `${n === 1 ? 'One queue subscribes' : `${n} queues subscribe`} to it and will get no more messages from it. Messages already in ${n === 1 ? 'the queue' : 'the queues'} stay.`,
    action: 'Delete topic',
    async send() {
      await call('DELETE', path`/topics/${id}`)
      notify(`Topic ${id} deleted.`)
      refresh()
    },
  })
}
