/**
 * The entry of a miss worker: a miss handler of its own, on an event loop with nothing else on it.
 *
 * It has a duplicate of the vhost descriptor, a view of guest memory and a twin of the address
 * space; it answers misses, and tells its maker (`miss-worker.ts`) of faults. It is loaded by a
 * Worker alone, from the compiled library.
 */
import { join, resolve } from 'node:path'
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import type { MessagePort } from 'node:worker_threads'
import { messageOf, succeeded } from '../errors'
import type { RingOutlook } from '../iotlb/look-ahead'
import { MessageLog } from '../iotlb/message-log'
import { MissHandler } from '../iotlb/miss-handler'
import { namedPolicy } from '../iotlb/reply-policy'
import { SharedTable } from '../iotlb/shared-table'
import { currentThread } from '../iotlb/thread-identity'
import { Turnstile } from '../iotlb/turnstile'
import type { UnansweredMiss } from '../iotlb/unanswered'
import type { AddressSpace, SharedAddressSpaceMaker } from '../memory/address-space'
import { GuestMemory } from '../memory/guest-memory'
import { native } from '../native'
import type { Descriptor } from '../native'
import { translatedView } from '../virtio/dma-view'
import type { DmaView } from '../virtio/dma-view'
import { KernelChannel } from './kernel-channel'
import { MOST_POSTED, STAGE, WORD } from './miss-thread'
import type { FromMissThread, MissThreadStart, ToMissThread } from './miss-thread'
import { looking } from './net-pair-options'

class MissThread {
  readonly #control: Int32Array
  readonly #port: MessagePort
  readonly #descriptor: Descriptor
  readonly #memory: GuestMemory
  readonly #channel: KernelChannel
  readonly #table: SharedTable
  readonly #handler: MissHandler
  readonly #view: DmaView
  readonly #rings = new Map<number, RingOutlook>()
  /** Messages taken, as `WORD.sent` counts them. */
  #taken = 0
  /** A miss was refused since `#publish`. */
  #faulted = false

  constructor(start: MissThreadStart, port: MessagePort) {
    const { words, fd, version, limit, busyPollMicroseconds, policy } = start
    const { control } = words
    this.#control = control
    this.#port = port
    const descriptor = native().duplicate(fd)
    if (typeof descriptor === 'number') succeeded(descriptor, 'fcntl')
    this.#descriptor = descriptor as Descriptor
    this.#memory = GuestMemory.fromShared(start.memory)
    const space = twin(start, this.#memory, (refusal) => {
      this.#post({ kind: 'refused', refusal })
    })
    this.#view = translatedView(this.#memory, looking(space))
    this.#channel = new KernelChannel({
      descriptor: this.#descriptor,
      version,
      limit,
      busyPollMicroseconds,
    })
    this.#table = new SharedTable({
      channel: this.#channel,
      turnstile: new Turnstile({ words: control }),
      log: new MessageLog(words.log),
      answers: true,
      serving: () => {
        this.#takeAll()
        return control[WORD.serving] !== 0
      },
      answered: this.#publish,
    })
    this.#handler = new MissHandler({
      channel: this.#table,
      addressSpace: space,
      memory: this.#memory,
      counters: words.counters,
      ...policy,
      reply: namedPolicy(policy.reply),
      onObsolete: () => {
        this.#post({ kind: 'obsolete' })
      },
      onFault: this.#unanswered('fault'),
      onStop: this.#unanswered('stop'),
      onDrop: this.#unanswered('drop'),
    })
    this.#table.attach(this.#handler)
  }

  readonly take = (message: ToMissThread): void => {
    this.#taken = (this.#taken + 1) | 0
    switch (message.kind) {
      case 'whole':
        this.#whole(message.firstPage, message.lastPage, message.wanted)
        break
      case 'ring': {
        const { id, ring, availIndex } = message
        this.#rings.set(id, this.#handler.lookInto(this.#view, ring, availIndex))
        break
      }
      case 'unring':
        this.#rings.get(message.id)?.[Symbol.dispose]()
        this.#rings.delete(message.id)
        break
      case 'look':
        this.#table.turn(this.#publish)
        break
      case 'quit':
        // Not in the middle of a turn, where `#takeAll` may have found it.
        setImmediate(() => {
          this.#quit()
        })
        break
    }
  }

  /** What was said before the device asked is known before it is answered. */
  #takeAll(): void {
    if (Atomics.load(this.#control, WORD.sent) === this.#taken) return
    for (;;) {
      const received = receiveMessageOnPort(this.#port) as { message: ToMissThread } | undefined
      if (received === undefined) return
      this.take(received.message)
    }
  }

  /** The maker has granted it already; this is to remember it. */
  #whole(firstPage: number, lastPage: number, wanted: 1 | 2 | 3): void {
    this.#table.turn(() => {
      if (this.#control[WORD.serving] !== 0) this.#handler.preload(firstPage, lastPage, wanted)
    })
  }

  readonly #publish = (): void => {
    const control = this.#control
    control[WORD.unknownMessages] = this.#channel.unknownMessages
    if (!this.#faulted && control[WORD.unanswered] === 0) return
    const { unanswered, forgotten } = this.#handler.stats()
    control[WORD.unanswered] = unanswered
    control[WORD.forgotten] = forgotten
    this.#faulted = false
  }

  #unanswered(what: 'fault' | 'stop' | 'drop'): (miss: UnansweredMiss) => void {
    return (miss) => {
      this.#faulted = true
      this.#post({ kind: 'unanswered', what, miss })
    }
  }

  /** Not more than the maker takes in one of its turns, however long that is. */
  #post(message: FromMissThread): void {
    if (Atomics.load(this.#control, WORD.posted) >= MOST_POSTED) return
    Atomics.add(this.#control, WORD.posted, 1)
    this.#port.postMessage(message)
  }

  #quit(): void {
    this.#handler.close()
    this.#channel.close()
    this.#descriptor.close()
    this.#memory.close()
    this.#port.close()
    Atomics.store(this.#control, WORD.stage, STAGE.ended)
    Atomics.notify(this.#control, WORD.stage)
  }
}

function twin(
  { translation }: MissThreadStart,
  memory: GuestMemory,
  refused: (refusal: unknown) => void,
): AddressSpace {
  const module = resolve(join(__dirname, '..'), translation.module)
  // eslint-disable-next-line @typescript-eslint/no-require-imports -- its name is data
  const makers = require(module) as Readonly<Record<string, SharedAddressSpaceMaker | undefined>>
  const make = makers[translation.export]
  if (make === undefined) throw new TypeError(`${module} exports no ${translation.export}`)
  return make(translation.data, memory, refused)
}

function run(start: MissThreadStart, port: MessagePort): void {
  const { control, failure } = start.words
  try {
    const { thread, born } = currentThread()
    control[WORD.thread] = thread
    control[WORD.born] = born
    port.on('message', new MissThread(start, port).take)
    Atomics.store(control, WORD.stage, STAGE.ready)
  } catch (error) {
    const message = messageOf(error)
    failure.set(new TextEncoder().encode(message).subarray(0, failure.length))
    Atomics.store(control, WORD.stage, STAGE.failed)
  }
  Atomics.notify(control, WORD.stage)
}

if (parentPort !== null) run(workerData as MissThreadStart, parentPort)
