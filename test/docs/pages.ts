/** The written pages, and what of them can be checked: links, headings, blocks of code. */
import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'

export const root = join(import.meta.dirname, '../..')

export interface Block {
  readonly page: string
  /** 1 for the first line of the page. */
  readonly line: number
  readonly language: string
  readonly text: string
}

/** Paths of all pages, from the repository's root. */
export function pages(): string[] {
  const top = readdirSync(root).filter((name) => name.endsWith('.md'))
  const docs = readdirSync(join(root, 'docs')).filter((name) => name.endsWith('.md'))
  return [...top, ...docs.map((name) => `docs/${name}`)]
}

export function textOf(page: string): string {
  return readFileSync(join(root, page), 'utf8')
}

export function blocksOf(page: string): Block[] {
  const text = textOf(page)
  return [...text.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map((match) => ({
    page,
    line: text.slice(0, match.index).split('\n').length,
    language: match[1],
    text: match[2],
  }))
}

/** Anchors of a page, as they are made from headings. */
export function anchorsOf(page: string): string[] {
  const prose = textOf(page).replace(/^```[\s\S]*?^```$/gm, '')
  return [...prose.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-'),
  )
}

export interface Link {
  readonly page: string
  readonly target: string
  /** From the repository's root; the page itself for a mere anchor. */
  readonly path: string
  readonly anchor: string | undefined
}

/** Links to files and headings of the repository. */
export function linksOf(page: string): Link[] {
  const prose = textOf(page).replace(/^```[\s\S]*?^```$/gm, '')
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target]) => target)
    .filter((target) => !/^[a-z]+:/.test(target))
    .map((target) => {
      const [file, anchor] = target.split('#')
      const path = file === '' ? page : relative(root, join(root, dirname(page), file))
      return { page, target, path, anchor }
    })
}
