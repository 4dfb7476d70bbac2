// Lists that are read a page at a time, again and again.

import { h, setText } from './dom.js'

export const pageSize = 25

// parameters returns the part of the address after "?". It has what a page shows, so that
// a link shows the same.
export const parameters = () => new URLSearchParams(location.hash.split('?').slice(1).join('?'))

// setParameters changes the part of the address after "?", without an entry in the history
// of the browser. It leaves out values that are empty.
export function setParameters(values) {
  const all = new URLSearchParams([...Object.entries({ ...Object.fromEntries(parameters()), ...values })].filter(([, value]) => value))
  history.replaceState(null, '', location.hash.split('?')[0] + (all.size ? `?${all}` : ''))
}

// poll calls f now, and then again and again with pauses, until close is called.
export function poll(f) {
  let timer = null
  let closed = false
  async function again() {
    clearTimeout(timer)
    const began = Date.now()
    if (!document.hidden) await f()
    // Slow requests take at most a tenth of the time.
    if (!closed) timer = setTimeout(again, Math.max(2000, 10 * (Date.now() - began)))
  }
  again()
  return {
    again,
    close() {
      closed = true
      clearTimeout(timer)
    },
  }
}

// newPager returns buttons for the previous and the next page, with the position of the
// current page, which is an offset or what the server calls next, and empty on the first
// page. The address keeps it. It calls load to load another page.
export function newPager(load) {
  const before = [] // positions of the previous pages
  let following = null // position of the next page
  const goTo = (position) => {
    pager.position = position
    setParameters({ from: position })
    load()
  }
  const previous = h('button', { onclick: () => goTo(before.pop() ?? '') }, 'Previous')
  const next = h('button', { onclick: () => { before.push(pager.position); goTo(following) } }, 'Next')
  const range = h('span', { class: 'muted' })
  const pager = {
    position: parameters().get('from') ?? '',
    element: h('div', { class: 'tools' }, previous, next, range),
    // reset goes to the page that the address has.
    reset() {
      before.length = 0
      pager.position = parameters().get('from') ?? ''
    },
    // update takes the position of the next page, null if there is none, and a text that
    // describes the current page.
    update(position, text = '') {
      following = position
      previous.disabled = pager.position === ''
      next.disabled = position === null
      pager.element.hidden = previous.disabled && next.disabled && !text
      setText(range, text)
    },
  }
  return pager
}
