/** The cases of `vhost-iotlb conformance`: on this kernel nothing is seen that is documented nowhere. */
import { expect, test } from 'vitest'
import { examined } from '../../lib/testing/conformance/case'
import { CASES } from '../../lib/testing/conformance/cases'
import { KernelDevice } from '../../lib/testing/conformance/kernel-device'

test.each(CASES)('$about: $name', (one) => {
  const { verdict, seen } = examined(one, () => new KernelDevice())
  expect(one.expected.map((outcome) => outcome.seen)).toContain(seen)
  expect(verdict).not.toBe('wrong')
})
