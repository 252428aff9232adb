/**
 * What the nested VM keeps between runs: kernels, tools and images, each in an entry that appears
 * whole or not at all. Two processes may make the same entry at once; one of them is thrown away.
 */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'

/** Half-made entries older than this belong to a process that died. */
const STALE_MS = 60 * 60 * 1000
const UNFINISHED = 'unfinished-'

export function defaultCacheDirectory(env: NodeJS.ProcessEnv = process.env): string {
  const base = env['XDG_CACHE_HOME']
  // The base directory specification: a relative path in the variable is to be ignored.
  const root = base?.startsWith('/') === true ? base : join(homedir(), '.cache')
  return join(root, 'vhost-iotlb')
}

/** A directory of the cache's file system that `entry` can rename from. The caller removes it. */
export function unfinishedDirectory(cache: string): string {
  mkdirSync(cache, { recursive: true })
  removeStale(cache)
  return mkdtempSync(join(cache, UNFINISHED))
}

/**
 * The path of the entry `name`, made by `make` in an unfinished directory if it is not there yet.
 * @returns the entry's path, and whether it had to be made
 */
export async function entry(
  cache: string,
  name: string,
  make: (directory: string) => Promise<void>,
): Promise<{ readonly path: string; readonly made: boolean }> {
  const path = join(cache, name)
  if (existsSync(path)) return { path, made: false }
  const directory = unfinishedDirectory(cache)
  try {
    await make(directory)
    try {
      renameSync(directory, path)
    } catch (error) {
      // Somebody else was first; theirs is as good.
      if (!existsSync(path)) throw error
    }
    return { path, made: true }
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

function removeStale(cache: string): void {
  for (const name of readdirSync(cache)) {
    if (!name.startsWith(UNFINISHED)) continue
    const path = join(cache, name)
    const age = Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now())
    if (age > STALE_MS) rmSync(path, { recursive: true, force: true })
  }
}
