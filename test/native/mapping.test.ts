import { existsSync, readFileSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { afterEach, describe, expect, it } from 'vitest'
import { native } from '../../lib/native'
import { PAGE, cleanUp, eventfd, isMapped, made, mapped, turn, until } from './support'

const ENOENT = -2
const ENOMEM = -12
const EBADF = -9
const TWO_MIB = 2 ** 21
const FREE_PAGES = '/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages'

function freePages(): number {
  return existsSync(FREE_PAGES) ? Number(readFileSync(FREE_PAGES, 'utf8')) : 0
}

afterEach(cleanUp)

describe('a mapping', () => {
  it('is zeroed memory at a page of its own, under one buffer', () => {
    const memory = mapped(3 * PAGE)
    expect(memory.byteLength).toBe(3 * PAGE)
    expect(memory.address % BigInt(PAGE)).toBe(0n)
    expect(memory.buffer).toBe(memory.buffer)
    expect(memory.buffer.byteLength).toBe(3 * PAGE)
    expect(new Uint8Array(memory.buffer).every((byte) => byte === 0)).toBe(true)
    expect(isMapped(memory.address)).toBe(true)
    memory.close()
  })

  it('is shared and not private to a copy', () => {
    const memory = mapped()
    const line = readFileSync('/proc/self/maps', 'utf8')
      .split('\n')
      .find((text) => text.startsWith(memory.address.toString(16)))
    expect(line).toMatch(/ rw-s .*memfd:guest-memory/)
    memory.close()
  })

  it('commits normal pages at their first touch only', () => {
    const resident = (): number =>
      Number(/RssShmem:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1])
    const before = resident()
    const memory = mapped(256 * TWO_MIB)
    expect(resident() - before).toBeLessThan(1024)
    new Uint8Array(memory.buffer).fill(1, 0, TWO_MIB)
    expect(resident() - before).toBeGreaterThanOrEqual(2048)
    memory.close()
  })

  it('closes once: the buffer is detached, then the memory goes', async () => {
    const memory = mapped()
    const { buffer, address } = memory
    const view = new Uint8Array(buffer)
    memory.close()
    memory.close()
    expect(buffer.byteLength).toBe(0)
    expect(memory.buffer).toBe(buffer)
    expect(view[0]).toBeUndefined()
    expect(() => new DataView(buffer)).toThrow(TypeError)
    await until(() => !isMapped(address))
    expect(native().openMapping(memory.id)).toBe(ENOENT)
  })

  it('opens again by its number, as long as anybody has it', async () => {
    const memory = mapped()
    const second = made(native().openMapping(memory.id))
    expect(second.address).toBe(memory.address)
    expect(second.buffer).not.toBe(memory.buffer)
    new Uint8Array(memory.buffer)[7] = 9
    memory.close()
    expect(new Uint8Array(second.buffer)[7]).toBe(9)
    const third = made(native().openMapping(memory.id))
    second.close()
    third.close()
    await until(() => !isMapped(memory.address))
    expect(native().openMapping(memory.id)).toBe(ENOENT)
    expect(native().openMapping(0)).toBe(ENOENT)
  })

  it('is the same memory in a Worker, and outlives the thread that made it', async () => {
    const worker = new Worker(
      `const { parentPort, workerData } = require('node:worker_threads')
       const native = require(workerData)
       const made = native.mapMemory(4096, 0)
       new Uint8Array(made.buffer)[0] = 42
       parentPort.on('message', () => process.exit())
       parentPort.postMessage(made.id)`,
      { eval: true, workerData: (native() as unknown as { path: string }).path },
    )
    const id = await new Promise<number>((resolve) => worker.once('message', resolve))
    const here = made(native().openMapping(id))
    worker.postMessage('end')
    await new Promise((resolve) => worker.once('exit', resolve))
    const bytes = new Uint8Array(here.buffer)
    expect(bytes[0]).toBe(42)
    bytes[4095] = 1
    here.close()
    await until(() => !isMapped(here.address))
  })

  it('is refused with -ENOMEM when the host has no such huge pages', () => {
    expect(native().mapMemory(TWO_MIB * (freePages() + 1), TWO_MIB)).toBe(ENOMEM)
    expect(native().mapMemory(2 ** 30 * 1024, 2 ** 30)).toBe(ENOMEM)
  })

  it('is refused with -errno when the address space has no room', () => {
    expect(native().mapMemory(2 ** 52, 0)).toBe(ENOMEM)
  })

  it.skipIf(freePages() < 1)('takes its huge pages when it is made, not when touched', () => {
    const free = freePages()
    const memory = made(native().mapMemory(TWO_MIB, TWO_MIB))
    expect(freePages()).toBe(free - 1)
    expect(memory.address % BigInt(TWO_MIB)).toBe(0n)
    new Uint8Array(memory.buffer).fill(1)
    memory.close()
  })
})

describe('hold', () => {
  it('keeps the memory in place until the descriptor is closed', async () => {
    const memory = mapped()
    const event = eventfd()
    expect(native().hold(event, memory)).toBe(0)
    expect(native().hold(event, memory)).toBe(0)
    expect(memory.holders).toBe(1)
    memory.close()
    for (let i = 0; i < 10; i++) await turn()
    expect(isMapped(memory.address)).toBe(true)
    expect(memory.holders).toBe(1)
    event.close()
    expect(memory.holders).toBe(0)
    await until(() => !isMapped(memory.address))
  })

  it('counts descriptors, and all of them must let go', async () => {
    const memory = mapped()
    const [first, second] = [eventfd(), eventfd()]
    native().hold(first, memory)
    native().hold(second, memory)
    expect(memory.holders).toBe(2)
    memory.close()
    first.close()
    expect(isMapped(memory.address)).toBe(true)
    second.close()
    await until(() => !isMapped(memory.address))
  })

  it('belongs to the open file: a duplicate keeps the memory, and may name it', async () => {
    const memory = mapped()
    const first = eventfd()
    const second = made(native().duplicate(first.fd))
    native().hold(first, memory)
    native().hold(second, memory)
    expect(memory.holders).toBe(1)
    memory.close()
    first.close()
    const message = new BigUint64Array([memory.address])
    expect(native().writeMany(second, message, 8, 1, [0, -PAGE])).toBe(1)
    for (let i = 0; i < 10; i++) await turn()
    expect(isMapped(memory.address)).toBe(true)
    second.close()
    expect(memory.holders).toBe(0)
    await until(() => !isMapped(memory.address))
  })

  it('refuses a closed mapping', () => {
    const memory = mapped()
    memory.close()
    const event = eventfd()
    expect(native().hold(event, memory)).toBe(EBADF)
    event.close()
  })
})

describe('letGo', () => {
  it('ends a hold: the memory may go, and its addresses are refused', async () => {
    const memory = mapped()
    const event = eventfd()
    native().hold(event, memory)
    const message = new BigUint64Array([memory.address])
    expect(native().writeMany(event, message, 8, 1, [0, -PAGE])).toBe(1)
    expect(native().letGo(event, memory)).toBe(0)
    expect(memory.holders).toBe(0)
    expect(native().writeMany(event, message, 8, 1, [0, -PAGE])).toBe(-14)
    memory.close()
    await until(() => !isMapped(memory.address))
    event.close()
  })

  it('answers -ENOENT for what is not held, and -EBADF for what is closed', () => {
    const memory = mapped()
    const event = eventfd()
    expect(native().letGo(event, memory)).toBe(-2)
    memory.close()
    expect(native().letGo(event, memory)).toBe(EBADF)
    event.close()
  })
})
