import { describe, expect, it } from 'vitest'
import { aptOptions, exactDependencies } from '../../lib/vm/apt'
import { kernelOfLine, resolveKernel } from '../../lib/vm/kernel'

const SHOWN: Readonly<Record<string, string>> = {
  'linux-image-cloud-amd64': `Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (6.1.192+2)
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Description: Linux for x86-64 cloud (meta-package)
`,
  'linux-image-6.12-cloud-amd64': `Package: linux-image-6.12-cloud-amd64
Version: 6.12.117-1~deb12u1
Depends: linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)
`,
}

const show = (name: string) => Promise.resolve(SHOWN[name] ?? '')

describe('resolving a kernel', () => {
  it('takes the versioned package and version that the metapackage depends on', async () => {
    expect(await resolveKernel('6.12', show)).toEqual({
      name: 'linux-image-6.12.117+deb12-cloud-amd64',
      version: '6.12.117-1~deb12u1',
    })
    expect(await resolveKernel('6.1', show)).toEqual({
      name: 'linux-image-6.1.0-56-cloud-amd64',
      version: '6.1.192-2',
    })
  })

  it('does not take 6.12 for 6.1, nor 6.1 for 6.12', () => {
    expect(kernelOfLine('6.1', SHOWN['linux-image-6.12-cloud-amd64'])).toBeUndefined()
    expect(kernelOfLine('6.12', SHOWN['linux-image-cloud-amd64'])).toBeUndefined()
  })

  it('finds 6.12 as the own kernel of a later Debian', async () => {
    const shown = 'Depends: linux-image-6.12.74+deb13+1-cloud-amd64 (= 6.12.74-2)\n'
    const own = (name: string) => Promise.resolve(name === 'linux-image-cloud-amd64' ? shown : '')
    expect(await resolveKernel('6.12', own)).toEqual({
      name: 'linux-image-6.12.74+deb13+1-cloud-amd64',
      version: '6.12.74-2',
    })
  })

  it('says which packages it looked for when the sources have none', async () => {
    await expect(resolveKernel('6.1', () => Promise.resolve(''))).rejects.toMatchObject({
      code: 'ERR_VM_FETCH',
      message: expect.stringContaining('linux-image-cloud-amd64') as string,
    })
  })
})

describe('exactDependencies', () => {
  it('passes over dependencies that are not bound to one version', () => {
    const shown = 'Depends: libc6 (>= 2.34), a:amd64 (= 1:2-3), b | c (= 1), d (= 2) | e\n'
    expect(exactDependencies(shown)).toEqual([{ name: 'a', version: '1:2-3' }])
  })

  it('finds none in a package without dependencies', () => {
    expect(exactDependencies('Package: a\nPre-Depends: b (= 1)\n')).toEqual([])
  })
})

describe('aptOptions', () => {
  it('keeps all of apt in the directory, save the sources and the list of what is installed', () => {
    const options = aptOptions('/cache/x')
    expect(options).toContain('Dir::State=/cache/x/state')
    expect(options).toContain('Dir::Cache=/cache/x/cache')
    expect(options).toContain('Dir::State::status=/var/lib/dpkg/status')
    expect(options.some((option) => option.startsWith('Dir::Etc'))).toBe(false)
  })
})
