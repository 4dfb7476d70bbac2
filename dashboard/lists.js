// Lists that are read a page at a time, again and again.

import { h, setText } from './dom.js'

export const pageSize = 25

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

// newPager returns buttons for the previous and the next page, with the offset of the
// current page. The address keeps the offset, so that a link shows the same page. It calls
// load to load another page, and itemCount for the number of items of the current page:
// pages may differ in size.
export function newPager(load, itemCount) {
  const before = [] // offsets of the previous pages
  const goTo = (offset) => {
    pager.offset = offset
    history.replaceState(null, '', `${location.hash.split('?')[0]}${offset ? `?offset=${offset}` : ''}`)
    load()
  }
  const previous = h('button', { onclick: () => goTo(before.pop() ?? Math.max(0, pager.offset - pageSize)) }, 'Previous')
  const next = h('button', { onclick: () => { before.push(pager.offset); goTo(pager.offset + itemCount()) } }, 'Next')
  const range = h('span', { class: 'muted' })
  const pager = {
    offset: Number(new URLSearchParams(location.hash.split('?')[1]).get('offset')) || 0,
    element: h('div', { class: 'tools' }, previous, next, range),
    // update takes whether there are more pages, and a text that describes the current one.
    update(more, text = '') {
      previous.disabled = pager.offset === 0
      next.disabled = !more
      pager.element.hidden = previous.disabled && next.disabled && !text
      setText(range, text)
    },
  }
  return pager
}
