import { expect, it } from 'vitest'
import { boot } from '../../lib/cli/boot'

it('makes no interface for a kernel or an initramfs that is not there', async () => {
  const options = {
    ...{ append: '', tap: 'never%d', memory: 512, cpus: 1 },
    ...{ lookAhead: 'on-miss' as const, ats: true, reboot: true, json: true },
  }
  const [kernel, nowhere] = [import.meta.filename, '/nowhere']
  await expect(boot({ ...options, kernel: nowhere })).rejects.toThrow(/ENOENT.*'\/nowhere'/)
  await expect(boot({ ...options, kernel, initrd: nowhere })).rejects.toThrow(/'\/nowhere'/)
})
