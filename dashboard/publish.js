// The form that publishes a test message.

import { call, path } from './api.js'
import { inputs, jsonText, makeForm, notify, numberIn } from './dialogs.js'
import { field } from './dom.js'
import { refresh } from './live.js'

// publishForm returns a form that publishes to a topic (kind "topics") or directly to
// a queue (kind "queues"). The draft has the texts that the fields begin with. The form has
// a button to cancel if it is in a dialog.
export function publishForm(kind, id, { draft = { data: '{"hello": "world"}' }, inDialog = true } = {}) {
  const data = inputs.area({ name: 'data' })
  data.value = draft.data
  const target = kind === 'topics' ? path`/topics/${id}/messages` : path`/queues/${id}/messages`
  return makeForm({
    fields: {
      data: field('Data', data, 'A JSON object.'),
      attributes: field('Attributes', inputs.text({ name: 'attributes', placeholder: '{"country": "fr"}', value: draft.attributes }), `Optional. A JSON object of strings.${draft.sqs ? ' Types and binary attributes of Amazon SQS are not copied.' : ''}`),
      group: field('Group', inputs.text({ name: 'group', value: draft.group }), 'Optional. Limits and ordering apply within a group.'),
      delay_seconds: field('Delay in seconds', inputs.integer({ name: 'delay_seconds' }), 'Optional. The default is the delay of the queue.'),
    },
    action: 'Publish',
    cancel: inDialog,
    async send(input) {
      const members = [`"data":${jsonText(input.data, 'data')}`]
      if (input.attributes.value.trim()) members.push(`"attributes":${jsonText(input.attributes, 'attributes')}`)
      if (input.group.value) members.push(`"group":${JSON.stringify(input.group.value)}`)
      const delay = numberIn(input.delay_seconds)
      if (delay !== null) members.push(`"delay_seconds":${JSON.stringify(delay)}`)
      const stored = (await call('POST', target, `{${members.join(',')}}`)).value.data
      notify(stored.length === 0 ? 'Published, but no queue matched.' : `Published to ${stored.map((m) => m.queue_id).join(', ')}.`)
      refresh()
    },
  })
}
