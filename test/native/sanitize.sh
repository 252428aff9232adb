#!/bin/sh
# The tests of the native layer against an addon with AddressSanitizer and UBSan.
#
# Builds into build-asan/, which is not looked at by anything else. Arguments go to vitest.
# Leaks are left to the tests (descriptors, mappings, collector): LeakSanitizer cannot tell what
# V8 still reaches.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
out="$root/build-asan"
mkdir -p "$out"
for source in binding.gyp native; do
  ln -sfn "$root/$source" "$out/$source"
done

flags='-fsanitize=address,undefined -fno-sanitize-recover=undefined'
cd "$out"
CXXFLAGS="$flags -O1 -g -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS" LDFLAGS="$flags" \
  npx --no-install node-gyp configure build --loglevel=warn

cd "$root"
VHOST_IOTLB_ADDON="$out/build/Release/vhost_iotlb.node"
ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1
UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export VHOST_IOTLB_ADDON ASAN_OPTIONS UBSAN_OPTIONS LD_PRELOAD
exec node node_modules/vitest/vitest.mjs run --config test/vitest.config.mts \
  test/native test/native.test.ts test/raw.test.ts test/memory/guest-memory.test.ts "$@"
