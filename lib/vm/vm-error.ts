/**
 * The ways in which a nested VM can fail that are neither the caller's mistake nor one refused
 * system call: a package that cannot be had, a kernel that does not boot.
 */

export type VmErrorCode =
  /** A tool or a package is missing and could not be fetched. */
  | 'ERR_VM_FETCH'
  /** The host cannot run the VM at all. */
  | 'ERR_VM_UNSUPPORTED'
  /** The kernel never reached its first process. */
  | 'ERR_VM_BOOT'
  /** The VM ended, or its file server did, before the command had a result. */
  | 'ERR_VM_DIED'
  /** The caller's `AbortSignal` ended it. */
  | 'ERR_VM_ABORTED'

export class VmError extends Error {
  override readonly name = 'VmError'
  readonly code: VmErrorCode
  /** @param output what the failing program or the kernel last said, added to the message */
  constructor(code: VmErrorCode, message: string, output = '') {
    super(output === '' ? message : `${message}\n${output}`)
    this.code = code
  }
}
