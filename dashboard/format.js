// The formatting of numbers and times.

import { now } from './api.js'

const full = new Intl.NumberFormat('en')
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 })

// count formats a number of messages. It abbreviates numbers from 100,000.
export const count = (n) => (n === null || n === undefined ? '–' : n < 100_000 ? full.format(n) : compact.format(n))

// exact formats a number of messages with all digits and its noun.
export const exact = (n) => `${full.format(n)} ${n === 1 ? 'message' : 'messages'}`

// deliveries formats a number of deliveries with its noun.
export const deliveries = (n) => `${full.format(n)} ${n === 1 ? 'delivery' : 'deliveries'}`

// rate formats a number per second.
export function rate(n) {
  if (n === null || n === undefined) return '–'
  if (n === 0) return '0'
  return n < 10 ? n.toFixed(1) : count(Math.round(n))
}

// duration formats seconds by their largest units, two unless parts is 1.
export function duration(seconds, parts = 2) {
  const left = Math.max(0, Math.round(seconds))
  const units = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]]
  const first = units.findIndex(([, size]) => left >= size)
  if (first < 0) return '0 s'
  const [unit, size] = units[first]
  const [nextUnit, nextSize] = units[first + 1] || []
  const rest = parts > 1 && nextSize && Math.floor((left % size) / nextSize)
  return `${Math.floor(left / size)} ${unit}${rest ? ` ${rest} ${nextUnit}` : ''}`
}

// sum adds up the numbers of messages in each state.
export const sum = (messages) => Object.values(messages).reduce((a, b) => a + b, 0)

// breakdown formats the number of messages in each state. It is empty if all are in one.
export function breakdown(messages) {
  const parts = Object.entries(messages).filter(([, n]) => n > 0).map(([state, n]) => `${count(n)} ${state.replace('_', ' ')}`)
  return parts.length > 1 ? ` (${parts.join(', ')})` : ''
}

// time parses a time of the API, which is in UTC, and returns it in milliseconds.
export const time = (text) => Date.parse(`${text}Z`)

// when formats a time of the API in the time zone of the browser, and how far away it is.
// The date is left out today.
export function when(text) {
  const at = new Date(time(text))
  const isToday = at.toDateString() === new Date(now()).toDateString()
  const seconds = (at - now()) / 1000
  return `${(isToday ? clockTime : local).format(at)} (${seconds > 1 ? `in ${duration(seconds)}` : `${duration(-seconds, 1)} ago`})`
}

const local = new Intl.DateTimeFormat('sv', { dateStyle: 'short', timeStyle: 'medium' })
const clockTime = new Intl.DateTimeFormat('sv', { timeStyle: 'medium' })

// ago formats the time that has passed since a time of the API.
export const ago = (text) => `${duration((now() - time(text)) / 1000)} ago`

const unitNames = [['day', 86400], ['hour', 3600], ['minute', 60], ['second', 1]]

// span formats a number of seconds exactly, by the largest unit that divides it.
export function span(seconds) {
  const [name, size] = unitNames.find(([, size]) => seconds % size === 0 && seconds >= size) ?? ['second', 1]
  return `${seconds / size} ${name}${seconds === size ? '' : 's'}`
}

// secondsIn returns the seconds in a text such as "4 days", "4d" or "30", null if it is
// empty. Any other text is returned as it is, for the server to reject.
export function secondsIn(text) {
  if (text.trim() === '') return null
  const m = /^(-?\d+) *(|s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)$/i.exec(text.trim())
  if (!m) return text.trim()
  const size = { s: 1, m: 60, h: 3600, d: 86400 }[m[2][0]?.toLowerCase() ?? 's']
  return Number.isSafeInteger(m[1] * size) ? m[1] * size : text.trim()
}
