import { defineConfig } from 'vitest/config'

// What is checked before a release: all four addons, each Node, other people's compilers. It
// installs from the registry and takes minutes: `npm run test:release`, not part of `npm test`.
export default defineConfig({
  test: {
    root: new URL('../..', import.meta.url).pathname,
    include: ['vm-tests/release/**/*.test.ts'],
    fileParallelism: false,
    testTimeout: 180_000,
    hookTimeout: 600_000,
  },
})
