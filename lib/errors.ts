/**
 * Whose fault it is decides the type of an error.
 *
 * The host refused: `SystemError`, with the fields of Node's own. The caller is wrong: `TypeError`,
 * `RangeError` or `InvalidState`. The guest is wrong: never an error, always a `Fault` value
 * (`memory/address-space.ts`).
 */
import { getSystemErrorMap } from 'node:util'

/** errnos that Node's own table does not name (asm-generic/errno.h). */
const UNNAMED: Readonly<Partial<Record<number, readonly [string, string]>>> = {
  77: ['EBADFD', 'file descriptor in bad state'],
  105: ['ENOBUFS', 'no buffer space available'],
  515: ['ENOIOCTLCMD', 'no ioctl command'],
  524: ['ENOTSUPP', 'operation is not supported'],
}

export interface SystemErrorDetail {
  /** A device node, interface name or other object that the call was about. */
  readonly path?: string
  /** What the caller can do about it, in a sentence. */
  readonly hint?: string
}

/** A system call was refused. `errno` is negative, as in Node's own errors. */
export class SystemError extends Error {
  override readonly name = 'SystemError'
  readonly code: string
  readonly errno: number
  readonly syscall: string
  readonly path?: string
  readonly hint?: string

  /** @param errno the error number of the system, positive or negative */
  constructor(errno: number, syscall: string, detail: SystemErrorDetail = {}) {
    const number = Math.abs(errno)
    const [code, text] = getSystemErrorMap().get(-number) ??
      UNNAMED[number] ?? [`E${number}`, `unknown system error ${number}`]
    const where = detail.path === undefined ? '' : ` '${detail.path}'`
    const what = detail.hint === undefined ? '' : `: ${detail.hint}`
    super(`${code}: ${text}, ${syscall}${where}${what}`)
    this.code = code
    this.errno = -number
    this.syscall = syscall
    if (detail.path !== undefined) this.path = detail.path
    if (detail.hint !== undefined) this.hint = detail.hint
  }
}

export type InvalidStateCode =
  | 'ERR_CLOSED'
  | 'ERR_IN_USE'
  | 'ERR_NOT_STARTED'
  | 'ERR_ALREADY_STARTED'
  | 'ERR_NOT_CONFIGURED'
  | 'ERR_UNSUPPORTED'
  | 'ERR_EXHAUSTED'
  | 'ERR_NO_ADDON'

/** The call is right in itself, but not now, or not on this object. */
export class InvalidState extends Error {
  override readonly name = 'InvalidState'
  readonly code: InvalidStateCode

  constructor(code: InvalidStateCode, message: string) {
    super(message)
    this.code = code
  }
}

/** The result of a native call that answers `-errno` instead of throwing. @throws SystemError */
export function succeeded(result: number, syscall: string, detail?: SystemErrorDetail): number {
  if (result < 0) throw new SystemError(result, syscall, detail)
  return result
}

/** What to say of anything that was thrown. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** Anything that was thrown, for a listener of errors. */
export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}
