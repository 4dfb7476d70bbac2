// Questions, forms, and notes of what was done.

import { Away } from './api.js'
import { field, h, setText } from './dom.js'

// note tells what was done, or what went wrong, for a while.
export function note(text, bad = false) {
  const element = h('p', { class: bad ? 'note bad' : 'note' }, text, h('button', { class: 'plain', 'aria-label': 'Close', onclick: () => element.remove() }, '×'))
  const notes = document.getElementById('notes')
  notes.append(element)
  while (notes.childElementCount > 4) notes.firstElementChild.remove()
  setTimeout(() => element.remove(), bad ? 20_000 : 6_000)
}

// attempt does something that may be refused, and notes it if it is.
export async function attempt(what) {
  try {
    return await what()
  } catch (error) {
    note(error.message, true)
  }
}

// dialog shows a form in a window of its own, until it is sent and sending it
// succeeds, or it is closed.
export function dialog(title, form) {
  if (document.querySelector('dialog[open]')) return // of a second click
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

// makeForm returns a form of fields by name, whose send is called with their
// inputs, and a button that says what it does. Mistakes that the server finds show
// at the fields that they are about, and what is about none of them at the end.
// A field is as dom.js makes it; intro stands above them.
export function makeForm({ fields, intro = [], action, danger = false, cancel = true, send }) {
  const alert = h('p', { class: 'wrong', role: 'alert' })
  const submit = h('button', { type: 'submit', class: danger ? 'danger' : 'primary' }, action)
  const form = { onDone() {}, onCancel() {} }
  form.element = h('form', { novalidate: true },
    intro,
    Object.values(fields).map((f) => f.element),
    alert,
    h('div', { class: 'buttons' }, cancel && h('button', { type: 'button', onclick: () => form.onCancel() }, 'Cancel'), submit))
  form.element.addEventListener('submit', async (event) => {
    event.preventDefault()
    for (const f of Object.values(fields)) f.say('')
    setText(alert, '')
    submit.disabled = true
    try {
      form.onDone(await send(Object.fromEntries(Object.entries(fields).map(([name, f]) => [name, f.input]))))
    } catch (error) {
      show(error)
    } finally {
      submit.disabled = false
    }
  })
  function show(error) {
    const rest = []
    for (const m of error.mistakes ?? []) {
      // A mistake of several fields together begins with the name of one.
      const places = m.loc[1] === '__root__' ? m.msg.split(' ', 1) : m.loc.slice(1)
      const f = fields[places.find((part) => fields[part])]
      const within = m.loc.slice(2).join(' ')
      if (f) f.say(within && m.loc[1] in fields ? `${within}: ${m.msg}` : m.msg)
      else rest.push(`${m.loc.slice(1).join(' ')}: ${m.msg}`)
    }
    if (!error.mistakes?.length) rest.push(error.message)
    if (error instanceof Away) rest.push('The request may have succeeded.')
    setText(alert, rest.join(' '))
    form.element.querySelector('[aria-invalid]')?.focus()
  }
  return form
}

// confirm asks before something that cannot be undone is done, and says how much
// it is about.
export function confirm({ title, text, action, danger = true, fields = {}, send }) {
  dialog(title, makeForm({ fields, intro: [h('p', {}, text)], action, danger, send }))
}

// Invalid is a mistake that is found here: the server cannot be asked.
export class Invalid extends Error {
  constructor(name, text) {
    super(text)
    this.mistakes = [{ loc: ['body', name], msg: text }]
  }
}

// jsonText returns the text of a field that must be JSON, as it was typed: all its
// digits and the order of its members count.
export function jsonText(input, name) {
  try {
    JSON.parse(input.value)
  } catch (error) {
    throw new Invalid(name, `Invalid JSON: ${error.message}`)
  }
  return input.value
}

const text = (attributes) => h('input', { type: 'text', autocomplete: 'off', spellcheck: 'false', ...attributes })
const area = (attributes) => h('textarea', { rows: 6, spellcheck: 'false', autocomplete: 'off', ...attributes })

export const inputs = {
  text,
  area,
  whole: (attributes) => text({ inputmode: 'numeric', ...attributes }),
  check: (attributes) => h('input', { type: 'checkbox', ...attributes }),
  choice: (options, attributes) => h('select', attributes, options.map(([value, label]) => h('option', { value }, label))),
  // suggesting lets one type, and offers what there is.
  suggesting(options, attributes) {
    const id = `list${(inputs.lists = (inputs.lists ?? 0) + 1)}`
    const input = text({ list: id, ...attributes })
    return { input, list: h('datalist', { id }, options.map((value) => h('option', { value }))) }
  },
}

// suggested is a field whose input offers what there is.
export function suggested(label, options, hint, attributes) {
  const { input, list } = inputs.suggesting(options, attributes)
  const f = field(label, input, hint)
  f.element.append(list)
  return f
}

// numberIn returns the text of a number as JSON, null if it is empty. What is no
// number is left to the server, which says so.
export function numberIn(input) {
  const value = input.value.trim()
  if (value === '') return null
  return /^-?\d+$/.test(value) && Number.isSafeInteger(Number(value)) ? Number(value) : value
}
