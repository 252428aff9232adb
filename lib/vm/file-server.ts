/**
 * Serves the host's root directory to one guest, through Debian's virtiofsd. The server leaves with
 * its guest, or with this process.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Tools } from './tools'
import { VmError } from './vm-error'

/** Put before a command line, so that the kernel kills the program when this process dies. */
export const DIES_WITH_PARENT: readonly string[] = ['setpriv', '--pdeathsig', 'KILL', '--']

export interface FileServer {
  readonly process: ChildProcess
  /** The guest's end: for QEMU to inherit, then to be destroyed here. */
  readonly connection: Socket
}

/**
 * Starts a server for the whole of `/`; what the guest may write is the guest's affair.
 *
 * The server inherits a socket that listens, because one that it makes itself comes with lock files
 * that it leaves behind and that an ordinary user may not create. Node's sockets do not block, so
 * the connection must be waiting when the server accepts; and Node would accept it first, so all of
 * it happens in one turn of the loop, after which no name of the socket is left.
 */
export function startFileServer(tools: Tools): FileServer {
  const directory = mkdtempSync(join(tmpdir(), 'vhost-iotlb-'))
  const listening = createServer()
  try {
    const path = join(directory, 'files')
    listening.listen(path)
    const descriptor = descriptorOf(listening)
    const connection = connect(path)
    const [program, ...args] = commandLine(tools.virtiofsd)
    const process = spawn(program, args, {
      stdio: ['ignore', 'ignore', 'pipe', descriptor],
      env: { ...globalThis.process.env, ...tools.env },
      detached: true,
    })
    return { process, connection }
  } finally {
    listening.close()
    rmSync(directory, { recursive: true, force: true })
  }
}

/** An ordinary user is root of a user namespace: the server cannot `chroot` without being one. */
function commandLine(virtiofsd: string): string[] {
  const asRoot = process.getuid?.() === 0 ? [] : ['unshare', '--map-root-user', '--']
  // The other sandbox, of namespaces, cannot serve the root directory.
  const options = [
    '--fd=3',
    '-o',
    'source=/',
    '-o',
    'sandbox=chroot',
    '-o',
    'cache=always',
    '-o',
    'log_level=warn',
  ]
  return [...asRoot, ...DIES_WITH_PARENT, virtiofsd, ...options]
}

function descriptorOf(server: Server): number {
  // Node documents no way to the descriptor of a listening socket; this has been it since 0.x.
  const handle = (server as unknown as { readonly _handle?: { readonly fd?: number } | null })
    ._handle
  if (handle?.fd === undefined || handle.fd < 0) {
    throw new VmError('ERR_VM_UNSUPPORTED', `cannot listen in ${tmpdir()}`)
  }
  return handle.fd
}
