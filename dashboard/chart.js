// Small charts, drawn as SVG.

import { h, rate, setText, svg } from './dom.js'

const length = 60 // maximum number of samples in a chart

// points returns the SVG points of a line whose newest value is at the right edge.
function points(values, width, height, max) {
  const step = width / (length - 1)
  const start = width - step * (values.length - 1)
  return values.map((v, i) => `${(start + i * step).toFixed(1)},${(height - 1 - (v / max) * (height - 2)).toFixed(1)}`)
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
    update: (values, max) => line.setAttribute('points', points(values.map(Math.log1p), 60, 16, Math.log1p(Math.max(max, 9))).join(' ')),
  }
}

// chart returns a chart of several series with a scale and a legend. A series has a
// kind, a label, and a function show that formats its values.
export function chart(title, series) {
  const width = 300
  const height = 80
  const parts = series.map((s) => {
    const area = svg('polygon', { class: `area ${s.kind}` })
    const line = svg('polyline', { class: `line ${s.kind}` })
    const value = h('b')
    return { ...s, area, line, value, legend: h('span', { class: `key ${s.kind}` }, s.label, ' ', value) }
  })
  const top = h('span', { class: 'top' })
  const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    parts.map((p) => p.area), parts.map((p) => p.line))
  return {
    element: h('figure', { class: 'chart' },
      h('figcaption', {}, h('span', { class: 'name' }, title), parts.map((p) => p.legend)),
      h('div', { class: 'plot' }, top, picture)),
    // update takes the values of each series, oldest first.
    update(all) {
      const max = Math.max(...all.flat(), 1e-9)
      setText(top, max > 1e-9 ? series[0].show(max) : '')
      parts.forEach((p, i) => {
        const values = all[i]
        const line = points(values, width, height, max)
        p.line.setAttribute('points', line.join(' '))
        p.area.setAttribute('points', line.length ? `${line[0].split(',')[0]},${height} ${line.join(' ')} ${width},${height}` : '')
        setText(p.value, values.length ? p.show(values.at(-1)) : '–')
      })
    },
  }
}

// ratesChart returns the chart of the rates of publishes, deliveries, acks and nacks.
export const ratesChart = () => chart('Per second', [
  { kind: 'published', label: 'Published', show: rate },
  { kind: 'delivered', label: 'Delivered', show: rate },
  { kind: 'acked', label: 'Acked', show: rate },
  { kind: 'nacked', label: 'Nacked', show: rate },
])

// charted are the rates in the chart, in its order.
export const charted = ['published', 'delivered', 'acked', 'nacked']
