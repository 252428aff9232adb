import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import ts from 'typescript'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { blocksOf, pages, root } from './pages'
import type { Block } from './pages'

/** What readers copy: type-checked against the built package, run where no kernel is needed. */
const blocks = pages().flatMap(blocksOf)
const scripts = blocks.filter(({ language }) => language === 'ts')
const shells = blocks.filter(({ language }) => language === 'sh')
const where = ({ page, line }: Block): string => `${page}:${line}`
const main = join(root, 'dist/cli/main.js')
/** What the README's script has made: other snippets go on from there, and do not say it again. */
const MADE: Readonly<Record<string, string>> = {
  tap: "declare const tap: import('vhost-iotlb').Tap",
  memory: "declare const memory: import('vhost-iotlb').GuestMemory",
  iommu: "declare const iommu: import('vhost-iotlb').IntelIommu",
  addressSpace: "declare const addressSpace: import('vhost-iotlb').AddressSpace",
  nic: "declare const nic: import('vhost-iotlb').VhostNet",
  driver: "declare const driver: import('vhost-iotlb').NetDriver",
  frame: 'declare const frame: Uint8Array',
  IntelIommu: "import { IntelIommu } from 'vhost-iotlb'",
  GuestMemory: "import { GuestMemory } from 'vhost-iotlb'",
  MiB: "import { MiB } from 'vhost-iotlb'",
  NetDriver: "import { NetDriver } from 'vhost-iotlb'",
  Tap: "import { Tap } from 'vhost-iotlb'",
  VhostNet: "import { VhostNet } from 'vhost-iotlb'",
}
let folder: string

/** Those that a snippet uses and does not make itself. */
function givenTo({ text }: Block): string[] {
  const uses = (name: string): boolean => new RegExp(`(?<![.\\w'"])${name}\\b`).test(text)
  const makes = (name: string): boolean =>
    new RegExp(`(?:const|using|import)\\b[^\\n=]*\\b${name}\\b[^\\n=]*(?:=|from)`).test(text)
  return Object.keys(MADE).filter((name) => uses(name) && !makes(name))
}

beforeAll(() => {
  if (!existsSync(main)) throw new Error(`${main} is missing: run the build first`)
  mkdirSync(join(root, 'build'), { recursive: true })
  // Inside the package, so that its own name leads to it.
  folder = mkdtempSync(join(root, 'build', 'snippets-'))
})
afterAll(() => {
  rmSync(folder, { recursive: true, force: true })
})

/** Scripts that are whole by themselves, and need no kernel. */
const complete = scripts.filter(
  (block) => givenTo(block).length === 0 && !/\b(Tap|VhostNet|VhostDevice)\./.test(block.text),
)

describe('the TypeScript of the pages', () => {
  it('there is some', () => {
    expect(scripts.length).toBeGreaterThan(2)
  })

  it('compiles against the package', () => {
    const files = scripts.map((block, i) => {
      const file = join(folder, `snippet-${i}.mts`)
      // On one line with the snippet's first, so that line numbers fit.
      const given = givenTo(block).map((name) => `${MADE[name]}; `)
      writeFileSync(file, given.join('') + block.text)
      return file
    })
    const program = ts.createProgram(files, {
      ...{ strict: true, noEmit: true, skipLibCheck: true },
      target: ts.ScriptTarget.ES2022,
      lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
      module: ts.ModuleKind.Node16,
      moduleResolution: ts.ModuleResolutionKind.Node16,
      types: ['node'],
    })
    const said = ts.getPreEmitDiagnostics(program).map(({ file, start = 0, messageText }) => {
      const block = scripts[files.indexOf(file?.fileName ?? '')]
      const line = file?.getLineAndCharacterOfPosition(start).line ?? 0
      const text = ts.flattenDiagnosticMessageText(messageText, ' ')
      return `${block.page}:${block.line + 1 + line}: ${text}`
    })
    expect(said).toEqual([])
  }, 60_000)

  it.each(complete.map((block) => [where(block), block] as const))('%s runs', (_, { text }) => {
    const { outputText } = ts.transpileModule(text, {
      compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
    })
    const file = join(folder, 'script.mjs')
    writeFileSync(file, outputText)
    execFileSync(process.execPath, [file], { stdio: 'pipe' })
  })
})

interface CommandLine {
  readonly at: string
  readonly words: readonly string[]
}

/** Command lines, without comments, joined where they are continued. */
const lines: readonly CommandLine[] = shells.flatMap((block) =>
  block.text
    .replaceAll('\\\n', ' ')
    .split('\n')
    .map((line) => line.replace(/\s+#.*$|^#.*$/, '').trim())
    .filter((line) => line !== '')
    .flatMap((line) => line.split('&&'))
    .map((line) => ({ at: where(block), words: line.trim().split(/\s+/) })),
)

/** The words after the program's name, of our own command lines: bare, and within `vm --`. */
function own({ words }: CommandLine): (readonly string[])[] {
  const begins = words.flatMap((word, i) => {
    if (word === 'vhost-iotlb') return [i + 1]
    return word === 'node' && words[i + 1] === 'dist/cli/main.js' ? [i + 2] : []
  })
  return begins.map((begin) => {
    const rest = words.slice(begin)
    const end = rest.indexOf('--')
    return end < 0 ? rest : rest.slice(0, end)
  })
}

describe('the shell commands of the pages', () => {
  const helps = new Map<string, string>()
  const helpOf = (command: string): string => {
    const known =
      helps.get(command) ??
      execFileSync(process.execPath, [main, command, '--help'], { encoding: 'utf8' })
    helps.set(command, known)
    return known
  }

  it('are shell', () => {
    for (const { text } of shells) execFileSync('bash', ['-n'], { input: text })
  })

  it('our own have commands and options that exist', () => {
    const mine = lines.flatMap((line) => own(line).map((words) => ({ ...line, words })))
    expect(mine.length).toBeGreaterThan(5)
    const wrong = mine.flatMap(({ at, words }) => {
      const [command, ...rest] = words
      const help = helpOf(command)
      const options = rest.filter((word) => word.startsWith('--'))
      const unknown = options.filter((option) => !help.includes(`  ${option}`))
      return unknown.map((option) => `${at}: ${command} ${option}`)
    })
    expect(wrong).toEqual([])
  })

  it('the scripts of npm and the files that they name exist', () => {
    const { scripts: known } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
      readonly scripts: Record<string, string>
    }
    const missing = lines.flatMap(({ at, words }) => {
      const [program, verb, name] = words
      if (program === 'npm' && verb === 'run' && !(name in known)) return [`${at}: ${name}`]
      const file = program === 'node' ? verb : undefined
      return file === undefined || existsSync(join(root, file)) ? [] : [`${at}: ${file}`]
    })
    expect(missing).toEqual([])
  })
})

describe("each command's help", () => {
  const names = [
    ...execFileSync(process.execPath, [main, '--help'], { encoding: 'utf8' })
      .split('Commands:')[1]
      .matchAll(/^ {2}([a-z]\w*)/gm),
  ].map(([, name]) => name)

  it.each(names.filter((name) => name !== 'help'))('%s has an example', (name) => {
    const help = execFileSync(process.execPath, [main, name, '--help'], { encoding: 'utf8' })
    expect(help).toMatch(/Examples?:\n/)
    // What a command prints for programs to read; these print a program's own output, or a script.
    if (!['vm', 'completion'].includes(name)) expect(help).toContain('--json')
  })
})
