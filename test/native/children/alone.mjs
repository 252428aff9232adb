// A processor on the loop of a process that has nothing else to do.
import { openSync, unlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { native } from './addon.mjs'

const path = join(tmpdir(), `vhost-iotlb-${process.pid}`)
writeFileSync(path, new Uint8Array(4096))
let exits = 0
const descriptor = native.adopt(openSync(path, 'r+'))
unlinkSync(path)
const vcpu = native.vcpu(descriptor, 4096, () => {
  if (++exits < 100) return vcpu.resume(true)
  vcpu.close()
  process.stdout.write(`${exits} exits`)
})
vcpu.resume(true)
