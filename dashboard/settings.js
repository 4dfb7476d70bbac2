// The forms that create a queue and change its settings.

import { all, call, callSQS, get, path } from './api.js'
import { dialog, inputs, Invalid, jsonText, makeForm, notify, numberIn, suggested } from './dialogs.js'
import { field, h } from './dom.js'
import { secondsIn, span } from './format.js'
import { live, refresh } from './live.js'

// settingFields returns the form fields of all settings, with the values of q.
function settingFields(q, topics) {
  const format = (value) => (value === null || value === undefined ? null : String(value))
  const integer = (name, label, hint) => field(label, inputs.integer({ name, value: format(q[name]) }), hint)
  const seconds = (name, label, hint) => field(label, inputs.text({ name, value: q[name] === null || q[name] === undefined ? null : span(q[name]) }), hint)
  const filters = inputs.area({ name: 'message_filters', rows: 3, placeholder: '{"country": ["fr", "es"]}' })
  filters.value = q.message_filters ? JSON.stringify(q.message_filters) : ''
  return {
    topic_id: suggested('Topic', topics, 'The queue gets a copy of each matching message published to this topic. Optional: messages can also be published directly to the queue.', { name: 'topic_id', value: format(q.topic_id) }),
    dead_queue_id: suggested('Dead queue', live.queues.map((other) => other.id).filter((id) => id !== q.id), 'Optional. Messages move there after the maximum number of deliveries.', { name: 'dead_queue_id', value: format(q.dead_queue_id) }),
    message_max_deliveries: integer('message_max_deliveries', 'Maximum number of deliveries', 'Required with a dead queue.'),
    ack_deadline_seconds: seconds('ack_deadline_seconds', 'Ack deadline', 'How long a received message is hidden from other consumers, such as 30s or 5 minutes.'),
    message_retention_seconds: seconds('message_retention_seconds', 'Retention', 'How long a message is kept, such as 4d.'),
    message_filters: field('Filters', filters, 'Optional. A JSON object of the attributes that a message must have, each with a list of accepted values.'),
    delivery_delay_seconds: seconds('delivery_delay_seconds', 'Delay', 'Optional. How long a new message is hidden.'),
    retry_backoff_seconds: field('Retry backoff', inputs.text({ name: 'retry_backoff_seconds', value: q.retry_backoff_seconds?.map(span).join(', ') }), 'Optional. How long a message waits after its first failed delivery, its second and so on, such as 5s, 30s, 5m. The last one repeats.'),
    max_messages: integer('max_messages', 'Maximum number of messages', 'Optional. From this number on, publishes are refused.'),
    delivery_interval_ms: integer('delivery_interval_ms', 'Delivery interval of a group in milliseconds', 'Optional. At most one message of a group is delivered per interval.'),
    consumed_retention_seconds: seconds('consumed_retention_seconds', 'Retention of consumed messages', 'Optional. How long a message is kept after it was read through the API of pgQueue or micro-queue.'),
    deduplication_window_seconds: seconds('deduplication_window_seconds', 'Deduplication window', 'Optional. How long after a publish a message with the same deduplication id is not stored again.'),
    ordered: field('Ordered: deliver the next message of a group only after the previous one was acked or has left the queue', inputs.check({ name: 'ordered', checked: q.ordered === true })),
  }
}

// settingsIn returns the settings in a form by name, each as JSON.
function settingsIn(input) {
  const settings = {
    topic_id: input.topic_id.value.trim() || null,
    dead_queue_id: input.dead_queue_id.value.trim() || null,
    ordered: input.ordered.checked,
  }
  for (const name of numbers) settings[name] = name.endsWith('_seconds') ? secondsIn(input[name].value) : numberIn(input[name])
  const backoff = input.retry_backoff_seconds.value.split(',').map(secondsIn).filter((step) => step !== null)
  settings.retry_backoff_seconds = backoff.length ? backoff : null
  const texts = Object.fromEntries(Object.entries(settings).map(([name, value]) => [name, JSON.stringify(value)]))
  texts.message_filters = input.message_filters.value.trim() ? jsonText(input.message_filters, 'message_filters') : 'null'
  return texts
}

const numbers = ['ack_deadline_seconds', 'message_retention_seconds', 'message_max_deliveries', 'max_messages', 'delivery_delay_seconds', 'delivery_interval_ms', 'consumed_retention_seconds', 'deduplication_window_seconds']

// bodyOf returns a JSON object of members that are JSON already.
const bodyOf = (texts) => `{${Object.entries(texts).map(([name, text]) => `${JSON.stringify(name)}:${text}`).join(',')}}`

