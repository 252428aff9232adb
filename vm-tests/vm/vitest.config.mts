import { defineConfig } from 'vitest/config'

// The nested VM itself: these run on the host and boot it, two at a time at most.
export default defineConfig({
  test: {
    root: new URL('../..', import.meta.url).pathname,
    include: ['vm-tests/vm/**/*.test.ts'],
    fileParallelism: false,
    maxConcurrency: 2,
    testTimeout: 180_000,
    hookTimeout: 300_000,
  },
})
