// HTTP requests to the server, with the token if there is one.

const tokenKey = 'queued-token'

// token is kept in the session storage of the browser tab.
export const token = {
  get: () => sessionStorage.getItem(tokenKey),
  set: (value) => sessionStorage.setItem(tokenKey, value),
  forget: () => sessionStorage.removeItem(tokenKey),
}

// RequestError is a response with an error status. Its mistakes are the validation
// errors, each with loc ("body", then the field and the path in it) and msg.
export class RequestError extends Error {
  constructor(status, detail) {
    const mistakes = Array.isArray(detail) ? detail : []
    super(mistakes.length ? mistakes.map((m) => `${m.loc.slice(1).join(' ')}: ${m.msg}`).join('; ') : detail || `HTTP status ${status}`)
    this.status = status
    this.mistakes = mistakes
  }
}

// NetworkError means that a request got no response.
export class NetworkError extends Error {
  constructor() {
    super('Cannot reach the server.')
  }
}

// path is a template tag that encodes ids in a path. It refuses "." and "..", which
// browsers resolve as path segments: a request for the group ".." of a queue would
// be a request for the queue.
export function path(texts, ...ids) {
  return ids.reduce((all, id, i) => {
    if (id === '.' || id === '..') throw new RequestError(0, `A browser cannot request a path with the id ${JSON.stringify(id)}.`)
    return all + encodeURIComponent(id) + texts[i + 1]
  }, texts[0])
}

// clock.ahead is the number of milliseconds that the server's clock is ahead.
const clock = { ahead: 0 }

// now returns the server's time in milliseconds.
export const now = () => Date.now() + clock.ahead

// readClock compares the clocks by the Date header of a response, which has a
// resolution of one second. It ignores differences that the resolution explains.
function readClock(response) {
  const date = Date.parse(response.headers.get('Date'))
  const ahead = date + 500 - Date.now()
  if (Math.abs(ahead - clock.ahead) > 2000) clock.ahead = ahead
}

// request makes a request and returns the response with its text. A body is a value, or
// JSON text.
async function request(method, target, body, headers = {}) {
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`
  let response, text
  try {
    response = await fetch(target, {
      method,
      headers,
      body: body === undefined || typeof body === 'string' ? body : JSON.stringify(body),
      signal: AbortSignal.timeout(method === 'GET' ? 15_000 : 120_000),
    })
    text = await response.text()
  } catch {
    throw new NetworkError()
  }
  readClock(response)
  return { response, text }
}

// call makes a request and returns the headers of the response, and its body as text and
// as a value, which is null if the body is empty. A request body is a value, or JSON text.
export async function call(method, target, body, headers) {
  const { response, text } = await request(method, target, body, headers)
  let value = null
  try {
    if (text) value = JSON.parse(text)
  } catch {
    throw new RequestError(response.status, text.slice(0, 200)) // an error page of a proxy, for example
  }
  if (!response.ok) throw new RequestError(response.status, value?.detail ?? value?.message)
  return { value, text, headers: response.headers }
}

// callSQS calls an action of SQS's API and returns the value of the response.
export const callSQS = async (action, input) =>
  (await call('POST', '/', input, { 'Content-Type': 'application/x-amz-json-1.0', 'X-Amz-Target': `AmazonSQS.${action}` })).value

// text requests a target and returns the text of the response.
export async function text(target) {
  const { response, text } = await request('GET', target)
  if (!response.ok) throw new RequestError(response.status, text.slice(0, 200))
  return text
}

// get requests a target and returns the value of the response.
export const get = async (target) => (await call('GET', target)).value

// parseExactly parses JSON so that numbers keep all their digits when they are
// encoded again. It needs a browser with JSON.rawJSON (ECMAScript proposal
// JSON.parse source text access); in others it is JSON.parse.
export function parseExactly(text) {
  return JSON.parse(text, (_, value, context) => (typeof value === 'number' && JSON.rawJSON && context ? JSON.rawJSON(context.source) : value))
}

const pageSize = 100

// maybeTruncated reports whether the server may have left out items of a list, because
// it limits the bytes of a response.
export const maybeTruncated = (text) => text.length >= 1 << 20

// page returns a page of a list, and whether there may be more pages.
export async function page(target, offset) {
  try {
    const { value, text } = await call('GET', `${target}?offset=${offset}&limit=${pageSize}`)
    return { items: value.data, more: value.data.length === pageSize || maybeTruncated(text) }
  } catch (error) {
    if (error.status !== 422) throw error
    const { data } = await get(`${target}?offset=${offset}`) // the server's -max-limit is below pageSize
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
