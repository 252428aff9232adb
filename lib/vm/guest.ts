/**
 * What runs inside the VM before the command: the first process, as two shell scripts, and the job
 * that the host sends to it. Busybox runs both scripts; the command runs on the host's own files.
 *
 * The ports, by name: `control` carries the job to the guest, and when the host closes it the VM
 * powers off; `status` carries stages and the result back; `stdin`, `stdout` and `stderr` are the
 * command's. The console carries only what the kernel says.
 */

/** Written to the console as the first thing that the guest's first process does. */
export const INIT_MARKER = 'vhost-iotlb: init'

/** The command, and where and how it runs. */
export interface Job {
  /**
   * Mounted writable at its own path; everything else that is written stays in the guest's memory.
   */
  readonly projectDirectory: string
  readonly workingDirectory: string
  /** Whether the root came with the image (`packed-root.ts`), instead of from the file server. */
  readonly packed: boolean
  /** Whether the file server may do everything to the host's files: whether root runs it. */
  readonly ownsFiles: boolean
  /**
   * A command that runs beside the job, which waits until it has said a line. Left out: none.
   */
  readonly before?: readonly string[]
  /** Empty for an interactive shell. */
  readonly command: readonly string[]
  /** The whole environment. */
  readonly env: Readonly<Record<string, string>>
  /** Size of the terminal that the command gets; without it, it gets pipes. */
  readonly terminal?: TerminalSize
}

export interface TerminalSize {
  readonly rows: number
  readonly columns: number
}

/** The result as the guest reports it. */
export interface JobResult {
  /** As a shell would say it: 128 and the signal's number after a death by signal. */
  readonly status: number
  /** The number of the signal that killed the command, 0 if none did. */
  readonly signal: number
  readonly stdoutBytes: number
  readonly stderrBytes: number
}

/** A path in the guest that no host file can be in the way of: /run is the guest's own. */
const RUN = '/run/vhost-iotlb'

/**
 * Mounts the host's root under a layer in memory, and moves there. Everything is done with the
 * shell and the applets inside one busybox, so the archive holds nothing else.
 *
 * overlayfs opens the files below it with O_NOATIME, as whoever mounted it, if that is able to; the
 * file server of an ordinary user may not do that to other people's files. So it is mounted there
 * without the ability (CAP_FOWNER).
 */
export const INIT_SCRIPT = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo '${INIT_MARKER}'
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
fail() { echo "vhost-iotlb: $*" >/dev/console; poweroff -f; }
while read -r module; do
  insmod "$module" || echo "vhost-iotlb: cannot insert $module"
done </modules/order

port() {
  for entry in /sys/class/virtio-ports/*; do
    [ "$(cat "$entry/name")" = "$1" ] && echo "/dev/\${entry##*/}" && return
  done
}
tries=0
while [ -z "$(port stderr)" ]; do
  tries=$((tries + 1))
  [ $tries -gt 200 ] && fail 'no channel to the host'
  usleep 20000
done
exec 7<>"$(port control)" 8>"$(port status)"
echo 'stage modules' >&8
read -r length <&7
dd bs=1 count="$length" <&7 >/settings 2>/dev/null
read -r length <&7
dd bs=1 count="$length" <&7 >/before 2>/dev/null
read -r length <&7
dd bs=1 count="$length" <&7 >/job 2>/dev/null
. /settings

mkdir -p /host /new
mount_host() {
  mount -t virtiofs host /host || fail 'cannot mount the root of the host'
  mount -t tmpfs layer /host/run
  mkdir /host/run/upper /host/run/work /host/run/root
  cp /bin/busybox /host/run/
  [ "$owner" = 1 ] && unable= || unable='/usr/bin/setpriv --bounding-set=-fowner'
  chroot /host $unable /run/busybox mount -t overlay root /run/root \
    -o lowerdir=/,upperdir=/run/upper,workdir=/run/work ||
    fail 'cannot lay memory over the root of the host'
  mount --bind /host/run/root /new
}
if [ "$packed" = 1 ]; then
  mount --bind /host /new
  chroot /new /bin/busybox --install -s /bin
else
  mount_host
