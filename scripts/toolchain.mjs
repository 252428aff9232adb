// The C++ compilers that `prebuild.mjs` uses: Debian's, as they are for glibc, and dressed for musl.
//
// Debian has no C++ for musl. So the same compilers read musl's own headers, fetched as packages,
// and link the little of the C++ runtime that the addon uses into it: the result asks nothing but
// musl of the machine that it is loaded on.
import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))
const require = createRequire(import.meta.url)
const SHIM = join(root, 'scripts/musl')
const MACHINES = { x64: 'x86_64', arm64: 'aarch64' }
const DEBIAN = { x64: 'amd64', arm64: 'arm64' }

/** @returns standard output @throws Error with all that the command said */
export function run(command, args, options = {}) {
  try {
    const stdio = ['ignore', 'pipe', 'pipe']
    return execFileSync(command, args, { encoding: 'utf8', stdio, ...options })
  } catch (error) {
    throw new Error(`${command}: ${error.stdout ?? ''}${error.stderr ?? error.message}`)
  }
}

function runs(command) {
  try {
    run(command, ['--version'])
    return true
  } catch {
    return false
  }
}

/** @returns compiler and strip of an architecture; the plain ones on a machine of that kind */
export function compilerOf(arch) {
  const triplet = `${MACHINES[arch]}-linux-gnu`
  if (runs(`${triplet}-g++`)) return { cxx: `${triplet}-g++`, strip: `${triplet}-strip` }
  if (process.arch === arch && runs('g++')) return { cxx: 'g++', strip: 'strip' }
  throw new Error(`no compiler: apt-get install g++-${triplet.replace('_', '-')}`)
}

/** musl's headers and library for an architecture, unpacked, nothing installed. */
function fetchMusl(arch, directory) {
  const { aptOptions } = require(join(root, 'dist/vm/apt.js'))
  const state = join(directory, 'apt')
  for (const part of ['state/lists/partial', 'cache/archives/partial']) {
    mkdirSync(join(state, part), { recursive: true })
  }
  const options = [...aptOptions(state), '-o', `APT::Architecture=${DEBIAN[arch]}`]
  run('apt-get', [...options, 'update'])
  run('apt-get', [...options, 'download', 'musl', 'musl-dev'], { cwd: directory })
  run('sh', ['-c', 'for file in *.deb; do dpkg -x "$file" .; done'], { cwd: directory })
  const triplet = `${MACHINES[arch]}-linux-musl`
  return {
    include: join(directory, 'usr/include', triplet),
    start: join(directory, 'usr/lib', triplet),
    library: join(directory, 'lib', triplet, 'libc.so'),
  }
}

/** Where a compiler looks for headers, in its order. */
function searchPath(cxx) {
  const said = run('sh', ['-c', 'exec "$1" -xc++ -E -v /dev/null 2>&1', 'sh', cxx])
  const [, list] = /search starts here:\n([\s\S]*?)End of search list/.exec(said)
  return list.split('\n').flatMap((line) => (line.startsWith(' ') ? [resolve(line.trim())] : []))
}

/** The headers of compiler and kernel, with musl's in the place of glibc's, as arguments. */
function muslHeaders(cxx, musl, directory) {
  const paths = searchPath(cxx)
  const kernel = join(directory, 'kernel')
  mkdirSync(kernel)
  for (const name of ['linux', 'asm', 'asm-generic']) {
    const from = paths.find((path) => !path.includes('/c++/') && existsSync(join(path, name)))
    symlinkSync(join(from, name), join(kernel, name))
  }
  return [
    ...paths.filter((path) => path.includes('/c++/')),
    musl.include,
    ...paths.filter((path) => /\/gcc(-cross)?\/.*\/include$/.test(path)),
    kernel,
  ].flatMap((path) => ['-isystem', path])
}

/**
 * A stand-in for a compiler that compiles and links for musl.
 * @returns it, and `loads(addon)`, which throws unless musl's own loader accepts the addon
 */
export function muslCompiler(arch, directory) {
  const { cxx, strip } = compilerOf(arch)
  mkdirSync(directory, { recursive: true })
  const musl = fetchMusl(arch, directory)
  const headers = ['-nostdinc', ...muslHeaders(cxx, musl, directory)]
  const compile = [...headers, '-include', join(SHIM, 'shim.h')]
  const shim = join(directory, 'shim.o')
  run(cxx, [...compile, '-fPIC', '-c', join(SHIM, 'shim.cc'), '-o', shim])
  const archives = ['libstdc++.a', 'libgcc_eh.a', 'libgcc.a'].map((name) =>
    run(cxx, [`-print-file-name=${name}`]).trim(),
  )
  const wrapper = join(directory, 'c++')
  const tail = [shim, ...archives, `-L${dirname(musl.library)}`, '-l:libc.so'].join(' ')
  writeFileSync(
    wrapper,
    `#!/bin/sh
case " $* " in
  *' -shared '*) exec ${cxx} -nostdlib -Wl,--exclude-libs,ALL -Wl,--gc-sections "$@" ${tail} ;;
  *) exec ${cxx} ${compile.join(' ')} "$@" ;;
esac
`,
  )
  chmodSync(wrapper, 0o755)
  const loads = (addon) => {
    loadWithMusl({ cxx, headers, musl, directory, arch, libgcc: archives[2] }, addon)
  }
  return { cxx: wrapper, strip, loads }
}

/** A program that has Node's symbols and no more, and loads the addon with all of its own bound. */
function loadWithMusl({ cxx, headers, musl, directory, arch, libgcc }, addon) {
  const missing = run('nm', ['-D', '--undefined-only', addon]).match(/\b(napi|node_api|uv)_\w+/g)
  const source = join(directory, 'host.c')
  const program = join(directory, 'host')
  const stubs = [...new Set(missing)].map((name) => `void ${name}(void) {}`)
  const body = readFileSync(join(SHIM, 'host.c'), 'utf8')
  writeFileSync(source, `${stubs.join('\n')}\n${body}`)
  const start = ['crt1.o', 'crti.o', 'crtn.o'].map((name) => join(musl.start, name))
  run(cxx.replace(/g\+\+$/, 'gcc'), [
    ...[...headers, '-fPIE', '-pie', '-nostdlib', '-Wl,--export-dynamic', '-o', program],
    ...[start[0], start[1], source, musl.library, libgcc, start[2]],
  ])
  // musl's library is its loader, too.
  const command = [musl.library, program, addon]
  if (arch !== process.arch) command.unshift(`qemu-${MACHINES[arch]}`)
  run(command[0], command.slice(1))
}
