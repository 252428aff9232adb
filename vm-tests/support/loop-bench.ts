/** A bench whose device is the kernel's, with the channel that the library itself would use. */
import { KernelChannel } from '../../lib/vhost/kernel-channel'
import { Bench } from '../../lib/testing/conformance/bench'
import { KernelDevice } from '../../lib/testing/conformance/kernel-device'

export class LoopBench extends Bench {
  readonly kernel: KernelDevice
  readonly channel: KernelChannel

  constructor() {
    const kernel = new KernelDevice()
    super(kernel)
    this.kernel = kernel
    this.channel = new KernelChannel({
      descriptor: kernel.device.descriptor,
      version: kernel.messageVersion,
    })
  }

  override [Symbol.dispose](): void {
    this.channel.close()
    super[Symbol.dispose]()
  }
}
