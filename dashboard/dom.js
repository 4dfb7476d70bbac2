// DOM elements and form fields.

// h returns a new HTML element. An attribute whose name begins with "on" is an event
// listener, and one whose value is null, undefined or false is omitted. Children are
// elements or strings; strings become text, never markup.
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children)
}

// svg is h for SVG elements.
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

// setText sets the text of an element if it differs, to avoid needless layout.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

// setCurrent marks a link as the link to the current page, or removes the mark.
export function setCurrent(link, isCurrent) {
  if (isCurrent) link.setAttribute('aria-current', 'page')
  else link.removeAttribute('aria-current')
}

// updateChildren gives an element new children, but keeps those that are equal to the
// new ones: a link keeps the focus while a number beside it changes. Event listeners
// of new children are lost.
export function updateChildren(element, ...children) {
  const next = element.cloneNode(false)
  fill(next, {}, children)
  patch(element, next)
}

function patch(old, next) {
  if (old.isEqualNode(next)) return
  if (!old.cloneNode(false).isEqualNode(next.cloneNode(false))) old.replaceWith(next)
  else if (old.childNodes.length !== next.childNodes.length) old.replaceChildren(...next.childNodes)
  else [...next.childNodes].forEach((child, i) => patch(old.childNodes[i], child))
}

// syncRows shows one row in parent for each item, in the order of the items, and
// returns the rows in that order. rows is a map from ids to rows, {element, …}, which
// it updates: it reuses the rows of known ids and creates the others with newRow.
export function syncRows(parent, rows, items, idOf, newRow) {
  const ids = items.map(idOf)
  const wanted = new Set(ids)
  for (const id of rows.keys()) if (!wanted.has(id)) rows.delete(id)
  for (const id of ids) if (!rows.has(id)) rows.set(id, newRow(id))
  const order = ids.map((id) => rows.get(id))
  if (order.length !== parent.children.length || order.some((row, i) => row.element !== parent.children[i])) {
    parent.replaceChildren(...order.map((row) => row.element))
  }
  return order
}

// field returns an input with its label, its hint, and a place for its error.
export function field(label, input, hint) {
  const id = `f${(field.last = (field.last ?? 0) + 1)}`
  const error = h('span', { class: 'error', id: `${id}-error` })
  const about = hint ? h('span', { class: 'hint', id: `${id}-hint` }, hint) : null
  input.id = id
  input.setAttribute('aria-describedby', hint ? `${id}-error ${id}-hint` : `${id}-error`)
  const check = input.type === 'checkbox'
  const element = h('div', { class: check ? 'field check' : 'field' }, h('label', { for: id }, label), input, about, error)
  return {
    element,
    input,
    label: label.split(':')[0],
    // setError shows an error, or removes it if the text is empty.
    setError(text) {
      setText(error, text)
      if (text) input.setAttribute('aria-invalid', 'true')
      else input.removeAttribute('aria-invalid')
    },
  }
}

const endLength = 12 // characters at the end of a long name that stay in sight

// longName returns elements that show a name in one line. The middle of a name that does
// not fit is cut, because names often differ at their ends.
export function longName(name) {
  if (name.length < 2 * endLength) return [name]
  return [h('span', { class: 'start' }, name.slice(0, -endLength)), h('span', { class: 'end' }, name.slice(-endLength))]
}
