// The whole stack on a tap, for a process, a Worker or a soak to run: it asks the host for the
// address of the tap by ARP, so that each question makes one frame go out and one come in.
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'

/** What is built, loaded by whoever has no library of his own to hand over. */
export const built = () => createRequire(import.meta.url)('../../dist/index.js')

export const REQUESTER = '00:03.0'
const MAC = [0x02, 0, 0, 0, 0, 0x01]
const ETHERTYPE_ARP = 0x0806
const OPERATION_REPLY = 2

/** Brings a tap up with an address to ask for; needs CAP_NET_ADMIN. */
export function address(name, host) {
  writeFileSync(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`, '1')
  execFileSync('ip', ['addr', 'add', `${host}/24`, 'dev', name])
  execFileSync('ip', ['link', 'set', name, 'up'])
}

function question(host) {
  const target = host.split('.').map(Number)
  const frame = new Uint8Array(60)
  frame.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ...MAC, 0x08, 0x06])
  frame.set([0, 1, 8, 0, 6, 4, 0, 1, ...MAC, ...target.slice(0, 3), 200], 14)
  frame.set(target, 38)
  return frame
}

function isAnswer(frame) {
  return ((frame[12] << 8) | frame[13]) === ETHERTYPE_ARP && frame[21] === OPERATION_REPLY
}

export class Stack {
  #question
  #answered = () => {}

  /** @param options `host`, and a `tap`; `mapping`; `memory` in bytes; `device`, `driver`: more */
  constructor(options) {
    const { host, tap, mapping = 'strict', device = {}, driver = {}, memory = 2 ** 24 } = options
    const { GuestMemory, IntelIommu, NetDriver, VhostNet } = options.library ?? built()
    this.#question = question(host)
    this.tap = tap
    this.memory = GuestMemory.allocate(memory)
    this.iommu = new IntelIommu(this.memory)
    const addressSpace =
      mapping === 'off' ? {} : { addressSpace: this.iommu.addressSpace(REQUESTER) }
    this.nic = VhostNet.open({ memory: this.memory, backend: tap, ...addressSpace, ...device })
    this.driver = NetDriver.attach(this.nic, {
      memory: this.memory,
      mapping,
      queueSize: 64,
      ...(mapping === 'off' ? {} : { iommu: this.iommu }),
      ...driver,
    })
    this.driver.onFrame((frame) => {
      if (isAnswer(frame)) this.#answered()
    })
  }

  /** Started. Without a tap it makes one, with the host's address. */
  static async open(options) {
    const { library = built(), host } = options
    const tap = options.tap ?? library.Tap.open('stack%d', { up: false })
    if (options.tap === undefined) address(tap.name, host)
    const stack = new Stack({ ...options, library, tap })
    try {
      await stack.driver.start()
      return stack
    } catch (error) {
      stack.release()
      throw error
    }
  }

  /** Milliseconds from a question to its answer; -1 where none came in time. */
  async ask(within = 5000) {
    const began = performance.now()
    const answered = new Promise((resolve) => {
      this.#answered = () => resolve(performance.now() - began)
    })
    if (!this.driver.send(this.#question)) return -1
    let timer
    const late = new Promise((resolve) => {
      timer = setTimeout(resolve, within, -1)
    })
    const took = await Promise.race([answered, late])
    clearTimeout(timer)
    return took
  }

  /** Everything but the tap. */
  release() {
    this.driver.close()
    this.nic.close()
    this.memory.close()
  }

  close() {
    this.release()
    this.tap.close()
  }
}
