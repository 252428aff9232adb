import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { dependenciesOf, modulesInOrder } from '../../lib/vm/modules'

/** A module as far as this goes: some bytes and a `.modinfo` section. */
const module = (...depends: string[]) =>
  Buffer.from(`\x7fELF\0license=GPL\0depends=${depends.join(',')}\0retpoline=Y\0`)

describe('modulesInOrder', () => {
  let directory: string

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'modules-'))
    const drivers = join(directory, 'kernel/drivers')
    mkdirSync(join(drivers, 'vhost'), { recursive: true })
    writeFileSync(join(drivers, 'tun.ko'), module())
    writeFileSync(join(drivers, 'vhost/vhost_net.ko'), module('vhost', 'tun', 'vhost-iotlb'))
    writeFileSync(join(drivers, 'vhost/vhost.ko'), module('vhost_iotlb'))
    writeFileSync(join(drivers, 'vhost/vhost-iotlb.ko.xz'), 'compressed')
    writeFileSync(join(directory, 'modules.builtin'), 'kernel/fs/fuse/virtiofs.ko\n')
  })

  afterEach(() => {
    rmSync(directory, { recursive: true })
  })

  const names = async (...wanted: string[]) => {
    const decompress = (bytes: Buffer) => {
      expect(bytes.toString()).toBe('compressed')
      return Promise.resolve(module())
    }
    return (await modulesInOrder(directory, wanted, decompress)).map(({ name }) => name)
  }

  it('puts each module after those that it depends on, and each once', async () => {
    expect(await names('vhost_net', 'tun')).toEqual(['vhost_iotlb', 'vhost', 'tun', 'vhost_net'])
  })

  it('takes dashes and underscores for the same', async () => {
    expect(await names('vhost-net')).toContain('vhost_net')
  })

  it('leaves out what the kernel has built in', async () => {
    expect(await names('virtiofs', 'tun')).toEqual(['tun'])
  })

  it('names the module that the kernel does not have', async () => {
    await expect(names('no-such')).rejects.toThrow("no module 'no_such'")
  })
})

describe('dependenciesOf', () => {
  it('reads only the entry of that name, not one that ends in it', () => {
    expect(dependenciesOf(Buffer.from('\0softdepends=a\0depends=b,c-d\0'))).toEqual(['b', 'c_d'])
    expect(dependenciesOf(Buffer.from('\0license=GPL\0'))).toEqual([])
  })
})
