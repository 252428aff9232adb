// What this process holds, and the kernel for it: descriptors, threads, memory in bytes.
import { readFileSync, readdirSync } from 'node:fs'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc')

/** After a garbage collection. `slab` is the kernel's as a whole: SUnreclaim. */
export function holdings() {
  collect()
  const { rss, heapUsed, external, arrayBuffers } = process.memoryUsage()
  const slab = /SUnreclaim:\s*(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))
  return {
    descriptors: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
    /** Guest memory that is mapped. */
    mappings: readFileSync('/proc/self/maps', 'utf8').match(/guest-memory/g)?.length ?? 0,
    rss,
    heapUsed,
    external,
    arrayBuffers,
    slab: Number(slab[1]) * 1024,
  }
}

holdings.collect = collect
