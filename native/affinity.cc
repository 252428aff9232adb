#include "affinity.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "arguments.h"

namespace vhost_iotlb {

namespace {

// False after it has thrown.
bool ReadProcessors(const Napi::Value& value, cpu_set_t* out) {
  napi_env env = value.Env();
  bool is_array = false;
  uint32_t length = 0;
  if (napi_is_array(env, value, &is_array) != napi_ok || !is_array ||
      napi_get_array_length(env, value, &length) != napi_ok) {
    ThrowType(env, "processors", "an array of integers");
    return false;
  }
  if (length > CPU_SETSIZE) {
    ThrowRange(env, "processors.length", "at most 1024", length);
    return false;
  }
  CPU_ZERO(out);
  for (uint32_t i = 0; i < length; i++) {
    napi_value element = nullptr;
    uint32_t processor = 0;
    if (napi_get_element(env, value, i, &element) != napi_ok ||
        !ReadInteger(Napi::Value(env, element), "processor", 0, CPU_SETSIZE - 1, &processor)) {
      return false;
    }
    CPU_SET(processor, out);
  }
  return true;
}

// Another process is not for us to move.
bool IsOurs(int thread_id) {
  return thread_id == 0 || syscall(SYS_tgkill, getpid(), thread_id, 0) == 0;
}

}  // namespace

Napi::Value Affinity(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int thread_id = 0;
  if (!ReadInteger(info[0], "threadId", INT32_MIN, INT32_MAX, &thread_id)) return Napi::Value();
  cpu_set_t wanted;
  const bool sets = !IsNullish(info[1]);
  if (sets && !ReadProcessors(info[1], &wanted)) return Napi::Value();
  if (!IsOurs(thread_id)) return Napi::Number::New(env, -ESRCH);
  if (sets && sched_setaffinity(thread_id, sizeof(wanted), &wanted) != 0) {
    return Napi::Number::New(env, -errno);
  }
  cpu_set_t now;
  CPU_ZERO(&now);
  if (sched_getaffinity(thread_id, sizeof(now), &now) != 0) return Napi::Number::New(env, -errno);
  Napi::Array processors = Napi::Array::New(env);
  uint32_t count = 0;
  for (int i = 0; i < CPU_SETSIZE; i++) {
    if (CPU_ISSET(i, &now)) processors.Set(count++, Napi::Number::New(env, i));
  }
  return processors;
}

Napi::Value CurrentProcessor(const Napi::CallbackInfo& info) {
  const int processor = sched_getcpu();
  return Napi::Number::New(info.Env(), processor < 0 ? -errno : processor);
}

}  // namespace vhost_iotlb
