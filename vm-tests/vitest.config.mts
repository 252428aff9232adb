import { defineConfig } from 'vitest/config'

// What runs against the real kernel: in the nested VM, or on a host with root and /dev/vhost-net.
// One thread, one file after another: taps, interfaces and the kernel's tables are shared.
export default defineConfig({
  test: {
    root: new URL('..', import.meta.url).pathname,
    include: ['vm-tests/**/*.test.ts'],
    exclude: ['vm-tests/vm/**', 'vm-tests/vmm/**', 'vm-tests/acpi/**', 'vm-tests/release/**'],
    pool: 'threads',
    isolate: false,
    // What `test/run.mjs` has transformed on the host need not be where processors are emulated.
    experimental: { fsModuleCache: true },
    fileParallelism: false,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
})
