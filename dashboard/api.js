// Requests to the server, with the token if it wants one.

const tokenKey = 'queued-token'

// The token is kept for this tab only.
export const token = {
  get: () => sessionStorage.getItem(tokenKey),
  set: (value) => sessionStorage.setItem(tokenKey, value),
  forget: () => sessionStorage.removeItem(tokenKey),
}

// Refusal is an answer that is no success. Mistakes are those of a request, each
// with loc (where: "body", the field, …) and msg.
export class Refusal extends Error {
  constructor(status, detail) {
    const mistakes = Array.isArray(detail) ? detail : []
    super(mistakes.length ? mistakes.map((m) => `${m.loc.slice(1).join(' ')}: ${m.msg}`).join('; ') : detail || `HTTP status ${status}`)
    this.status = status
    this.mistakes = mistakes
  }
}

// Away is when there is no answer at all.
export class Away extends Error {
  constructor() {
    super('Cannot reach the server.')
  }
}

// path puts ids into a path. Two ids that browsers take for steps between folders
// are refused: a request for the group ".." of a queue would be one for the queue.
export function path(texts, ...ids) {
  return ids.reduce((all, id, i) => {
    if (id === '.' || id === '..') throw new Refusal(0, `A browser cannot request a path with the id ${JSON.stringify(id)}.`)
    return all + encodeURIComponent(id) + texts[i + 1]
  }, texts[0])
}

// clock is by how much the server is ahead of this machine, in milliseconds.
const clock = { ahead: 0 }

// now is the server's time in milliseconds.
export const now = () => Date.now() + clock.ahead

// Times of an answer are a second long, and these are of the server.
function readClock(answer) {
  const date = Date.parse(answer.headers.get('Date'))
  const ahead = date + 500 - Date.now()
  if (Math.abs(ahead - clock.ahead) > 2000) clock.ahead = ahead
}

// call makes a request, and returns what the answer says, null if it says nothing.
// A body is a value, or the text of one.
export async function call(method, target, body) {
  const headers = {}
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`
  let answer, text
  try {
    answer = await fetch(target, {
      method,
      headers,
      body: body === undefined || typeof body === 'string' ? body : JSON.stringify(body),
      signal: AbortSignal.timeout(method === 'GET' ? 15_000 : 120_000),
    })
    text = await answer.text()
  } catch {
    throw new Away()
  }
  readClock(answer)
  let value = null
  try {
    if (text) value = JSON.parse(text)
  } catch {
    throw new Refusal(answer.status, text.slice(0, 200)) // of a proxy, perhaps
  }
  if (!answer.ok) throw new Refusal(answer.status, value?.detail)
  return { value, text }
}

export const get = async (target) => (await call('GET', target)).value

// parseExactly is JSON.parse, but numbers keep all their digits when they are shown
// again, in browsers that can do that (ECMAScript proposal JSON.parse source text access).
export function parseExactly(text) {
  return JSON.parse(text, (_, value, context) => (typeof value === 'number' && JSON.rawJSON && context ? JSON.rawJSON(context.source) : value))
}

const pageSize = 100

// mayBeCut is how many characters a list has that may have fewer items than there
// are: the server cuts lists at some bytes.
export const mayBeCut = 1 << 20

// page returns a page of a list, and whether there may be another.
export async function page(target, offset) {
  try {
    const { value, text } = await call('GET', `${target}?offset=${offset}&limit=${pageSize}`)
    return { items: value.data, more: value.data.length === pageSize || text.length >= mayBeCut }
  } catch (error) {
    if (error.status !== 422) throw error
    const { data } = await get(`${target}?offset=${offset}`) // the server's -max-limit is lower
    return { items: data, more: data.length > 0 }
  }
}

// all returns the items of all pages of a list.
export async function all(target) {
  const items = []
  for (;;) {
    const { items: some, more } = await page(target, items.length)
    items.push(...some)
    if (!more) return items
  }
}
