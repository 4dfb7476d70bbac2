// Small charts, drawn as SVG.

import { h, setText, svg } from './dom.js'
import { rate } from './format.js'

const length = 62 // maximum number of samples in a sparkline: those of an hour, and the current one

// points returns the SVG points of a line whose newest value is at the right edge. It leaves
// out values that are null.
function points(values, width, height, max) {
  const step = width / (length - 1)
  const start = width - step * (values.length - 1)
  return values.map((v, i) => v !== null && `${(start + i * step).toFixed(1)},${(height - 1 - (v / max) * (height - 2)).toFixed(1)}`).filter(Boolean)
}

// spark returns a sparkline and the function that updates it, which takes the values and
// the largest value of all sparklines: they have one scale. It is logarithmic, because a
// queue may have a million times the messages of another. Screen readers skip the
// sparkline, because the current number stands beside it.
export function spark(kind) {
  const line = svg('polyline', { class: `line ${kind}` })
  const element = svg('svg', { class: 'spark', viewBox: '0 0 60 16', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, line)
  return {
    element,
    update: (values, max) => line.setAttribute('points', points(values.map((v) => v === null ? null : Math.log1p(v)), 60, 16, Math.log1p(Math.max(max, 9))).join(' ')),
  }
}

// spans are the times that a chart can show, in seconds, with their names.
const spans = [[3600, '1 hour'], [900, '15 minutes'], [120, '2 minutes']]

// spanChoice returns an input that chooses the time that charts show, and calls change
// with each choice.
export function spanChoice(change) {
  const input = h('select', { 'aria-label': 'Time span of the charts' }, spans.map(([seconds, name]) => h('option', { value: seconds }, name)))
  input.addEventListener('change', change)
  return input
}

const clockTime = new Intl.DateTimeFormat('sv', { timeStyle: 'short' })
const exactTime = new Intl.DateTimeFormat('sv', { timeStyle: 'medium' })

// chart returns a chart of several series with scales and a legend. A series has a name,
// a label, and a function show that formats its values; a rare one is left out while it is
// zero. The legend has the newest values, or those under the pointer. control stands after
// the title.
export function chart(title, series, control = null) {
  const width = 300
  const height = 80
  const parts = series.map((s) => {
    const area = svg('polygon', { class: `area ${s.name}` })
    const line = svg('polyline', { class: `line ${s.name}` })
    const value = h('b')
    return { ...s, area, line, value, legend: h('span', { class: `key ${s.name}` }, s.label, ' ', value) }
  })
  const name = h('span', { class: 'name' }, title)
  const top = h('span', { class: 'top' })
  const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    parts.map((p) => p.area), parts.map((p) => p.line))
  const cursor = h('span', { class: 'cursor', hidden: true })
  const plot = h('div', { class: 'plot' }, top, picture, cursor)
  const axis = h('div', { class: 'axis', 'aria-hidden': 'true' }, h('span'), h('span'), h('span'))
  let samples = []
  let from = 0
  let to = 1
  let pointer = null // its distance from the left edge as a part of the width; null if it is elsewhere

  plot.addEventListener('pointermove', (event) => {
    const box = plot.getBoundingClientRect()
    pointer = (event.clientX - box.left) / box.width
    showValues()
  })
  plot.addEventListener('pointerleave', () => {
    pointer = null
    showValues()
  })

  function showValues() {
    const at = pointer === null ? Infinity : from + pointer * (to - from)
    const sample = samples.reduce((best, s) => (best && Math.abs(best.at - at) < Math.abs(s.at - at) ? best : s), null)
    const isPast = pointer !== null && sample !== null
    setText(name, isPast ? `${title}, ${exactTime.format(sample.at)}` : title)
    cursor.hidden = !isPast
    if (isPast) cursor.style.left = `${(100 * (sample.at - from)) / (to - from)}%`
    for (const p of parts) setText(p.value, sample && sample[p.name] !== null ? p.show(sample[p.name]) : '–')
  }

  return {
    element: h('figure', { class: 'chart' }, h('figcaption', {}, name, control, parts.map((p) => p.legend)), plot, axis),
    // update takes samples, oldest first: {at} in milliseconds and the value of each
    // series, or null. It shows those of the last seconds, and no time before the first.
    update(all, seconds, now) {
      samples = all.filter((s) => s.at >= now - 1000 * seconds)
      from = Math.max(now - 1000 * seconds, Math.min(samples[0]?.at ?? now, now - 120_000))
      to = now
      const max = Math.max(...samples.flatMap((s) => series.map(({ name }) => s[name] ?? 0)), 1e-9)
      setText(top, max > 1e-9 ? series[0].show(max) : '')
      for (const p of parts) {
        p.legend.hidden = Boolean(p.rare) && !samples.some((s) => s[p.name] > 0)
        const line = p.legend.hidden ? [] : samples.filter((s) => s[p.name] !== null).map((s) =>
          `${((width * (s.at - from)) / (to - from)).toFixed(1)},${(height - 1 - (s[p.name] / max) * (height - 2)).toFixed(1)}`)
        p.line.setAttribute('points', line.join(' '))
        p.area.setAttribute('points', line.length ? `${line[0].split(',')[0]},${height} ${line.join(' ')} ${line.at(-1).split(',')[0]},${height}` : '')
      }
      ;[from, (from + to) / 2, to].forEach((at, i) => setText(axis.children[i], i === 2 ? 'now' : clockTime.format(at)))
      showValues()
    },
  }
}

// ratesChart returns the chart of the rates of publishes and deliveries, and of what
// becomes of them, with a control.
export const ratesChart = (control) => chart('Per second', [
  { name: 'published', label: 'Published', show: rate },
  { name: 'delivered', label: 'Delivered', show: rate },
  { name: 'acked', label: 'Acked', show: rate },
  { name: 'nacked', label: 'Nacked', show: rate },
  { name: 'dead_lettered', label: 'Dead', show: rate, rare: true },
  { name: 'expired', label: 'Expired', show: rate, rare: true },
], control)
