import { describe, expect, it } from 'vitest'
import { GuestShell, READY } from '../../lib/vmm/guest-shell'

/** A serial port whose guest answers each line that it is sent. */
function conversation(answer: (line: string) => string) {
  const shell = new GuestShell()
  const say = (text: string): void => {
    for (const byte of Buffer.from(text)) shell.hear(byte)
  }
  const port = {
    type: (bytes: Uint8Array) => {
      const lines = Buffer.from(bytes).toString().split('\n').filter(Boolean)
      for (const line of lines) {
        const mark = /echo "(guest: done \d+:)\$status\."/.exec(line)?.[1]
        say(mark === undefined ? answer(line) : `\r\n${mark}${status}.\r\n`)
      }
    },
  }
  let status = 0
  return {
    shell,
    port,
    say,
    fail: () => {
      status = 3
    },
  }
}

describe('the other end of a guest', () => {
  it('gives what each command wrote, and nothing of the others', async () => {
    const { shell, port, say } = conversation((line) => `you said ${line}\r\n`)
    say(`booting\r\n${READY}\r\n`)
    await shell.ready(port, 1)
    expect(await shell.run('one')).toBe('you said one')
    expect(await shell.run('two')).toBe('you said two')
  })

  it('waits for what comes later, and lets go of it where it came in time', async () => {
    const { shell, port, say } = conversation(() => 'late\r\n')
    const ready = shell.ready(port, 60)
    say('booting. guest: read')
    await new Promise((resolve) => setImmediate(resolve))
    say('y\r\n')
    await ready
    expect(await shell.run('one')).toBe('late')
  })

  it('throws where a command fails, with what it wrote', async () => {
    const { shell, port, say, fail } = conversation(() => 'no such thing\r\n')
    say(`${READY}\r\n`)
    await shell.ready(port, 1)
    fail()
    await expect(shell.run('ls nothing')).rejects.toThrow(/'ls nothing' ended with 3:\nno such/)
  })

  it('throws where the guest does not come up, with all that it said', async () => {
    const { shell, port, say } = conversation(() => '')
    say('Kernel panic')
    await expect(shell.ready(port, 0.05)).rejects.toThrow(/no end of 'boot'.*\n?.*Kernel panic/)
  })

  it('throws at once where the guest ends, now and from then on', async () => {
    const { shell, port, say } = conversation(() => '')
    say('booting')
    const ready = shell.ready(port, 60)
    shell.end('it was closed')
    shell.end('and again')
    await expect(ready).rejects.toThrow(/^it was closed; the guest said:\nbooting$/)
    await expect(shell.run('ls')).rejects.toThrow(/^it was closed;/)
    expect(() => {
      shell.check()
    }).toThrow(/^it was closed;/)
  })
})
