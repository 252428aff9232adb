// A device reads where it may not, and the IOMMU says so:  node iommu-lab.mjs
// The guest's mistake is the commonest one of all: it frees a buffer that the device still has.
import { requesterName } from 'vhost-iotlb'
import { OneDevice, REQUESTER, TX, becomes } from './one-device.mjs'

const LENGTH = 12 + 60
const lab = new OneDevice({ fault: 'drop' })
const say = (text) => console.log(text)

const iova = lab.map(0, 'read')
lab.offer(TX, iova, LENGTH)
say(
  `mapped:   frame at iova 0x${iova.toString(16)}, ` +
    ((await becomes(() => lab.completed(TX))) ? 'sent' : 'not sent'),
)

lab.guest.unmap(iova)
lab.offer(TX, iova, LENGTH)
await becomes(() => lab.nic.stats().faults > 0)
say(`unmapped: the kernel asked for it, and got nothing (${lab.nic.stats().faults} fault)`)

for (const { what, at, value, means } of lab.iommu.explain(REQUESTER, iova)) {
  const entry = at === undefined ? '' : ` at 0x${at.toString(16)} = 0x${(value ?? 0n).toString(16)}`
  say(`  ${what}${entry}: ${means}`)
}
for (const { source, page, reason, access } of lab.guest.takeFaults()) {
  const address = `0x${(page * 4096).toString(16)}`
  say(`recorded: ${access} of ${address} by ${requesterName(source)}, reason code ${reason}`)
}

const again = lab.map(0, 'read')
lab.offer(TX, again, LENGTH)
say(`mended:   ${(await becomes(() => lab.completed(TX))) ? 'the next frame was sent' : 'stuck'}`)
lab.close()
