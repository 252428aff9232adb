/** Samples as text: a screen of 80 columns, or lines for who reads no screen. Pure. */
import { PAGE_SIZE, READ, WRITE } from '../address'
import { rates } from './monitor'
import type { DeviceSample, MonitorSample } from './monitor'

const COLUMNS = 80
/** Cells of one row of the map. */
const MAP_CELLS = 48
/** Rows of the map of one device, at most. */
const MAP_ROWS = 4
/** Entries further apart than this many pages are drawn in rows of their own. */
const GAP = 4096
/** How full a cell is, from nothing to all. */
const SHADES = [' ', '░', '▒', '▓', '█'] as const
const NONE = '-'

/** Nothing in it is longer than 80 columns. */
export function screen(before: MonitorSample, now: MonitorSample): readonly string[] {
  const lines = [
    `vhost-iotlb top   process ${now.pid}   ${now.devices.length} devices`,
    '',
    row(['', 'chains/s', 'misses/s', 'upd/s', 'inv/s', 'hit rate', 'entries', 'mapped', 'stalls']),
  ]
  const between = rates(before, now)
  for (const [i, device] of now.devices.entries()) {
    const { stats, bytesMapped } = device
    const { chains, misses, updates, invalidates, hitRate } = between[i]
    lines.push(
      row([
        ...[device.name, whole(chains), whole(misses), whole(updates), whole(invalidates)],
        ...[percent(hitRate), whole(stats.entries), bytes(bytesMapped), whole(stats.stalls)],
      ]),
    )
  }
  lines.push(
    '',
    row(['', 'inv mean', 'inv 99 %', 'evicted', 'faults', 'waiting', 'ahead', 'of all']),
  )
  const misses = now.devices.reduce((sum, { stats }) => sum + stats.misses, 0)
  for (const [i, { name, stats }] of now.devices.entries()) {
    const { invalidationMicroseconds, slowInvalidationMicroseconds } = between[i]
    const share = misses === 0 ? undefined : stats.misses / misses
    lines.push(
      row([
        ...[name, micro(invalidationMicroseconds), micro(slowInvalidationMicroseconds)],
        ...[whole(stats.evictions), whole(stats.faults), whole(stats.unanswered)],
        ...[whole(stats.ahead), percent(share)],
      ]),
    )
  }
  lines.push('', `iovas that a device can reach   ${SHADES[1]} some … ${SHADES[4]} all of a cell`)
  for (const device of now.devices) lines.push(...iovaMap(device))
  return lines.map((line) => line.slice(0, COLUMNS))
}

/** One line a device. */
export function plainLines(before: MonitorSample, now: MonitorSample): readonly string[] {
  return rates(before, now).map(({ name, chains, misses, updates, invalidates, hitRate }, i) => {
    const { stats, bytesMapped } = now.devices[i]
    const flow = `${whole(chains)} chains/s, ${whole(misses)} misses/s, hit rate ${percent(hitRate)}`
    const messages = `${whole(updates)} updates/s, ${whole(invalidates)} invalidates/s`
    const held = `${stats.entries} entries, ${bytes(bytesMapped)}, ${stats.stalls} stalls`
    return `${name}: ${flow}; ${messages}; ${held}`
  })
}

/** Rows of cells, one for each cluster of entries; the lowest iovas first. */
export function iovaMap({ name, entries }: DeviceSample): readonly string[] {
  const clusters: (readonly [number, number, number])[][] = []
  let end = -Infinity
  for (const entry of entries) {
    if (clusters.length === 0 || entry[0] - end > GAP) clusters.push([])
    clusters[clusters.length - 1].push(entry)
    end = Math.max(end, entry[1])
  }
  const shown = clusters.slice(0, MAP_ROWS).map((cluster) => `${name.padEnd(8)}${mapRow(cluster)}`)
  if (clusters.length === 0) shown.push(`${name.padEnd(8)}none`)
  const left = clusters.length - shown.length
  return left > 0 ? [...shown, `${' '.repeat(8)}and ${left} ranges above`] : shown
}

function mapRow(cluster: readonly (readonly [number, number, number])[]): string {
  const first = cluster[0][0]
  const last = cluster.reduce((most, [, to]) => Math.max(most, to), first)
  const pages = last - first + 1
  // Cells of a power of two pages, so that their size can be said.
  const cell = 2 ** Math.max(0, Math.ceil(Math.log2(pages / MAP_CELLS)))
  const filled = new Float64Array(Math.ceil(pages / cell))
  for (const [from, to] of cluster) {
    for (let at = Math.floor((from - first) / cell); at <= Math.floor((to - first) / cell); at++) {
      const begin = Math.max(from, first + at * cell)
      filled[at] += Math.min(to, first + (at + 1) * cell - 1) - begin + 1
    }
  }
  const shades = Array.from(filled, (covered) => SHADES[Math.ceil((covered / cell) * 4)]).join('')
  const size = bytes(cell * PAGE_SIZE)
  return `0x${(first * PAGE_SIZE).toString(16).padStart(9, '0')} ${shades.padEnd(MAP_CELLS)} ${size} ${rights(cluster)}`
}

/** What all of a cluster may be used for, in two letters. */
function rights(cluster: readonly (readonly [number, number, number])[]): string {
  const any = cluster.reduce((bits, [, , access]) => bits | access, 0)
  return `${(any & READ) === 0 ? NONE : 'r'}${(any & WRITE) === 0 ? NONE : 'w'}`
}

function row(cells: readonly string[]): string {
  return cells.map((cell, i) => (i === 0 ? cell.padEnd(8) : cell.padStart(9))).join('')
}

function whole(count: number): string {
  return count >= 1e7 ? `${(count / 1e6).toFixed(1)}M` : String(Math.round(count))
}

function percent(share: number | undefined): string {
  return share === undefined ? NONE : `${(share * 100).toFixed(2)} %`
}

function micro(microseconds: number | undefined): string {
  return microseconds === undefined ? NONE : `${microseconds.toFixed(0)} µs`
}

function bytes(count: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB']
  let [value, unit] = [count, 0]
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`
}
