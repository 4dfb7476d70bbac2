// The entry point: routing, the connection status, and the page that asks for a token.

import { call, token } from './api.js'
import { inputs, Invalid, makeForm } from './dialogs.js'
import { field, h, setCurrent, setText } from './dom.js'
import { listen, live, refresh, run } from './live.js'
import { messagePage } from './message.js'
import { queuePage } from './queue.js'
import { queuesPage } from './queues.js'
import { serverPage } from './server.js'
import { topicsPage } from './topics.js'

const main = document.getElementById('main')
const status = document.getElementById('status')
const forgetToken = document.getElementById('forget-token')
let page = null // the current page: {element, update(), close()}

// route shows the page that the hash of the address names.
function route() {
  const hash = location.hash || '#/'
  if (!hash.startsWith('#/')) return // the link that skips to the content
  const [steps, ...parameters] = hash.slice(2).split('?')
  const [kind, id, tab] = steps.split('/').map(decode)
  let next
  if (live.error?.status === 401) next = tokenPage(live.error)
  else if (kind === 'queues' && id) next = page?.id === id ? page : queuePage(id)
  else if (kind === 'messages' && id) next = messagePage(id)
  else if (kind === 'topics') next = topicsPage()
  else if (kind === 'server') next = serverPage()
  else next = queuesPage(new URLSearchParams(parameters.join('?')))
  next.showTab?.(tab || 'messages')
  const section = { topics: 'Topics', server: 'Server' }[kind] ?? 'Queues'
  document.title = `${id || section} · queued`
  for (const a of document.querySelectorAll('nav [data-page]')) {
    setCurrent(a, a.dataset.page === section.toLowerCase())
  }
  if (next === page) return
  const isFirst = page === null
  page?.close?.()
  page = next
  main.replaceChildren(page.element)
  page.update?.()
  if (page.focus) page.focus()
  else if (!isFirst) main.focus({ preventScroll: true })
}

function decode(text) {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

// tokenPage returns the page that asks for a token: the server requires one, or has
// rejected the one that the browser tab keeps.
function tokenPage(error) {
  const rejected = token.get() !== null
  const form = makeForm({
    fields: { token: field('Token', inputs.text({ name: 'token', type: 'password', autocomplete: 'off' }), 'Kept in this browser tab only.') },
    action: 'Continue',
    cancel: false,
    async send(input) {
      const before = token.get()
      const value = input.token.value.trim()
      if (!/^[\x21-\x7e]+$/.test(value)) throw new Invalid('token', 'A token consists of printable ASCII characters without spaces.')
      token.set(value)
      try {
        await call('GET', '/overview')
      } catch (error) {
        if (before === null) token.forget()
        else token.set(before)
        throw error
      }
      refresh()
    },
  })
  return {
    asksForToken: true,
    focus: () => form.element.elements.token.focus(),
    element: h('section', { class: 'panel narrow' },
      h('h1', {}, 'Token required'),
      h('p', {}, rejected ? `The server rejected the token: ${error.message}.` : 'Enter one of the tokens in the token file of the server.'),
      form.element),
  }
}

// showStatus shows the state of the connection. Screen readers announce its changes.
function showStatus() {
  const { error } = live
  document.body.classList.toggle('offline', Boolean(error) && error.status !== 401)
  status.className = error ? 'bad' : 'good'
  if (!error) setText(status, live.server ? 'Live' : '')
  else if (error.status === 401) setText(status, 'No valid token')
  else setText(status, `${error.message.replace(/\.$/, '')}. Retrying…`)
  status.title = live.server ? `queued ${live.server.version}` : ''
  forgetToken.hidden = token.get() === null
}

function update() {
  showStatus()
  if (Boolean(page?.asksForToken) !== (live.error?.status === 401)) route()
  else page?.update?.()
}

forgetToken.addEventListener('click', () => {
  token.forget()
  location.hash = '#/'
  location.reload() // discards everything that was read with the token
})
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault()
  main.focus()
})
addEventListener('hashchange', () => {
  route()
  window.scrollTo(0, 0)
})
listen(update)
route()
run()
