/**
 * Samples for other processes: over a Unix socket for `vhost-iotlb top`, over HTTP for Prometheus.
 *
 * Neither keeps the event loop alive. Whoever may open the socket sees counters and iovas, and can
 * change nothing; the socket is for its owner alone.
 */
import { chmodSync, rmSync } from 'node:fs'
import { createServer as createHttpServer } from 'node:http'
import { createServer } from 'node:net'
import type { Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { metricsText } from './metrics'
import { Monitor } from './monitor'
import type { Watched } from './monitor'

export interface ServeStatsOptions {
  /** The socket; by default where `vhost-iotlb top` looks for it. */
  readonly path?: string
}

export interface ServeMetricsOptions {
  /** `127.0.0.1` unless given. */
  readonly host?: string
  /** 9464 unless given; 0 for any. */
  readonly port?: number
}

export interface Served extends AsyncDisposable {
  /** The path of a socket, or the URL of the metrics. */
  readonly address: string
  close(): Promise<void>
}

/** Sockets of processes of this user, and what `top` looks for. */
export const SOCKET_NAME = /^vhost-iotlb-(\d+)\.sock$/
const METRICS_PORT = 9464

/** One JSON object a line: a sample for each line, or each chunk of lines, that comes in. */
export async function serveStats(
  devices: readonly Watched[],
  { path = join(tmpdir(), `vhost-iotlb-${process.pid}.sock`) }: ServeStatsOptions = {},
): Promise<Served> {
  const monitor = new Monitor(devices)
  rmSync(path, { force: true })
  const server = createServer((socket) => {
    socket.unref()
    socket.on('data', () => socket.write(`${JSON.stringify(monitor.sample())}\n`))
    socket.on('error', () => socket.destroy())
  })
  const open = new Set<{ destroy(): unknown }>()
  server.on('connection', (socket) => {
    open.add(socket)
    socket.on('close', () => open.delete(socket))
  })
  await listening(server, () => server.listen(path), monitor)
  chmodSync(path, 0o600)
  return served(path, server, monitor, () => {
    for (const socket of open) socket.destroy()
  })
}

/**
 * @throws Error with a hint where `prom-client`, an optional peer of this package, is not installed
 * @throws Error as Node's `listen`
 */
export async function serveMetrics(
  devices: readonly Watched[],
  { host = '127.0.0.1', port = METRICS_PORT }: ServeMetricsOptions = {},
): Promise<Served> {
  const monitor = new Monitor(devices)
  const server = createHttpServer((request, response) => {
    if (request.method !== 'GET' || request.url !== '/metrics') {
      response.writeHead(404, { 'content-type': 'text/plain' }).end('GET /metrics\n')
      return
    }
    metricsText(monitor.sample()).then(
      ({ contentType, text }) => response.writeHead(200, { 'content-type': contentType }).end(text),
      (error: unknown) => response.writeHead(500).end(String(error)),
    )
  })
  try {
    await metricsText({ pid: process.pid, at: 0, devices: [] })
  } catch (error) {
    monitor.close()
    throw error
  }
  await listening(server, () => server.listen(port, host), monitor)
  const address = server.address()
  const at = typeof address === 'object' && address !== null ? address.port : port
  const url = `http://${host.includes(':') ? `[${host}]` : host}:${at}/metrics`
  return served(url, server, monitor, () => {
    server.closeAllConnections()
  })
}

async function listening(server: Server, listen: () => unknown, monitor: Monitor): Promise<void> {
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.once('listening', resolve)
      listen()
    })
  } catch (error) {
    monitor.close()
    throw error
  }
  server.unref()
}

function served(address: string, server: Server, monitor: Monitor, hangUp: () => void): Served {
  const close = async (): Promise<void> => {
    monitor.close()
    if (!server.listening) return
    const closed = new Promise<void>((resolve) => {
      server.close(() => {
        resolve()
      })
    })
    hangUp()
    await closed
  }
  return { address, close, [Symbol.asyncDispose]: close }
}
