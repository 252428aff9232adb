#include "arguments.h"

#include <cmath>
#include <cstdio>

namespace vhost_iotlb {

void ThrowType(napi_env env, const char* name, const char* expected) {
  char message[160];
  snprintf(message, sizeof message, "%s must be %s", name, expected);
  napi_throw_type_error(env, "ERR_INVALID_ARG_TYPE", message);
}

void ThrowRange(napi_env env, const char* name, const char* expected, double received) {
  char message[200];
  snprintf(message, sizeof message, "%s must be %s: %.17g", name, expected, received);
  napi_throw_range_error(env, "ERR_OUT_OF_RANGE", message);
}

bool IsNullish(const Napi::Value& value) {
  return value.IsUndefined() || value.IsNull();
}

bool ReadInteger(const Napi::Value& value, const char* name, double low, double high, double* out) {
  napi_env env = value.Env();
  double number = 0;
  if (napi_get_value_double(env, value, &number) != napi_ok) {
    ThrowType(env, name, "an integer");
    return false;
  }
  if (!(number >= low && number <= high) || std::trunc(number) != number) {
    char expected[80];
    snprintf(expected, sizeof expected, "an integer from %.17g to %.17g", low, high);
    ThrowRange(env, name, expected, number);
    return false;
  }
  *out = number;
  return true;
}

namespace {

size_t ElementSize(napi_typedarray_type type) {
  switch (type) {
    case napi_int8_array:
    case napi_uint8_array:
    case napi_uint8_clamped_array:
      return 1;
    case napi_int16_array:
    case napi_uint16_array:
      return 2;
    case napi_int32_array:
    case napi_uint32_array:
    case napi_float32_array:
      return 4;
    case napi_float64_array:
    case napi_bigint64_array:
    case napi_biguint64_array:
      return 8;
    default:
      return 0;
  }
}

// A DataView on a resizable buffer keeps its length when the buffer shrinks below it.
bool StillInside(napi_env env, napi_value buffer, size_t offset, size_t length) {
  void* data = nullptr;
  size_t whole = 0;
  // Refused for a SharedArrayBuffer, which can only grow.
  if (napi_get_arraybuffer_info(env, buffer, &data, &whole) != napi_ok) return true;
  return data != nullptr && offset <= whole && length <= whole - offset;
}

}  // namespace

bool ViewBytes(const Napi::Value& value, Bytes* out) {
  napi_env env = value.Env();
  napi_value buffer = nullptr;
  void* data = nullptr;
  size_t offset = 0;
  bool is = false;
  *out = Bytes();
  if (napi_is_typedarray(env, value, &is) == napi_ok && is) {
    napi_typedarray_type type;
    size_t elements = 0;
    napi_status status =
        napi_get_typedarray_info(env, value, &type, &elements, &data, &buffer, &offset);
    if (status != napi_ok) return false;
    size_t length = elements * ElementSize(type);
    if (length > 0 && data != nullptr) *out = {static_cast<uint8_t*>(data), length};
    return true;
  }
  if (napi_is_dataview(env, value, &is) == napi_ok && is) {
    size_t length = 0;
    if (napi_get_dataview_info(env, value, &length, &data, &buffer, &offset) != napi_ok) {
      return false;
    }
    if (length > 0 && data != nullptr && StillInside(env, buffer, offset, length)) {
      *out = {static_cast<uint8_t*>(data), length};
    }
    return true;
  }
  return false;
}

bool ReadBytes(const Napi::Value& value, const char* name, Bytes* out) {
  if (ViewBytes(value, out)) return true;
  ThrowType(value.Env(), name, "an ArrayBufferView");
  return false;
}

}  // namespace vhost_iotlb
