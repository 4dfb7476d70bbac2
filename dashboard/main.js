// The dashboard: which page is shown, whether the server is there, and the token.

import { call, token } from './api.js'
import { field, h, setCurrent, setText } from './dom.js'
import { inputs, Invalid, makeForm } from './dialogs.js'
import { listen, live, refresh, run } from './live.js'
import { queuePage } from './queue.js'
import { queuesPage } from './queues.js'
import { topicsPage } from './topics.js'

const main = document.getElementById('main')
const status = document.getElementById('status')
const forget = document.getElementById('forget')
let page = null // what is shown: {element, update(), close()}

// route shows the page that the address names.
function route() {
  const hash = location.hash || '#/'
  if (!hash.startsWith('#/')) return // of the link to the content
  const [kind, id, tab] = hash.slice(2).split('/').map(decoded)
  let next
  if (live.error?.status === 401) next = askForToken(live.error)
  else if (kind === 'queues' && id) next = page?.id === id && !page.asks ? page : queuePage(id)
  else if (kind === 'topics') next = topicsPage()
  else next = queuesPage()
  next.tab?.(tab || 'messages')
  document.title = `${id || (kind === 'topics' ? 'Topics' : 'Queues')} · queued`
  for (const a of document.querySelectorAll('nav [data-page]')) {
    setCurrent(a, a.dataset.page === (kind === 'topics' ? 'topics' : 'queues'))
  }
  if (next === page) return
  const turned = page !== null
  page?.close?.()
  page = next
  main.replaceChildren(page.element)
  page.update?.()
  if (page.focus) page.focus()
  else if (turned) main.focus({ preventScroll: true })
}

function decoded(text) {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

// askForToken is the page of a server that wants a token, or another one.
function askForToken(error) {
  const refused = token.get() !== null
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
    asks: true,
    focus: () => form.element.elements.token.focus(),
    element: h('section', { class: 'panel narrow' },
      h('h1', {}, 'Token required'),
      h('p', {}, refused ? `The server rejected the token: ${error.message}.` : 'Enter one of the tokens in the token file of the server.'),
      form.element),
  }
}

// showStatus says in a word how it is. It is read aloud when it changes.
function showStatus() {
  const { error } = live
  const away = error && error.status !== 401
  document.body.classList.toggle('away', Boolean(away))
  status.className = error ? 'bad' : 'good'
  if (!error) setText(status, live.server ? 'Live' : '')
  else if (error.status === 401) setText(status, 'No valid token')
  else setText(status, `${error.message.replace(/\.$/, '')}. Retrying…`)
  status.title = live.server ? `queued ${live.server.version}` : ''
  forget.hidden = token.get() === null
}

function update() {
  showStatus()
  if (Boolean(page?.asks) !== (live.error?.status === 401)) route()
  else page?.update?.()
}

forget.addEventListener('click', () => {
  token.forget()
  location.hash = '#/'
  location.reload() // what was seen with the token goes, too
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
