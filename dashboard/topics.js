// The page of topics: which queues hang on each, and where their dead messages go.

import { all, call, path } from './api.js'
import { attempt, confirm, dialog, inputs, makeForm, note } from './dialogs.js'
import { count, deliveries, field, h, keep, replace, setText } from './dom.js'
import { deadQueueOf, live, mayChange, queueCalled, refresh } from './live.js'
import { publishForm } from './publish.js'
import { askForQueue } from './settings.js'

export function topicsPage() {
  const cards = new Map() // by topic id
  const list = h('div', { class: 'cards' })
  const nothing = h('p', { class: 'nothing' }, 'Loading…')
  const without = h('div')
  const create = h('button', { class: 'primary' , onclick: askForTopic }, 'New topic')
  let asking = false

  async function ask() {
    if (asking) return
    asking = true
    try {
      show(await all('/topics'))
    } catch (error) {
      if (!cards.size) setText(nothing, error.message)
    } finally {
      asking = false
    }
  }

  function show(topics) {
    keep(list, cards, topics, (t) => t.id, topicCard)
      .forEach((card, i) => card.update(live.queues.filter((q) => q.topic_id === topics[i].id)))
    setText(nothing, 'There are no topics yet.')
    nothing.hidden = topics.length > 0
    const rest = live.queues.filter((q) => !q.topic_id)
    replace(without, ...(rest.length ? [h('h2', {}, 'Queues without a topic'), h('div', { class: 'card' }, queueList(rest))] : []))
    create.hidden = !mayChange()
  }

  return {
    element: h('div', {}, h('div', { class: 'title' }, h('h1', {}, 'Topics'), create), nothing, list, without),
    update: ask,
  }
}

// queueList shows queues, what they want, and where their dead messages go.
function queueList(queues) {
  return h('ul', { class: 'tree' }, queues.map((q) => h('li', {},
    h('a', { href: `#/queues/${encodeURIComponent(q.id)}` }, q.id), ' ',
    h('span', { class: 'soft' }, `${count(q.messages?.ready)} ready`),
    deadQueueOf(q.id).length > 0 && h('span', { class: 'tag bad' }, `dead queue of ${deadQueueOf(q.id).map((other) => other.id).join(', ')}`),
    Object.entries(q.message_filters ?? {}).map(([name, values]) => h('span', { class: 'tag' }, `${name}: ${values.join(' or ')}`)),
    q.dead_queue_id && h('ul', {}, h('li', {}, h('span', { class: 'soft' }, `dead queue after ${deliveries(q.message_max_deliveries)}: `),
      h('a', { class: 'tag bad', href: `#/queues/${encodeURIComponent(q.dead_queue_id)}` }, q.dead_queue_id),
      ' ', h('span', { class: 'soft' }, `${count(queueCalled(q.dead_queue_id)?.messages?.ready)} ready`))))))
}

function topicCard(id) {
  const queues = h('div')
  const admin = h('span', {},
    h('button', { onclick: () => attempt(() => askForQueue(id)) }, 'New queue'),
    h('button', { onclick: () => removeTopic(id) }, 'Delete…'))
  return {
    element: h('section', { class: 'card', 'aria-label': `Topic ${id}` },
      h('div', { class: 'title' }, h('h2', {}, id),
        h('div', { class: 'buttons' }, h('button', { onclick: () => dialog(`Publish to ${id}`, publishForm('topics', id)) }, 'Publish…'), admin)),
      queues),
    update(its) {
      replace(queues, its.length ? queueList(its) : h('p', { class: 'soft' }, 'No queue subscribes to this topic.'))
      admin.hidden = !mayChange()
    },
  }
}

function askForTopic() {
  dialog('New topic', makeForm({
    fields: { id: field('Name', inputs.text({ name: 'id', autofocus: true }), 'Letters, digits, -, . and _') },
    action: 'Create topic',
    async send(input) {
      const { value } = await call('POST', '/topics', { id: input.id.value.trim() })
      note(`Topic ${value.id} created.`)
      refresh()
    },
  }))
}

function removeTopic(id) {
  const n = live.queues.filter((q) => q.topic_id === id).length
  confirm({
    title: `Delete topic ${id}?`,
    text: n === 0 ? 'No queue subscribes to it.' : `${n === 1 ? 'One queue subscribes' : `${n} queues subscribe`} to it and will get no more messages from it. Messages already in ${n === 1 ? 'the queue' : 'the queues'} stay.`,
    action: 'Delete topic',
    async send() {
      await call('DELETE', path`/topics/${id}`)
      note(`Topic ${id} deleted.`)
      refresh()
    },
  })
}
