// Small charts, drawn as SVG.

import { h, rate, setText, svg } from './dom.js'

const length = 60 // samples

// points places values from right to left, the newest at the right edge.
function points(values, width, height, most) {
  const step = width / (length - 1)
  const start = width - step * (values.length - 1)
  return values.map((v, i) => `${(start + i * step).toFixed(1)},${(height - 1 - (v / most) * (height - 2)).toFixed(1)}`)
}

// spark returns a line without axes, and how to change it. Whoever cannot see it
// has the number beside it.
export function spark(kind) {
  const line = svg('polyline', { class: `line ${kind}` })
  const element = svg('svg', { class: 'spark', viewBox: '0 0 60 16', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, line)
  return {
    element,
    update: (values) => line.setAttribute('points', points(values, 60, 16, Math.max(...values, 1e-9)).join(' ')),
  }
}

// chart returns a larger one of several series with a scale and a legend.
// A series has a kind, a label, and show for its numbers.
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
      const most = Math.max(...all.flat(), 1e-9)
      setText(top, most > 1e-9 ? series[0].show(most) : '')
      parts.forEach((p, i) => {
        const values = all[i]
        const at = points(values, width, height, most)
        p.line.setAttribute('points', at.join(' '))
        p.area.setAttribute('points', at.length ? `${at[0].split(',')[0]},${height} ${at.join(' ')} ${width},${height}` : '')
        setText(p.value, values.length ? p.show(values.at(-1)) : '–')
      })
    },
  }
}

// ratesChart is the chart of what is published, delivered and acked.
export const ratesChart = () => chart('Messages per second', [
  { kind: 'published', label: 'Published', show: rate },
  { kind: 'delivered', label: 'Delivered', show: rate },
  { kind: 'acked', label: 'Acked', show: rate },
])
