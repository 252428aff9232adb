/** The Worker of the row 'worker, spinning': the rounds of `miss.ts`, answered by polling. */
import { parentPort, workerData } from 'node:worker_threads'
import { exact } from '../../iotlb/reply-policy'
import { roundTrips } from './miss'

async function run(count: number): Promise<void> {
  const sample = await roundTrips({ count, live: 64, reply: exact, busyPollMicroseconds: 1000 })
  parentPort?.postMessage(sample)
}

if (parentPort !== null) void run(workerData as number)
