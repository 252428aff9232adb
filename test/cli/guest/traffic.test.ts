import { describe, expect, it } from 'vitest'
import { rate, rateText } from '../../../lib/cli/guest/traffic'

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
