import { describe, expect, test } from 'vitest'
import { SystemError } from '../../lib/errors'
import {
  interfaceIndex,
  interfaceName,
  isUp,
  macAddress,
  mtu,
  setMacAddress,
} from '../../lib/vhost/interface'

describe('an interface name', () => {
  // net/core/dev.c, dev_valid_name: not empty, shorter than IFNAMSIZ, no slash, colon or blank.
  test.each([
    '',
    'sixteen-bytes-xx',
    'a/b',
    'a b',
    'a:b',
    'a\0b',
    'a\tb',
    '.',
    '..',
    'ü'.repeat(8),
  ])('is not %j', (name) => {
    expect(() => interfaceName(name)).toThrow(RangeError)
  })

  test.each(['tap%', 'tap%s', 'tap%d%d', '%%d', 'tap%x'])('has no %% but %%d: %j', (name) => {
    expect(() => interfaceName(name)).toThrow(RangeError)
  })

  test.each(['tap0', 'tap%d', '%d', 'fifteen-bytes-x', 'a.b-c_d@e'])('may be %j', (name) => {
    expect(new TextDecoder().decode(interfaceName(name))).toBe(name)
  })

  test('is a string', () => {
    expect(() => interfaceName(7 as unknown as string)).toThrow(TypeError)
  })
})

describe('the loopback interface', () => {
  test('is there, with its properties', () => {
    expect(interfaceIndex('lo')).toBe(1)
    expect(mtu('lo')).toBeGreaterThanOrEqual(1500)
    expect(macAddress('lo')).toBe('00:00:00:00:00:00')
    expect(typeof isUp('lo')).toBe('boolean')
  })
})

test('an interface that is not there has no index, and its properties are a SystemError', () => {
  expect(interfaceIndex('no-such-if')).toBeUndefined()
  expect(() => mtu('no-such-if')).toThrow(SystemError)
  expect(() => mtu('no-such-if')).toThrow(/ENODEV.*'no-such-if'/)
})

test.each(['', '02:00:00:00:00', '02-00-00-00-00-01', '0g:00:00:00:00:01', '03:00:00:00:00:01'])(
  '%j is no address for an interface',
  (address) => {
    expect(() => {
      setMacAddress('lo', address)
    }).toThrow(RangeError)
  },
)
