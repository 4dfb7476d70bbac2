// Elements, and how numbers and times are shown.

// h returns a new element. Names of attributes are as in HTML; those that begin with
// "on" are listeners, and what is null, undefined or false is left out. Children are
// elements or texts: text never becomes markup.
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children)
}

// svg is h for SVG.
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children)
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

// setText changes a text only if it differs, so that the page is not laid out again.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

// setCurrent says of a link whether it leads to what is shown.
export function setCurrent(link, is) {
  if (is) link.setAttribute('aria-current', 'page')
  else link.removeAttribute('aria-current')
}

// replace changes the children only where they differ, so that a link that has the
// focus keeps it while a number beside it changes. They have no listeners.
export function replace(element, ...children) {
  const next = element.cloneNode(false)
  fill(next, {}, children)
  become(element, next)
}

function become(old, next) {
  if (old.isEqualNode(next)) return
  if (!old.cloneNode(false).isEqualNode(next.cloneNode(false))) old.replaceWith(next)
  else if (old.childNodes.length !== next.childNodes.length) old.replaceChildren(...next.childNodes)
  else [...next.childNodes].forEach((child, i) => become(old.childNodes[i], child))
}

// keep has parent show a row for each item, in their order: those there are already
// stay as they are. Rows are {element, …} by the ids of items. It returns them in order.
export function keep(parent, rows, items, idOf, newRow) {
  const ids = items.map(idOf)
  const there = new Set(ids)
  for (const id of rows.keys()) if (!there.has(id)) rows.delete(id)
  for (const id of ids) if (!rows.has(id)) rows.set(id, newRow(id))
  const order = ids.map((id) => rows.get(id))
  if (order.length !== parent.children.length || order.some((row, i) => row.element !== parent.children[i])) {
    parent.replaceChildren(...order.map((row) => row.element))
  }
  return order
}

const whole = new Intl.NumberFormat('en')
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 })

// count shows a number of messages: to the last one if it is short.
export const count = (n) => (n === null || n === undefined ? '–' : n < 100_000 ? whole.format(n) : short.format(n))

// exact shows a number of messages to the last one.
export const exact = (n) => `${whole.format(n)} ${n === 1 ? 'message' : 'messages'}`

// deliveries shows a number of deliveries.
export const deliveries = (n) => `${whole.format(n)} ${n === 1 ? 'delivery' : 'deliveries'}`

// rate shows a number a second.
export function rate(n) {
  if (n === null || n === undefined) return '–'
  if (n === 0) return '0'
  return n < 10 ? n.toFixed(1) : count(Math.round(n))
}

// duration shows seconds by their two largest units.
export function duration(seconds) {
  const left = Math.max(0, Math.round(seconds))
  const units = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]]
  const first = units.findIndex(([, size]) => left >= size)
  if (first < 0) return '0 s'
  const [unit, size] = units[first]
  const [nextUnit, nextSize] = units[first + 1] || []
  const rest = nextSize && Math.floor((left % size) / nextSize)
  return `${Math.floor(left / size)} ${unit}${rest ? ` ${rest} ${nextUnit}` : ''}`
}

// time returns the milliseconds of a time of the API, which is UTC.
export const time = (text) => Date.parse(`${text}Z`)

// field is an input with its label, and where the server's mistakes about it show.
export function field(label, input, hint) {
  const id = `f${(field.last = (field.last ?? 0) + 1)}`
  const wrong = h('span', { class: 'wrong', id: `${id}-wrong` })
  const about = hint ? h('span', { class: 'hint', id: `${id}-hint` }, hint) : null
  input.id = id
  input.setAttribute('aria-describedby', hint ? `${id}-wrong ${id}-hint` : `${id}-wrong`)
  const check = input.type === 'checkbox'
  const element = h('div', { class: check ? 'field check' : 'field' }, h('label', { for: id }, label), input, about, wrong)
  return {
    element,
    input,
    // say shows a mistake; none if the text is empty.
    say(text) {
      setText(wrong, text)
      if (text) input.setAttribute('aria-invalid', 'true')
      else input.removeAttribute('aria-invalid')
    },
  }
}
