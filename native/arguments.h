// Arguments from JavaScript, checked before use: nothing here trusts a type, a range or a length.
//
// A reader answers false (or null) after it has thrown a TypeError or RangeError. Readers that can
// run JavaScript (array elements may have getters) are to be called before pointers are taken.
#ifndef VHOST_IOTLB_ARGUMENTS_H_
#define VHOST_IOTLB_ARGUMENTS_H_

#include <napi.h>

#include <cstddef>
#include <cstdint>

namespace vhost_iotlb {

constexpr double kMaxSafeInteger = 9007199254740991.0;

// The bytes of an ArrayBufferView, valid until JavaScript runs again.
struct Bytes {
  uint8_t* data = nullptr;
  size_t length = 0;
};

void ThrowType(napi_env env, const char* name, const char* expected);
void ThrowRange(napi_env env, const char* name, const char* expected, double received);

bool IsNullish(const Napi::Value& value);

// An integer from `low` to `high`, both exact in a double.
bool ReadInteger(const Napi::Value& value, const char* name, double low, double high, double* out);

template <typename T>
bool ReadInteger(const Napi::Value& value, const char* name, double low, double high, T* out) {
  double number = 0;
  if (!ReadInteger(value, name, low, high, &number)) return false;
  *out = static_cast<T>(number);
  return true;
}

// False when the value is not a view, or when its memory is gone or shorter than the view says.
bool ViewBytes(const Napi::Value& value, Bytes* out);
bool ReadBytes(const Napi::Value& value, const char* name, Bytes* out);

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_ARGUMENTS_H_
