/** Who wants to see each entry that a walk reads: `explain`. A walk without one pays a branch. */

export type EntryKind =
  | 'root entry'
  | 'context entry'
  | 'scalable-mode root entry'
  | 'scalable-mode context entry'
  | 'PASID directory entry'
  | 'PASID table entry'
  | 'first-stage entry'
  | 'second-stage entry'

export interface WalkTrace {
  /** @param at guest-physical address @param level 5 to 1, or 0 for what has no levels */
  entry(kind: EntryKind, at: number, level: number): void
}
