// Notifications, forms and dialogs.

import { NetworkError } from './api.js'
import { field, h, setText } from './dom.js'
import { inWords } from './words.js'

// notify shows what was done, or an error, for some seconds.
export function notify(text, isError = false) {
  const element = h('p', { class: isError ? 'notification bad' : 'notification' }, text, h('button', { class: 'plain', 'aria-label': 'Close', onclick: () => element.remove() }, '×'))
  const notifications = document.getElementById('notifications')
  notifications.append(element)
  while (notifications.childElementCount > 4) notifications.firstElementChild.remove()
  setTimeout(() => element.remove(), isError ? 20_000 : 6_000)
}

// attempt calls f, and shows a notification if it fails.
export async function attempt(f) {
  try {
    return await f()
  } catch (error) {
    notify(error.message, true)
  }
}

// dialog shows a form in a modal dialog, until the form succeeds or the dialog is
// closed. It does nothing if a dialog is open already, as after a double click.
export function dialog(title, form) {
  if (document.querySelector('dialog[open]')) return
  const element = h('dialog', { 'aria-labelledby': 'dialog-title' }, h('h2', { id: 'dialog-title' }, title), form.element)
  const opener = document.activeElement
  element.addEventListener('close', () => {
    element.remove()
    opener?.focus?.()
  })
  form.onCancel = () => element.close()
  form.onDone = () => element.close()
  document.body.append(element)
  element.showModal()
}

// makeForm returns a form. The fields are by name, each as dom.js makes it; intro
// stands above them, and action is the label of the submit button. The fields in more
// are folded away. Submitting calls
// send with the inputs by name. Validation errors show at the fields that they
// name, all other errors at the end of the form.
export function makeForm({ fields, more = [], intro = [], action, danger = false, cancel = true, send }) {
  const alert = h('p', { class: 'error', role: 'alert' })
  const submit = h('button', { type: 'submit', class: danger ? 'danger' : 'primary' }, action)
  const folded = more.length > 0 && h('details', { class: 'more' }, h('summary', {}, 'More settings'), more.map((name) => fields[name].element))
  const form = { onDone() {}, onCancel() {} }
  form.element = h('form', { novalidate: true },
    intro,
    Object.entries(fields).filter(([name]) => !more.includes(name)).map(([, f]) => f.element),
    folded,
    alert,
    h('div', { class: 'buttons' }, cancel && h('button', { type: 'button', onclick: () => form.onCancel() }, 'Cancel'), submit))
  form.element.addEventListener('submit', async (event) => {
    event.preventDefault()
    for (const f of Object.values(fields)) f.setError('')
    setText(alert, '')
    submit.disabled = true
    try {
      form.onDone(await send(Object.fromEntries(Object.entries(fields).map(([name, f]) => [name, f.input]))))
    } catch (error) {
      showError(error)
    } finally {
      submit.disabled = false
    }
  })
  function showError(error) {
    const general = []
    for (const m of error.mistakes ?? []) {
      // The text of an error about several fields begins with the name of one of them.
      const places = m.loc[1] === '__root__' ? m.msg.split(' ', 1) : m.loc.slice(1)
      const name = places.find((part) => fields[part])
      const within = m.loc.slice(2).filter((part) => typeof part === 'string').map((part) => `${part}: `).join('')
      if (name) fields[name].setError(within + (inWords(m, fields[name].label, fields[name].input) ?? m.msg))
      else general.push(`${m.loc.slice(1).join(' ')}: ${m.msg}`)
    }
    if (!error.mistakes?.length) general.push(error.message)
    if (error instanceof NetworkError) general.push('The request may have succeeded.')
    setText(alert, general.join(' '))
    if (folded && folded.querySelector('[aria-invalid]')) folded.open = true
    form.element.querySelector('[aria-invalid]')?.focus()
  }
  return form
}

// confirm shows a dialog that asks before an action. The text says what the action
// affects, and how much.
export function confirm({ title, text, action, danger = true, fields = {}, send }) {
  dialog(title, makeForm({ fields, intro: [h('p', {}, text)], action, danger, send }))
}

// Invalid is a validation error found by the dashboard itself, without a request.
export class Invalid extends Error {
  constructor(name, text) {
    super(text)
    this.mistakes = [{ loc: ['body', name], msg: text }]
  }
}

// jsonText returns the text of an input, which must be JSON. The text is returned as
// typed, because encoding it anew could change digits and the order of members.
export function jsonText(input, name) {
  try {
    JSON.parse(input.value)
  } catch (error) {
    throw new Invalid(name, `This is not JSON: ${error.message}.`)
  }
  return input.value
}

const text = (attributes) => h('input', { type: 'text', autocomplete: 'off', spellcheck: 'false', ...attributes })
const area = (attributes) => h('textarea', { rows: 6, spellcheck: 'false', autocomplete: 'off', ...attributes })

export const inputs = {
  text,
  area,
  integer: (attributes) => text({ inputmode: 'numeric', ...attributes }),
  check: (attributes) => h('input', { type: 'checkbox', ...attributes }),
  choice: (options, attributes) => h('select', attributes, options.map(([value, label]) => h('option', { value }, label))),
  // suggesting returns a text input, and the list of values that it suggests.
  suggesting(options, attributes) {
    const id = `list${(inputs.lists = (inputs.lists ?? 0) + 1)}`
    const input = text({ list: id, ...attributes })
    return { input, list: h('datalist', { id }, options.map((value) => h('option', { value }))) }
  },
}

// suggested returns a text field that suggests values.
export function suggested(label, options, hint, attributes) {
  const { input, list } = inputs.suggesting(options, attributes)
  const f = field(label, input, hint)
  f.element.append(list)
  return f
}

// numberIn returns the number in an input, or null if the input is empty. Any other
// text is returned as it is, for the server to reject.
export function numberIn(input) {
  const value = input.value.trim()
  if (value === '') return null
  return /^-?\d+$/.test(value) && Number.isSafeInteger(Number(value)) ? Number(value) : value
}
