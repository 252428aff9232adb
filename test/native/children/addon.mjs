// The addon itself, as JavaScript without types reaches it.
import { createRequire } from 'node:module'

const built = new URL('../../../build/Release/vhost_iotlb.node', import.meta.url).pathname

export const addon = process.env.VHOST_IOTLB_ADDON ?? built
export const native = createRequire(import.meta.url)(addon)

export function assert(condition, fact) {
  if (!condition) throw new Error(fact)
}
