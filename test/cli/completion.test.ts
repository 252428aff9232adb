import { execFileSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Command, Option } from 'commander'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { addCompletionCommands, candidates, completionScript } from '../../lib/cli/completion'

function program(): Command {
  const command = new Command('tool').version('1.0').enablePositionalOptions()
  command
    .command('paint')
    .addOption(new Option('--colour <colour>').choices(['red', 'green', 'grey']))
    .option('--only <part...>')
    .addOption(new Option('--secret').hideHelp())
    .option('--json')
  command.command('run').argument('[command...]').passThroughOptions()
  addCompletionCommands(command)
  return command
}

describe('what fits', () => {
  it.each([
    ['nothing yet', [''], ['paint', 'run', 'completion', '--version', '--help']],
    ['the beginning of a command', ['pa'], ['paint']],
    [
      'options of a command, hidden ones left out',
      ['paint', '--'],
      ['--colour', '--only', '--json', '--help'],
    ],
    ['the choices of an option', ['paint', '--colour', 'gr'], ['green', 'grey']],
    ['what is not there yet', ['paint', '--colour', 'red', '--json', '--'], ['--only', '--help']],
    ['a value of its own: a file', ['paint', '--only', ''], []],
    ['the choices of an argument', ['completion', ''], ['bash', 'zsh', 'fish', '--help']],
    ["another program's words", ['run', '--', 'l'], []],
  ] as const)('%s', (_, words, expected) => {
    expect(candidates(program(), words)).toEqual(expected)
  })
})

describe('the script for bash', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'vhost-iotlb-completion-'))
    const main = join(__dirname, '../../dist/cli/main.js')
    const command = join(folder, 'vhost-iotlb')
    writeFileSync(command, `#!/bin/sh\nexec "${process.execPath}" "${main}" "$@"\n`)
    chmodSync(command, 0o755)
  })
  afterAll(() => {
    rmSync(folder, { recursive: true, force: true })
  })

  /** What bash itself would put in the place of the last word. */
  function completed(words: readonly string[]): string[] {
    const script = `
      source /dev/stdin <<'END'\n${completionScript('bash', 'vhost-iotlb')}END
      COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
      read -r _ _ function _ <<< "$(complete -p vhost-iotlb)"
      $function
      printf '%s\\n' "\${COMPREPLY[@]}"`
    const said = execFileSync('bash', ['-c', script, 'bash', 'vhost-iotlb', ...words], {
      encoding: 'utf8',
      env: { ...process.env, PATH: `${folder}:${process.env['PATH'] ?? ''}` },
    })
    return said.trim().split('\n')
  }

  it('completes commands, options and choices of the real command line', () => {
    expect(completed(['doc'])).toEqual(['doctor'])
    expect(completed(['demo', '--map'])).toEqual(['--mapping'])
    expect(completed(['demo', '--mapping', 's'])).toEqual(['static', 'strict'])
  })

  it('completes file names where nothing else fits', () => {
    expect(completed(['vm', '--', '/etc/host'])).toContain('/etc/hosts')
  })
})
