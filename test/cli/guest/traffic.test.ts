import { describe, expect, it } from 'vitest'
import { ping, rate, rateText } from '../../../lib/cli/guest/traffic'
import { GuestShell, READY } from '../../../lib/vmm/guest-shell'

describe('how one direction went', () => {
  it('counts what arrived, by the time that it took', () => {
    expect(rate(1010, 1000, 2504)).toEqual({
      ...{ sent: 1010, received: 1000 },
      ...{ seconds: 2.5, packetsPerSecond: 399 },
    })
  })

  it('is told in a line', () => {
    expect(rateText('in', rate(1010, 1000, 2504))).toBe('in   1000 of 1010 frames, 399 a second')
  })
})

it('counts the echo requests that were answered, of those that went out one by one', async () => {
  const shell = new GuestShell()
  const say = (text: string): void => {
    for (const byte of Buffer.from(text)) shell.hear(byte)
  }
  const answers = [1, 0, 1].map((n) => `1 packets transmitted, ${n} packets received\r\n`).join('')
  const type = (bytes: Uint8Array): void => {
    const line = Buffer.from(bytes).toString()
    if (line.includes('ping -c 1')) say(answers)
    say(`${/guest: done \d+:/.exec(line)?.[0]}0.\r\n`)
  }
  say(READY)
  await shell.ready({ type }, 1)
  expect(await ping(shell, '192.0.2.1', 3)).toBe(2)
})
