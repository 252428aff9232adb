/** On which processors threads of this process run. */
import { readdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { describe, expect, it } from 'vitest'
import { native } from '../../lib/native'
import { Apart } from '../../lib/vmm/kvm'

const ESRCH = -3
const EINVAL = -22

function own(): number[] {
  const processors = native().affinity(0)
  if (typeof processors === 'number') throw new Error(`affinity: ${processors}`)
  return processors
}

describe('affinity', () => {
  it('says where the calling thread may run, and where it does', () => {
    const processors = own()
    expect(processors).toHaveLength(availableParallelism())
    expect(processors).toContain(native().currentProcessor())
  })

  it('moves the thread to where it is to run', () => {
    const before = own()
    for (const processor of before) {
      expect(native().affinity(0, [processor])).toEqual([processor])
      expect(native().currentProcessor()).toBe(processor)
    }
    expect(native().affinity(0, before)).toEqual(before)
  })

  it('moves no other process, and to no processor that is not there', () => {
    expect(native().affinity(1)).toBe(ESRCH)
    expect(native().affinity(1, [0])).toBe(ESRCH)
    expect(native().affinity(0, [])).toBe(EINVAL)
    expect(() => native().affinity(0, [1024])).toThrow(RangeError)
    expect(() => native().affinity(0, [-1])).toThrow(RangeError)
    expect(() => native().affinity(0, 0 as never)).toThrow(TypeError)
    expect(() => native().affinity('0' as never)).toThrow(TypeError)
  })
})

describe.runIf(availableParallelism() > 1)('a thread that is kept apart', () => {
  // One of V8's, which is as good as a processor's.
  const threadId = Number(readdirSync('/proc/self/task')[1])

  it('is not on the processor of this one until it is over, wherever that goes', () => {
    const before = own()
    const apart = new Apart([{ threadId }])
    try {
      for (const here of before) {
        native().affinity(0, [here])
        apart.follow()
        expect(native().affinity(threadId)).toEqual(before.filter((one) => one !== here))
      }
    } finally {
      native().affinity(0, before)
      apart[Symbol.dispose]()
    }
    expect(native().affinity(threadId)).toEqual(before)
  })

  it('leaves this one as it is', () => {
    const before = own()
    const apart = new Apart([{ threadId }])
    expect(own()).toEqual(before)
    apart[Symbol.dispose]()
    expect(own()).toEqual(before)
  })

  it('stays where it is if that is the only place for it', () => {
    const [first, ...others] = own()
    native().affinity(threadId, [first])
    native().affinity(0, [first])
    const apart = new Apart([{ threadId }])
    expect(native().affinity(threadId)).toEqual([first])
    apart[Symbol.dispose]()
    expect(native().affinity(threadId)).toEqual([first])
    for (const id of [0, threadId]) native().affinity(id, [first, ...others])
  })

  it('may have ended, or be of another process', () => {
    using apart = new Apart([{ threadId: -9 }, { threadId: 1 }])
    expect(() => {
      apart.follow()
    }).not.toThrow()
  })
})
