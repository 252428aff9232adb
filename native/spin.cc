#include "spin.h"

#include <sched.h>
#include <time.h>

#include <cstdint>

#include "arguments.h"

namespace vhost_iotlb {

namespace {

// Longer, and the loop's other work would wait for it.
constexpr double kMostMicroseconds = 1000;

// Looks between two offers of the processor to somebody else, such as the kernel thread that the
// change depends on.
constexpr int kLooks = 32;

uint64_t Nanoseconds() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Napi::Value AwaitChange(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  size_t offset = 0;
  uint32_t value = 0;
  uint64_t microseconds = 0;
  Bytes bytes;
  if (!ReadInteger(info[1], "byteOffset", 0, kMaxSafeInteger, &offset) ||
      !ReadInteger(info[2], "value", 0, UINT32_MAX, &value) ||
      !ReadInteger(info[3], "microseconds", 0, kMostMicroseconds, &microseconds) ||
      !ReadBytes(info[0], "view", &bytes)) {
    return Napi::Value();
  }
  if (bytes.length < sizeof(uint32_t) || offset > bytes.length - sizeof(uint32_t) ||
      reinterpret_cast<uintptr_t>(bytes.data + offset) % sizeof(uint32_t) != 0) {
    ThrowRange(env, "byteOffset", "the place of an aligned 32-bit word of the view",
               static_cast<double>(offset));
    return Napi::Value();
  }
  const auto* word = reinterpret_cast<const uint32_t*>(bytes.data + offset);
  const uint64_t end = Nanoseconds() + 1000 * microseconds;
  for (;;) {
    for (int i = 0; i < kLooks; i++) {
      if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) return Napi::Boolean::New(env, true);
      Pause();
    }
    if (Nanoseconds() >= end) return Napi::Boolean::New(env, false);
    sched_yield();
  }
}

}  // namespace vhost_iotlb
