/**
 * Completion for shells, from the command table itself: what commander parses is what is offered.
 *
 * The scripts are thin. They hand the words so far to the hidden command `complete`, which prints
 * the candidates, one a line; none means "a file name". So a script never goes stale.
 */
import { Argument } from 'commander'
import type { Command, Option } from 'commander'

export const SHELLS = ['bash', 'zsh', 'fish'] as const
export type Shell = (typeof SHELLS)[number]

/** The command that the scripts call. */
const COMPLETE = 'complete'

export function addCompletionCommands(program: Command): void {
  program
    .command('completion')
    .description('print what a shell reads to complete this command')
    .addArgument(new Argument('<shell>').choices(SHELLS))
    .addHelpText(
      'after',
      '\nIt asks the command itself for what fits, so it never goes stale.' +
        '\n\nExamples:\n  source <(vhost-iotlb completion bash)' +
        '\n  vhost-iotlb completion zsh > ~/.zfunc/_vhost-iotlb' +
        '\n  vhost-iotlb completion fish > ~/.config/fish/completions/vhost-iotlb.fish',
    )
    .action((shell: Shell) => {
      process.stdout.write(completionScript(shell, program.name()))
    })
  program
    .command(COMPLETE, { hidden: true })
    .argument('[words...]')
    .passThroughOptions()
    .allowUnknownOption()
    .action((words: readonly string[]) => {
      for (const word of candidates(program, words)) console.log(word)
    })
}

/** What a shell reads to complete `name`. */
export function completionScript(shell: Shell, name: string): string {
  const identifier = `_${name.replaceAll('-', '_')}`
  return SCRIPTS[shell].replaceAll('NAME', name).replaceAll('FUNCTION', identifier)
}

const SCRIPTS: Readonly<Record<Shell, string>> = {
  bash: `FUNCTION() {
  local word="\${COMP_WORDS[COMP_CWORD]}"
  mapfile -t COMPREPLY < <("\${COMP_WORDS[0]}" ${COMPLETE} -- "\${COMP_WORDS[@]:1:COMP_CWORD}")
  if [ \${#COMPREPLY[@]} -eq 0 ]; then
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
  fi
}
complete -F FUNCTION NAME
`,
  zsh: `#compdef NAME
FUNCTION() {
  local -a found
  found=("\${(@f)$("\${words[1]}" ${COMPLETE} -- "\${(@)words[2,CURRENT]}")}")
  if [[ -n "\${found[1]}" ]]; then compadd -- "\${found[@]}"; else _files; fi
}
compdef FUNCTION NAME
`,
  fish: `function FUNCTION
  set -l words (commandline -opc) (commandline -ct)
  set -l found ($words[1] ${COMPLETE} -- $words[2..-1])
  if test (count $found) -gt 0
    printf '%s\\n' $found
  else
    __fish_complete_path (commandline -ct)
  end
end
complete -c NAME -f -a '(FUNCTION)'
`,
}

/**
 * What may stand in the place of the last word.
 * @param words those after the program's name; the last one is unfinished, and may be empty
 */
export function candidates(program: Command, words: readonly string[]): readonly string[] {
  const before = words.slice(0, -1)
  // What follows is another program's command line.
  if (before.includes('--')) return []
  const last = words.at(-1) ?? ''
  const { command, used, open } = place(program, before)
  return offered(command, used, open).filter((word) => word.startsWith(last))
}

interface Place {
  readonly command: Command
  /** Options of the command that are there already. */
  readonly used: ReadonlySet<Option>
  /** The option whose value is next. */
  readonly open: Option | undefined
}

/** Where a command line stands after its complete words. */
function place(program: Command, words: readonly string[]): Place {
  let command = program
  const used = new Set<Option>()
  let open: Option | undefined
  for (const word of words) {
    if (open !== undefined && !word.startsWith('-')) {
      if (!open.variadic) open = undefined
      continue
    }
    const option = command.options.find(({ long, short }) => word === long || word === short)
    open = option !== undefined && (option.required || option.optional) ? option : undefined
    if (option !== undefined) used.add(option)
    const child = command.commands.find((each) => each.name() === word)
    if (child !== undefined && option === undefined) command = child
  }
  return { command, used, open }
}

function offered(command: Command, used: ReadonlySet<Option>, open: Option | undefined): string[] {
  if (open !== undefined) return [...(open.argChoices ?? [])]
  const options = command.options.filter(({ hidden }) => !hidden)
  const fresh = options.filter((option) => option.variadic || !used.has(option))
  return [
    ...command.commands.filter((each) => !isHidden(each)).map((each) => each.name()),
    ...command.registeredArguments.flatMap((argument) => argument.argChoices ?? []),
    ...fresh.flatMap(({ long }) => (long === undefined ? [] : [long])),
    '--help',
  ]
}

function isHidden(command: Command): boolean {
  const parent = command.parent
  return parent !== null && !parent.createHelp().visibleCommands(parent).includes(command)
}
