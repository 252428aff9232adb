import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { defaultCacheDirectory } from '../../lib/vm/cache'
import { processesWith, within } from './traces'

const root = new URL('../..', import.meta.url).pathname
const main = join(root, 'dist/cli/main.js')
const SECONDS = 1000
/** Kept, while the shell finds no start-up files of the user's. */
const CACHE = dirname(defaultCacheDirectory())

beforeAll(() => {
  if (!existsSync(main)) throw new Error(`${main} is missing: run the build first`)
})

/** Starts a program whose processes all carry a mark of their own. */
function start(program: string, args: readonly string[]) {
  const mark = `VHOST_IOTLB_CLI_TEST=${process.pid}-${Math.random()}`
  const [name, value] = mark.split('=')
  const child = spawn(program, args, {
    cwd: root,
    env: { ...process.env, HOME: '/nowhere', XDG_CACHE_HOME: CACHE, [name]: value },
  })
  const said = { all: '' }
  child.stdout.on('data', (chunk: Buffer) => (said.all += chunk.toString()))
  child.stderr.on('data', (chunk: Buffer) => (said.all += chunk.toString()))
  const status = new Promise<number | null>((resolve) => child.on('close', resolve))
  return { child, said, status, mark }
}

describe('vhost-iotlb vm', () => {
  it("gives the command's exit status when its input is no pipe and no terminal", async () => {
    const shell = `${process.execPath} ${main} vm -- sh -c 'cat; exit 3' </dev/null`
    const { said, status } = start('sh', ['-c', shell])
    expect(await status, said.all).toBe(3)
  })

  it.each(['SIGKILL', 'SIGINT'] as const)('takes the VM along when %s ends it', async (signal) => {
    const { child, said, status, mark } = start(process.execPath, [
      ...[main, 'vm', '--', 'sh', '-c', 'echo running; sleep 1000'],
    ])
    expect(await within(90 * SECONDS, () => said.all.includes('running'))).toBe(true)
    expect(processesWith(mark)).toEqual(expect.arrayContaining(['virtiofsd']))
    child.kill(signal)
    await status
    expect(await within(2 * SECONDS, () => processesWith(mark).length === 0)).toBe(true)
  })

  it('gives a shell on a terminal, with job control and its exit status', async () => {
    const command = `${process.execPath} ${main} vm`
    const { child, said, status } = start('script', ['-qec', command, '/dev/null'])
    const answers = async (input: string, answer: RegExp) => {
      child.stdin.write(input)
      expect(await within(90 * SECONDS, () => answer.test(said.all)), said.all).toBe(true)
    }
    await answers('', /vhost-iotlb:.*[#$] $/)
    await answers('tty\r', /\/dev\/hvc0/)
    await answers('sleep 1000 || echo inter""rupted\r', /sleep 1000/)
    await new Promise((resolve) => setTimeout(resolve, 1 * SECONDS))
    await answers('\x03', /\^C[^]*[#$] $/)
    child.stdin.write('exit 7\r')
    expect(await status).toBe(7)
  })
})
