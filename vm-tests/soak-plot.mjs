// Draws what `soak.mjs` sampled: `node vm-tests/soak-plot.mjs FROM.ndjson TO.svg`, on any machine.
import { readFileSync, writeFileSync } from 'node:fs'
import { svgOf } from './bench/plot.mjs'

const MiB = 2 ** 20

function line(samples, title, fields, { scale = 1, type = 'linear' } = {}) {
  const places = (value) => Math.round((value / scale) * 100) / 100
  return {
    title,
    width: 560,
    height: 90,
    data: {
      values: samples.flatMap((one) =>
        fields
          .filter((field) => one[field] !== null)
          .map((field) => ({ minute: one.seconds / 60, field, value: places(one[field]) })),
      ),
    },
    mark: { type: 'line', strokeWidth: 1 },
    encoding: {
      x: { field: 'minute', type: 'quantitative', title: null },
      y: { field: 'value', type: 'quantitative', title: null, scale: { type } },
      color: { field: 'field', title: null },
    },
  }
}

const [from, to] = process.argv.slice(2)
const lines = readFileSync(from, 'utf8').trim().split('\n')
const samples = lines.map((text) => JSON.parse(text))
const svg = await svgOf({
  $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
  background: 'white',
  config: { aria: false, axis: { grid: false, tickCount: 5 } },
  vconcat: [
    line(
      samples,
      'Memory of the process, slab of the kernel: MiB',
      ['rss', 'heapUsed', 'slab'],
      MiB,
    ),
    line(samples, 'Descriptors and threads', ['descriptors', 'threads']),
    line(samples, 'Questions answered and misses, so far', ['answers', 'misses']),
    line(samples, 'Milliseconds from a question to its answer', ['p50', 'p99'], { type: 'log' }),
  ],
  resolve: { scale: { color: 'independent' } },
})
if (svg === undefined) throw new Error('vega and vega-lite are not installed')
writeFileSync(to, `${svg.replace(/(\.\d)\d+/g, '$1')}\n`)
