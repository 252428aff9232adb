// `npm run prebuild:all`: the addon for x64 and arm64, glibc and musl, into `prebuilds/`.
//   node scripts/prebuild.mjs [x64-glibc] [arm64-glibc] [x64-musl] [arm64-musl]    no name: all
//
// It needs Debian's g++ and, for the other architecture, g++-aarch64-linux-gnu and qemu-user (which
// loads what was built for musl there). On arm64 it is g++-x86-64-linux-gnu.
import { cpSync, existsSync, mkdirSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { compilerOf, muslCompiler, root, run } from './toolchain.mjs'

const work = join(root, 'build-prebuild')
/** The oldest Node whose headers are used; the addon needs no more than Node-API 9. */
const OLDEST_NODE = '20.19.0'
const TARGETS = ['x64-glibc', 'arm64-glibc', 'x64-musl', 'arm64-musl']

/** The headers that came with this Node; node-gyp fetches some where there are none. */
function nodeHeaders() {
  const directory = join(dirname(process.execPath), '..')
  const there = existsSync(join(directory, 'include/node/node_api.h'))
  return there ? { npm_config_nodedir: directory } : {}
}

function build(target) {
  const [arch, libc] = target.split('-')
  const directory = join(work, target)
  mkdirSync(directory, { recursive: true })
  for (const name of ['native', 'binding.gyp', 'package.json']) {
    cpSync(join(root, name), join(directory, name), { recursive: true })
  }
  const { cxx, strip, loads } =
    libc === 'musl' ? muslCompiler(arch, join(work, `tools-${target}`)) : compilerOf(arch)
  const flags = ['--napi', '--strip', '--tag-libc', '--name', 'node.napi', '-t', OLDEST_NODE]
  flags.push('--arch', arch, '--libc', libc, '--strip-bin', strip, '--cwd', directory)
  run(process.execPath, [join(root, 'node_modules/prebuildify/bin.js'), ...flags], {
    env: { ...nodeHeaders(), ...process.env, CXX: cxx, LINK: cxx },
  })
  const file = join('prebuilds', `linux-${arch}`, `node.napi.${libc}.node`)
  loads?.(join(directory, file))
  // Only now: what does not load is not kept.
  mkdirSync(dirname(join(root, file)), { recursive: true })
  cpSync(join(directory, file), join(root, file))
  console.log(file)
}

const wanted = process.argv.slice(2)
const unknown = wanted.filter((name) => !TARGETS.includes(name))
if (unknown.length > 0)
  throw new Error(`targets are ${TARGETS.join(', ')}: not ${unknown.join(' ')}`)
rmSync(work, { recursive: true, force: true })
try {
  for (const target of wanted.length === 0 ? TARGETS : wanted) build(target)
} finally {
  rmSync(work, { recursive: true, force: true })
}
