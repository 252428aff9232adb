/**
 * Flags, MTU and address of a network interface, by name, in the calling thread's namespace.
 *
 * The few SIOC requests that a tap needs to be of use. Not a configuration library: routes and
 * bridges are for `ip`.
 */
import { SystemError, succeeded } from '../errors'
import { native } from '../native'
import { IFF_UP, IOCTLS, STRUCTS, decodeStruct, encodeStruct } from './uapi'
import type { IoctlName, StructValues } from './uapi'

const AF_INET = 2
const SOCK_DGRAM = 2
const ARPHRD_ETHER = 1
const ENODEV = -19
const EPERM = -1
/** IFNAMSIZ less the terminating zero (net/if.h). */
const LONGEST_NAME = 15

type InterfaceIoctl = Extract<IoctlName, `SIOC${string}`>

/**
 * The name as `ifr_name` bytes. `%d` asks the kernel for the first free number; it alone may
 * follow a `%` (net/core/dev.c, dev_valid_name and __dev_alloc_name).
 * @throws TypeError, RangeError for what the kernel would not take, or would take for another name
 */
export function interfaceName(name: string): Uint8Array {
  if (typeof name !== 'string') throw new TypeError('an interface name is a string')
  const bytes = new TextEncoder().encode(name)
  if (bytes.length === 0 || bytes.length > LONGEST_NAME) {
    throw new RangeError(`an interface name has 1 to ${LONGEST_NAME} bytes: '${name}'`)
  }
  if (/[/:\s\0]/.test(name) || name === '.' || name === '..') {
    throw new RangeError(`not an interface name: '${name}'`)
  }
  if (name.includes('%') && !/^[^%]*%d[^%]*$/.test(name)) {
    throw new RangeError(`only %d may follow a % in an interface name: '${name}'`)
  }
  return bytes
}

/** undefined when there is no interface of that name. */
export function interfaceIndex(name: string): number | undefined {
  const argument = new Uint8Array(STRUCTS.ifreq_value.bytes)
  argument.set(interfaceName(name))
  const result = request('SIOCGIFINDEX', argument)
  if (result === ENODEV) return undefined
  succeeded(result, 'ioctl SIOCGIFINDEX', { path: name })
  return decodeStruct(STRUCTS.ifreq_value, argument)['ifr_value'] as number
}

export function isUp(name: string): boolean {
  return (flags(name) & IFF_UP) !== 0
}

/** Nothing is asked of the kernel, and no privilege needed, when it is as wanted already. */
export function setUp(name: string, up: boolean): void {
  const before = flags(name)
  const after = up ? before | IFF_UP : before & ~IFF_UP
  if (after !== before) call('SIOCSIFFLAGS', name, { ifr_flags: after })
}

export function mtu(name: string): number {
  return call('SIOCGIFMTU', name, {})['ifr_value'] as number
}

/** @throws SystemError EINVAL below 68 or above what the device takes (65521 for a tap) */
export function setMtu(name: string, bytes: number): void {
  call('SIOCSIFMTU', name, { ifr_value: bytes })
}

/** `'02:00:00:00:00:01'` */
export function macAddress(name: string): string {
  const bytes = call('SIOCGIFHWADDR', name, {})['sa_data'] as Uint8Array
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join(':')
}

/** @throws RangeError for what is not six bytes in hexadecimal, or a group address */
export function setMacAddress(name: string, address: string): void {
  if (!/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(address)) {
    throw new RangeError(`not a MAC address (such as 02:00:00:00:00:01): ${address}`)
  }
  const bytes = Uint8Array.from(address.split(':'), (byte) => Number.parseInt(byte, 16))
  if ((bytes[0] & 1) !== 0) throw new RangeError(`${address} is a group address`)
  call('SIOCSIFHWADDR', name, { sa_family: ARPHRD_ETHER, sa_data: bytes })
}

/**
 * Gives the interface an IPv4 address of 4 bytes, in the network of its first `prefix` bits.
 * @throws RangeError for another length, or a prefix outside 0 to 32
 */
export function setAddress(name: string, address: Uint8Array, prefix: number): void {
  if (address.length !== 4) throw new RangeError('an IPv4 address has 4 bytes')
  if (!Number.isInteger(prefix) || prefix < 0 || prefix > 32) {
    throw new RangeError(`a prefix has 0 to 32 bits: ${prefix}`)
  }
  const mask = new Uint8Array(4)
  for (let bit = 0; bit < prefix; bit++) mask[bit >> 3] |= 0x80 >> (bit & 7)
  call('SIOCSIFADDR', name, { sin_family: AF_INET, sin_addr: address })
  call('SIOCSIFNETMASK', name, { sin_family: AF_INET, sin_addr: mask })
}

function flags(name: string): number {
  return call('SIOCGIFFLAGS', name, {})['ifr_flags'] as number
}

function call(
  ioctl: InterfaceIoctl,
  name: string,
  values: StructValues,
): ReturnType<typeof decodeStruct> {
  const layout = STRUCTS[IOCTLS[ioctl].argument]
  const argument = encodeStruct(layout, { ifr_name: interfaceName(name), ...values })
  const result = request(ioctl, argument)
  if (result === EPERM) {
    throw new SystemError(result, `ioctl ${ioctl}`, {
      path: name,
      hint: 'needs CAP_NET_ADMIN in the network namespace: run as root, or let `ip link` do it',
    })
  }
  succeeded(result, `ioctl ${ioctl}`, { path: name })
  return decodeStruct(layout, argument)
}

/** Any socket will do: the requests go to the network namespace, not to a protocol. */
function request(ioctl: InterfaceIoctl, argument: Uint8Array): number {
  const socket = native().socket(AF_INET, SOCK_DGRAM, 0)
  if (typeof socket === 'number') throw new SystemError(socket, 'socket')
  try {
    return native().ioctl(socket, IOCTLS[ioctl].request, argument, argument.byteLength)
  } finally {
    socket.close()
  }
}
