/** How a device-TLB descriptor says which pages it means (VT-d 5.10, 6.5.2.5). */
import { LAST_PAGE } from '../../address'

/** Inclusive pages; one object, reused. */
export interface PageRange {
  firstPage: number
  lastPage: number
}

/**
 * With S clear, one page. With S set, the number of one bits at the bottom of the page number
 * says the size: none for two pages, each one doubles it, and the address is aligned down to it.
 * All ones up to bit 62 or 63 is the whole address space; Linux sends the former for "all".
 */
export function deviceTlbRange(page: number, size: boolean, out: PageRange): void {
  out.firstPage = page
  out.lastPage = page
  if (!size) return
  let pages = 2
  let rest = page
  while (rest % 2 === 1) {
    rest = (rest - 1) / 2
    pages *= 2
  }
  if (pages > LAST_PAGE) {
    out.firstPage = 0
    out.lastPage = LAST_PAGE
    return
  }
  out.firstPage = page - (page % pages)
  out.lastPage = out.firstPage + pages - 1
}
