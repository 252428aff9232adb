/** The package as a user gets it: packed, and installed in an empty folder elsewhere. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export const root = new URL('../..', import.meta.url).pathname

/** @returns standard output @throws Error with what the command said on both streams */
export function run(
  directory: string,
  command: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): string {
  try {
    return execFileSync(command, args, {
      cwd: directory,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    })
  } catch (error) {
    const { stdout, stderr } = error as { readonly stdout: string; readonly stderr: string }
    throw new Error(`${command} ${args.join(' ')}: ${stdout}${stderr}`)
  }
}

export class PackedPackage implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'vhost-iotlb-package-'))
  readonly tarball: string

  /** @param options.scripts whether the host's prebuild is built first, as a release does */
  constructor(options: { readonly scripts: boolean }) {
    const packed = join(this.folder, 'packed')
    mkdirSync(packed)
    const flags = options.scripts ? [] : ['--ignore-scripts']
    run(root, 'npm', ['pack', ...flags, '--pack-destination', packed])
    this.tarball = join(packed, readdirSync(packed)[0])
    writeFileSync(join(this.folder, 'package.json'), '{ "name": "empty", "private": true }')
  }

  /** Paths in the tarball, without the folder that npm puts around them. */
  contents(): string[] {
    const list = run(this.folder, 'tar', ['tzf', this.tarball])
    return list.split('\n').flatMap((path) => (path === '' ? [] : [path.replace('package/', '')]))
  }

  /** Installs the package, and what else is named. */
  install(...others: readonly string[]): void {
    run(this.folder, 'npm', [
      'install',
      '--no-audit',
      '--no-fund',
      '--force',
      this.tarball,
      ...others,
    ])
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true })
  }
}
