import { defineConfig } from 'vitest/config'

// Guests of our own: in the nested VM with /dev/kvm (`vm --nested`), or on a host that has it.
export default defineConfig({
  test: {
    root: new URL('../..', import.meta.url).pathname,
    include: ['vm-tests/vmm/**/*.test.ts'],
    pool: 'threads',
    isolate: false,
    // What `test/run.mjs` has transformed on the host need not be where processors are emulated.
    experimental: { fsModuleCache: true },
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 240_000,
  },
})
