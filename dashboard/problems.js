// What is wrong with a queue.

import { count, duration, rate, sum } from './format.js'

const recent = 15 // samples of a rate over which consumers are judged; half a minute
const tooOld = 300 // seconds from which the age of a message is a problem

// recentRate returns the mean of the last samples of a rate. On a page that was just opened
// it is that of the last minutes, which the server knows.
function recentRate(q, name) {
  const values = q.history[name].slice(-recent)
  return values.length > 0 ? values.reduce((a, b) => a + b, 0) / values.length : q.recent[name] / q.recent.seconds
}

// isFailing reports whether more deliveries of a queue fail than succeed. If nothing was acked
// or nacked lately, as with few messages or long delays between their deliveries, the last
// minutes count.
export function isFailing(q, isDead) {
  const [nacked, acked] = [recentRate(q, 'nacked'), recentRate(q, 'acked')]
  if (nacked > 0 || acked > 0) return nacked > acked
  return q.recent.nacked > q.recent.acked && !q.paused && !hasNoConsumer(q, isDead)
}

// hasNoConsumer reports whether a queue has ready messages and nothing receives them.
export const hasNoConsumer = (q, isDead) => !isDead && !q.paused && q.messages?.ready > 0 && q.messages.in_flight === 0 && q.waiting_receivers === 0 && recentRate(q, 'delivered') === 0

// lateRate returns the rate of messages that are delivered again although they were not nacked:
// their ack deadline has passed. After a nack with a delay the message is delivered later, so
// the totals have to differ too.
const lateRate = (q) => (q.redelivered_total > q.nacked_total ? recentRate(q, 'redelivered') - recentRate(q, 'nacked') : 0)

// isFull reports whether a queue has the maximum number of messages.
const isFull = (q) => q.max_messages > 0 && q.messages !== null && sum(q.messages) >= q.max_messages

// problemOf returns the worst problem of a queue, null if it has none: its text, its
// kind ("bad", "warn" or "info"), and a rank to sort by, largest first. Within a kind of
// problem, queues are compared by powers of ten, so that rows do not move all the time.
export function problemOf(q, isDead) {
  const found = (kind, rank, amount, text) => ({ kind, rank: rank * 100 + Math.floor(Math.log10(Math.max(amount, 1))), text })
  const nacked = recentRate(q, 'nacked')
  const expired = recentRate(q, 'expired')
  const age = q.oldest_message_age_seconds
  if (isFailing(q, isDead)) return found('bad', 7, nacked, `failing: ${nacked >= 0.1 ? `${rate(nacked)}/s nacked` : `${count(q.recent.nacked)} nacked in ${duration(q.recent.seconds, 1)}`}`)
  if (isFull(q)) return found('bad', 6, q.max_messages, `full: ${count(q.max_messages)}, refuses publishes`)
  if (expired > 0 && !isDead) return found('bad', 6, expired, `losing: ${rate(expired)}/s expired`)
  if (hasNoConsumer(q, isDead)) return found('bad', 5, q.messages.ready, `no consumer, ${count(q.messages.ready)} waiting`)
  if (isDead) {
    const grown = growth(q)
    if (grown > 0) return found('bad', 4, grown, `${count(grown)} more dead`)
    return q.messages?.ready > 0 ? found('warn', 2, q.messages.ready, `${count(q.messages.ready)} dead`) : null
  }
  const late = lateRate(q)
  if (late > 0) return found('warn', 3, late, recentRate(q, 'acked') > 0 ? `acked too late: ${rate(late)}/s again` : `not acked: ${rate(late)}/s again`)
  if (q.paused) return found('info', 1, 1, 'paused')
  if (age >= tooOld) return found('warn', 3, age, `oldest ${duration(age, 1)}`)
  return null
}

// growth returns by how many messages a queue has grown in the last hour, or since the
// first count of the server if that was later. It is 0 if it has not grown.
export const growth = (q) => (q.messages && q.messages_hour_ago !== null && q.messages_hour_ago !== undefined ? Math.max(0, sum(q.messages) - q.messages_hour_ago) : 0)
