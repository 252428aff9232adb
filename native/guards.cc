#include "guards.h"

#include <cstring>

#include "arguments.h"

namespace vhost_iotlb {

namespace {

constexpr size_t kWord = sizeof(uint64_t);

// Both targets are little-endian, as the messages are.
uint64_t WordAt(const uint8_t* message, size_t at) {
  uint64_t word = 0;
  memcpy(&word, message + at, kWord);
  return word;
}

}  // namespace

bool Guards::Read(const Napi::Value& value) {
  napi_env env = value.Env();
  if (IsNullish(value)) return true;
  bool is_array = false;
  uint32_t length = 0;
  if (napi_is_array(env, value, &is_array) != napi_ok || !is_array ||
      napi_get_array_length(env, value, &length) != napi_ok) {
    ThrowType(env, "guards", "an array of integers");
    return false;
  }
  if (length % 2 != 0 || length > 2 * kMost) {
    ThrowRange(env, "guards.length", "an even number up to 256", length);
    return false;
  }
  for (uint32_t i = 0; i < length; i += 2) {
    napi_value address_at = nullptr;
    napi_value length_at = nullptr;
    if (napi_get_element(env, value, i, &address_at) != napi_ok ||
        napi_get_element(env, value, i + 1, &length_at) != napi_ok) {
      return false;
    }
    Guard guard = {};
    if (!ReadInteger(Napi::Value(env, address_at), "guard", 0, UINT32_MAX, &guard.address_at) ||
        !ReadInteger(Napi::Value(env, length_at), "guard", -kMaxSafeInteger, UINT32_MAX,
                     &guard.length_at)) {
      return false;
    }
    guards_[count_++] = guard;
  }
  return true;
}

bool Guards::Fit(napi_env env, size_t size) const {
  for (const Guard& guard : *this) {
    for (int64_t at : {static_cast<int64_t>(guard.address_at), guard.length_at}) {
      if (at < 0 || (size >= kWord && static_cast<uint64_t>(at) <= size - kWord)) continue;
      ThrowRange(env, "guard", "the place of a 64-bit word in the message",
                 static_cast<double>(at));
      return false;
    }
  }
  return true;
}

bool Guards::Allow(const OpenFile& file, const uint8_t* message) const {
  for (const Guard& guard : *this) {
    uint64_t length = guard.length_at < 0 ? static_cast<uint64_t>(-guard.length_at)
                                          : WordAt(message, static_cast<size_t>(guard.length_at));
    if (!file.Holds(WordAt(message, guard.address_at), length)) return false;
  }
  return true;
}

}  // namespace vhost_iotlb
