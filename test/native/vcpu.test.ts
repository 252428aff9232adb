/**
 * The thread of a processor, without KVM: a file stands for its descriptor. It can be mapped, and
 * answers ENOTTY to KVM_RUN.
 */
import { writeFileSync } from 'node:fs'
import { afterAll, describe, expect, it } from 'vitest'
import { native } from '../../lib/native'
import type { Descriptor, VcpuThread } from '../../lib/native'
import { EBADF, O_RDWR, PAGE, cleanUp, eventfd, made, run, temporary } from './support'

const ENOTTY = -25
const ENODEV = -19

afterAll(cleanUp)

function area(): Descriptor {
  const path = temporary('area')
  writeFileSync(path, new Uint8Array(2 * PAGE).fill(7))
  return made(native().open(path, O_RDWR))
}

/** A processor, and what KVM_RUN answered so far, with a way to wait for more. */
function start(descriptor = area()) {
  const answers: number[] = []
  let wake: () => void = () => undefined
  const vcpu = made(
    native().vcpu(descriptor, 2 * PAGE, (result) => {
      answers.push(result)
      wake()
    }),
  )
  const next = (): Promise<void> =>
    new Promise((resolve) => {
      wake = resolve
    })
  return { vcpu, answers, next, descriptor }
}

async function turns(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 1))
}

describe.each([
  ['in a thread of its own', false],
  ['on the loop', true],
])('a processor %s', (_, onLoop) => {
  const thread = () => start()

  it('stands still until it is resumed, and calls once for each time', async () => {
    const { vcpu, answers, next } = thread()
    await turns()
    expect(answers).toEqual([])
    for (const expected of [1, 2, 3]) {
      const called = next()
      vcpu.resume(onLoop)
      await called
      await turns()
      expect(answers).toHaveLength(expected)
    }
    expect(answers).toEqual([ENOTTY, ENOTTY, ENOTTY])
    vcpu.close()
  })

  it('enters the guest once, however often it is resumed while it is there', async () => {
    const { vcpu, answers, next } = thread()
    const called = next()
    vcpu.resume(onLoop)
    vcpu.resume(onLoop)
    vcpu.resume(onLoop)
    await called
    await turns()
    expect(answers).toHaveLength(1)
    vcpu.close()
  })

  it('shares the bytes of the descriptor, and clears the flag of an interruption', async () => {
    const { vcpu, next } = thread()
    const bytes = new Uint8Array(vcpu.run)
    expect([bytes.length, bytes[2 * PAGE - 1]]).toEqual([2 * PAGE, 7])
    const called = next()
    vcpu.resume(onLoop)
    vcpu.interrupt()
    await called
    expect(bytes[1]).toBe(0)
    vcpu.close()
  })

  it('is gone after close, with its memory: twice is a no-op', async () => {
    const { vcpu, answers } = thread()
    vcpu.resume(onLoop)
    vcpu.close()
    vcpu.close()
    vcpu.resume(onLoop)
    vcpu.interrupt()
    expect(vcpu.run.byteLength).toBe(0)
    await turns()
    expect(answers).toEqual([])
  })

  it('ends with its descriptor, which is never another file of that number', () => {
    const { vcpu, descriptor } = thread()
    vcpu.resume(onLoop)
    descriptor.close()
    expect(vcpu.run.byteLength).toBe(0)
  })

  it('leaves timers, immediates and descriptors their turns', async () => {
    const { vcpu } = start()
    const endless = made(
      native().vcpu(area(), PAGE, () => {
        endless.resume(onLoop)
      }),
    )
    endless.resume(onLoop)
    const event = eventfd(1)
    const readable = new Promise<void>((resolve) => {
      const poller = made(
        native().poll(event, new Uint8Array(8), 8, () => {
          poller.close()
          resolve()
        }),
      )
    })
    await readable
    await new Promise((resolve) => setImmediate(resolve))
    await new Promise((resolve) => setTimeout(resolve, 5))
    endless.close()
    vcpu.close()
  })

  it('can be closed by its own listener', async () => {
    const closed = await new Promise<VcpuThread>((resolve) => {
      const vcpu = made(
        native().vcpu(area(), PAGE, () => {
          vcpu.close()
          resolve(vcpu)
        }),
      )
      vcpu.resume(onLoop)
    })
    expect(closed.run.byteLength).toBe(0)
  })
})

it('runs in its thread and on the loop by turns, and each answer comes', async () => {
  const { vcpu, answers, next } = start()
  const places = Array.from({ length: 400 }, (_, i) => (i * 7) % 5 < 2)
  for (const onLoop of places) {
    const called = next()
    vcpu.resume(onLoop)
    await called
  }
  expect(answers).toHaveLength(places.length)
  vcpu.close()
})

it('runs on the loop of a process that has nothing else to do, and lets it end', async () => {
  expect(await run('alone.mjs')).toMatchObject({ output: '100 exits', status: 0 })
})

describe('what is refused', () => {
  it.each<[string, () => Descriptor, number]>([
    ['a closed descriptor', () => closed(), EBADF],
    ['what cannot be mapped', () => eventfd(), ENODEV],
  ])('%s', (_, descriptor, errno) => {
    expect(native().vcpu(descriptor(), PAGE, () => undefined)).toBe(errno)
  })

  it('a length that is not one of a processor, and a listener that is none', () => {
    const descriptor = area()
    expect(() => native().vcpu(descriptor, 100, () => undefined)).toThrow(RangeError)
    expect(() => native().vcpu(descriptor, PAGE * 65, () => undefined)).toThrow(RangeError)
    expect(() => native().vcpu(descriptor, PAGE, undefined as never)).toThrow(TypeError)
    const vcpu = made(native().vcpu(descriptor, PAGE, () => undefined))
    expect(() => {
      vcpu.resume(1 as never)
    }).toThrow(TypeError)
    descriptor.close()
  })
})

function closed(): Descriptor {
  const descriptor = area()
  descriptor.close()
  return descriptor
}