fi
mkdir -p "/new$project"
[ "$packed" = 1 ] || mount --bind "/host$project" "/new$project" || fail "cannot mount $project"
mount -t proc proc /new/proc
mount -t sysfs sysfs /new/sys
mount -t devtmpfs dev /new/dev
mount -t tmpfs run /new/run
mkdir -p /new/dev/pts /new/dev/shm /new${RUN} /new/run/lock /new/run/netns
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t debugfs debugfs /new/sys/kernel/debug 2>/dev/null
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup 2>/dev/null
ln -sf /proc/self/fd /new/dev/fd
ln -sf /proc/self/fd/0 /new/dev/stdin
ln -sf /proc/self/fd/1 /new/dev/stdout
ln -sf /proc/self/fd/2 /new/dev/stderr
rm -f /new/dev/ptmx
ln -s pts/ptmx /new/dev/ptmx
cp /bin/busybox /settings /before /job /run-job /new${RUN}/
port stdin >/new${RUN}/stdin
port stdout >/new${RUN}/stdout
port stderr >/new${RUN}/stderr
umount /sys /proc
[ "$packed" = 1 ] && exec /bin/busybox chroot /new ${RUN}/busybox sh ${RUN}/run-job
exec /bin/busybox switch_root /new ${RUN}/busybox sh ${RUN}/run-job
`

/**
 * Runs the job and reports. The command gets pipes, not the ports themselves, because a port cannot
 * be opened twice (`/dev/stderr`). They are opened for both directions first, because an open that
 * waits for the other end is interrupted when a child ends. When it ends, all that it left running
 * is killed, so that the pipes end; the byte counts tell the host when it has all of the output.
 */
export const RUN_JOB_SCRIPT = `cd ${RUN}
. ./settings
ifconfig lo up
hostname vhost-iotlb
(while read -r line <&7; do :; done; poweroff -f) &
if [ -s before ]; then
  mkfifo ready
  ./busybox sh ./before >ready 2>/dev/console 7>&- 8>&- &
  exec 3<ready
  read -r line <&3 || echo 'vhost-iotlb: what was to run before the command has ended' >/dev/console
  exec 3<&-
fi
if [ "$terminal" = 1 ]; then
  stty rows "$rows" cols "$columns" </dev/hvc0
  echo 'stage command' >&8
  setsid -c ./busybox time -o result -f '' /bin/sh ./job <>/dev/hvc0 >&0 2>&1 7>&- 8>&-
  status=$?
else
  mkfifo in out err
  exec 3<>out 4<>err 5<>in 6<in 9>in 5>&-
  (tee "$(cat stdout)" <out | wc -c >out.count) 3>&- 4>&- 6>&- 7>&- 8>&- 9>&- &
  out=$!
  (tee "$(cat stderr)" <err | wc -c >err.count) 3>&- 4>&- 6>&- 7>&- 8>&- 9>&- &
  err=$!
  cat <"$(cat stdin)" >&9 3>&- 4>&- 6>&- 7>&- 8>&- 9>&- 2>/dev/null &
  exec 9>&-
  echo 'stage command' >&8
  setsid ./busybox time -o result -f '' /bin/sh ./job <&6 >out 2>err 3>&- 4>&- 6>&- 7>&- 8>&-
  status=$?
  exec 3>&- 4>&- 6>&-
fi
signal=$(sed -n 's/^Command terminated by signal //p' result)
[ -n "$signal" ] && status=$((128 + signal))
for process in /proc/[0-9]*; do
  case "$(readlink "$process/exe")" in
    '' | ${RUN}/busybox) ;;
    *) kill -9 "\${process#/proc/}" 2>/dev/null ;;
  esac
done
[ "$terminal" = 1 ] || wait $out $err
sync
count() { cat "$1" 2>/dev/null || echo 0; }
echo "exit $status \${signal:-0} $(count out.count) $(count err.count)" >&8
while :; do sleep 3600; done
`

/** The bytes of a job on the control port: three scripts, each after a line with its length. */
export function encodeJob(job: Job): Buffer {
  const { terminal } = job
  const settings = [
    `project=${quoted(job.projectDirectory)}`,
    `packed=${job.packed ? 1 : 0}`,
    `owner=${job.ownsFiles ? 1 : 0}`,
    `terminal=${terminal === undefined ? 0 : 1}`,
    `rows=${terminal?.rows ?? 0}`,
    `columns=${terminal?.columns ?? 0}`,
  ]
  const command = job.command.length === 0 ? ['/bin/sh', '-c', SHELL] : job.command
  const assignments = Object.entries(job.env).map(([name, value]) => `${name}=${value}`)
  const exec = (words: readonly string[]): string =>
    `exec ${['/usr/bin/env', '-i', ...assignments, ...words].map(quoted).join(' ')}`
  const before = job.before === undefined ? [] : [exec(job.before)]
  const script = [`cd ${quoted(job.workingDirectory)} || exit 126`, exec(command)]
  return Buffer.concat([settings, before, script].map(block))
}

/** The interactive shell: bash where there is one. */
const SHELL = 'command -v bash >/dev/null && exec bash; exec sh'

/** Reads the line with the result from the status port; undefined for any other line. */
export function decodeResult(line: string): JobResult | undefined {
  const match = /^exit (\d+) (\d+) (\d+) (\d+)$/.exec(line)
  if (match === null) return undefined
  const [status, signal, stdoutBytes, stderrBytes] = match.slice(1).map(Number)
  return { status, signal, stdoutBytes, stderrBytes }
}

function block(lines: readonly string[]): Buffer {
  const text = Buffer.from(lines.map((line) => `${line}\n`).join(''))
  return Buffer.concat([Buffer.from(`${text.length}\n`), text])
}

/** One word of a shell command, whatever is in it. */
function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`
}