// withFieldErrors awaits a request, and turns the error for a missing topic or dead
// queue into an error of the field that names it.
async function withFieldErrors(request) {
  try {
    return await request
  } catch (error) {
    if (error.status === 404 && error.message === 'Topic not found') throw new Invalid('topic_id', 'There is no such topic. Choose one from the list, or create it first.')
    if (error.status === 404 && error.message === 'Queue not found') throw new Invalid('dead_queue_id', 'There is no such queue. Choose one from the list, or create it first.')
    throw error
  }
}

const topicIDs = async () => (await all('/topics')).map((t) => t.id)

// openQueueForm opens a dialog that creates a queue, which subscribes to a topic if
// one is given. It can create a dead queue for it first.
export async function openQueueForm(topicID = null) {
  const topics = await topicIDs()
  const defaults = { topic_id: topicID, ack_deadline_seconds: 30, message_retention_seconds: 345600 }
  const id = field('Name', inputs.text({ name: 'id', autofocus: true }), 'Letters, digits, -, . and _')
  const withDead = field('Also create NAME-dead, the dead queue after 5 deliveries', inputs.check({ name: 'with_dead' }))
  const { topic_id, ...others } = settingFields(defaults, topics)
  id.input.addEventListener('input', () => { withDead.element.firstChild.textContent = `Also create ${id.input.value.trim() || 'NAME'}-dead, the dead queue after 5 deliveries` })
  withDead.input.addEventListener('change', () => {
    for (const name of ['dead_queue_id', 'message_max_deliveries']) others[name].input.disabled = withDead.input.checked
  })
  dialog('New queue', makeForm({
    fields: { id, topic_id, with_dead: withDead, ...others },
    more: Object.keys(others),
    action: 'Create queue',
    async send(input) {
      const name = input.id.value.trim()
      const settings = settingsIn(input)
      if (input.with_dead.checked) {
        const { ack_deadline_seconds, message_retention_seconds } = settings
        await call('POST', '/queues', bodyOf({ id: JSON.stringify(`${name}-dead`), ack_deadline_seconds, message_retention_seconds }))
          .catch((error) => { if (error.status !== 409) throw error })
        Object.assign(settings, { dead_queue_id: JSON.stringify(`${name}-dead`), message_max_deliveries: '5' })
      }
      const { value } = await withFieldErrors(call('POST', '/queues', bodyOf({ id: JSON.stringify(name), ...settings })))
      notify(`Queue ${value.id} created.`)
      refresh()
      location.hash = `#/queues/${encodeURIComponent(value.id)}`
    },
  }))
}

// settingsForm returns a form that changes the settings of a queue and then calls
// saved. Settings that the user has not edited are read again before saving, so that
// changes made elsewhere in the meantime persist. The form is read-only unless editable.
export async function settingsForm(q, editable, saved) {
  const fields = settingFields(q, await topicIDs())
  const initial = settingsIn(Object.fromEntries(Object.entries(fields).map(([name, f]) => [name, f.input])))
  const form = makeForm({
    fields,
    action: 'Save',
    cancel: false,
    async send(input) {
      const settings = settingsIn(input)
      const current = await get(path`/queues/${q.id}`)
      for (const name of Object.keys(settings)) {
        if (settings[name] === initial[name]) settings[name] = JSON.stringify(current[name] ?? (name === 'ordered' ? false : null))
      }
      await withFieldErrors(call('PUT', path`/queues/${q.id}`, bodyOf(settings)))
      notify('Settings saved.')
      refresh()
      saved()
    },
  })
  if (!editable) for (const e of form.element.elements) e.disabled = true
  return form.element
}

// sqsAttributes returns what a queue looks like in SQS's API: its attributes, except for the
// counts of messages, and its tags.
export async function sqsAttributes(id) {
  const [{ Attributes = {} }, { Tags = {} }] = await Promise.all([
    callSQS('GetQueueAttributes', { QueueUrl: id, AttributeNames: ['All'] }),
    callSQS('ListQueueTags', { QueueUrl: id }),
  ])
  const facts = [
    ...Object.entries(Attributes).filter(([name]) => !name.startsWith('Approximate')),
    ...Object.entries(Tags).map(([key, value]) => [`Tag ${key}`, value]),
  ]
  return h('details', {}, h('summary', {}, "Attributes in Amazon SQS's API"), h('dl', {}, facts.flatMap(([name, value]) => [h('dt', {}, name), h('dd', { dir: 'auto' }, value)])))
}
