/**
 * Sends frames towards a device at a steady rate, from a process that needs nothing of ours: also
 * while this one's event loop stands still.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Writable } from 'node:stream'
import { interfaceIndex } from '../../lib/vhost/interface'

/** AF_PACKET is 17, SOCK_RAW is 3; a line on stdin starts it. */
const SCRIPT = `
my ($index, $count, $seconds, $frame) = @ARGV;
$frame = pack('H*', $frame);
socket(my $socket, 17, 3, 0) or die $!;
bind($socket, pack('S S i S C C a8', 17, 0, $index, 0, 0, 0, '')) or die $!;
$| = 1;
print "ready\\n";
<STDIN>;
for (1 .. $count) {
  select(undef, undef, undef, $seconds) if $seconds > 0;
  send($socket, $frame, 0);
}
`

export class Feeder implements AsyncDisposable {
  private constructor(
    private readonly stdin: Writable,
    /** Resolves when the last frame was sent. */
    readonly ended: Promise<unknown>,
    private readonly stop: () => void,
  ) {}

  /** Ready to send a frame `count` times, `milliseconds` before each. */
  static async open(
    name: string,
    frame: Uint8Array,
    count: number,
    milliseconds: number,
  ): Promise<Feeder> {
    const args = [interfaceIndex(name), count, milliseconds / 1000].map(String)
    const hex = Buffer.from(frame).toString('hex')
    const child = spawn('perl', ['-e', SCRIPT, ...args, hex], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    await once(child.stdout, 'data')
    return new Feeder(child.stdin, once(child, 'exit'), () => {
      child.kill()
    })
  }

  /** The write to the pipe is made at once. */
  start(): void {
    this.stdin.write('go\n')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.stop()
    await this.ended
  }
}
