import { defineConfig } from 'vitest/config'

// What runs on the host and boots machines of its own.
export default defineConfig({
  test: {
    root: new URL('../..', import.meta.url).pathname,
    include: ['vm-tests/{vm,acpi}/**/*.test.ts'],
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
})
