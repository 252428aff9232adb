/** A loop made of fakes that is recorded, for the tests of traces. */
import type { LookAheadMode } from '../../lib/iotlb/look-ahead'
import type { MissHandler } from '../../lib/iotlb/miss-handler'
import type { MissHandlerOptions } from '../../lib/iotlb/miss-handler'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { TraceWriter, readTrace } from '../../lib/trace/codec'
import type { TraceEvent } from '../../lib/trace/event'
import { Recorder } from '../../lib/trace/recorder'
import { Refusing, hostMemory } from '../iotlb/support'

/** A clock that ticks at each look. */
export function ticks(): () => number {
  let now = 0
  return () => (now += 1000)
}

/** Events through the codec and back. */
export function stored(events: readonly TraceEvent[]): readonly TraceEvent[] {
  const chunks: Uint8Array[] = []
  const writer = new TraceWriter((chunk) => chunks.push(chunk.slice()))
  for (const event of events) writer.sink(event)
  writer.close()
  return [...readTrace(Buffer.concat(chunks)).events]
}

export interface Recording {
  readonly events: TraceEvent[]
  readonly recorder: Recorder
  readonly vhost: FakeVhost
  readonly channel: Refusing
  readonly space: FakeAddressSpace
  readonly handler: MissHandler
}

export function recording(
  options: Partial<MissHandlerOptions> & {
    readonly limit?: number
    readonly lookAhead?: LookAheadMode
  } = {},
): Recording {
  const { limit = 2048, ...rest } = options
  const events: TraceEvent[] = []
  const recorder = new Recorder((event) => events.push(event), { clock: ticks() })
  const vhost = new FakeVhost({ limit, queues: 3 })
  const channel = new Refusing(vhost)
  const space = new FakeAddressSpace()
  const handler = recorder.port().handler({
    ...{ channel, addressSpace: space, onError: () => undefined },
    memory: hostMemory({ gpaPage: 0, pages: 0x200 }, { gpaPage: 0x300, pages: 0x200 }),
    ...rest,
  })
  return { events, recorder, vhost, channel, space, handler }
}
