import { describe, expect, it } from 'vitest'
import { searchPath } from '../../lib/vm/process'
import { runInVm, type VmOptions } from '../../lib/vm/run-in-vm'
import { isStatic } from '../../lib/vm/tools'

const OPTIONS: VmOptions = { command: ['true'], projectDirectory: '/usr' }

describe('runInVm', () => {
  it.each([
    { memoryMiB: 16 },
    { memoryMiB: 1024.5 },
    { cpus: 0 },
    { timeoutSeconds: 0 },
    { projectDirectory: '/' },
    { kernel: '6.6' as '6.12' },
  ])('refuses %j before it does anything', async (wrong) => {
    await expect(runInVm({ ...OPTIONS, ...wrong })).rejects.toThrow(RangeError)
  })
})

describe('searchPath', () => {
  it("adds the system's directories after those given, each once", () => {
    expect(searchPath('/a:/usr/bin:/a').split(':').slice(0, 2)).toEqual(['/a', '/usr/bin'])
    expect(searchPath(undefined).split(':')).toContain('/usr/sbin')
    expect(searchPath('/sbin').match(/\/sbin/g)).toHaveLength(3)
  })
})

describe('isStatic', () => {
  it('tells a program that asks for an interpreter', () => {
    expect(isStatic(process.execPath)).toBe(false)
    expect(isStatic('/no/such')).toBe(false)
  })
})
