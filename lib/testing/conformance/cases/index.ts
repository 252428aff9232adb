/** All cases, in the order of the table. */
import type { Case } from '../case'
import { history } from './history'
import { k01 } from './k01'
import { k02 } from './k02'
import { k03 } from './k03'
import { k04 } from './k04'
import { k05 } from './k05'
import { k06 } from './k06'
import { k07 } from './k07'
import { k08 } from './k08'
import { k09 } from './k09'
import { k10 } from './k10'
import { k11 } from './k11'
import { k12 } from './k12'

export const CASES: readonly Case[] = [
  ...[k01, k02, k03, k04, k05, k06, k07, k08, k09, k10, k11, k12, history].flat(),
]
