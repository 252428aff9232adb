#include "ioctl.h"

#include <asm/ioctl.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <new>

#include "arguments.h"
#include "descriptor.h"
#include "guards.h"

namespace vhost_iotlb {

namespace {

// Below any address that can be mapped (vm.mmap_min_addr): the kernel that takes such an argument
// for a pointer answers EFAULT.
constexpr double kNoAddress = 0xffff;

// Request numbers may understate what the kernel reads and writes (TUNSETIFF says 4 bytes and uses
// 40; SET_MEM_TABLE says 8 and uses 2056). The slack around the copy is where such a call ends up
// instead of in somebody else's memory. All ones are refused as sizes, addresses and counts.
constexpr size_t kSlack = 2304;

// EINTR is the caller's: the kernel restarts what can be restarted itself, and to KVM_RUN it is
// an answer.
int64_t Call(int fd, unsigned request, void* argument) {
  int result = ioctl(fd, static_cast<unsigned long>(request), argument);
  return result < 0 ? -errno : result;
}

int64_t CallWithBytes(const DescriptorState& descriptor, unsigned request, const Guards& guards,
                      Bytes bytes) {
  constexpr size_t kSmall = 4096;
  alignas(16) uint8_t small[kSmall + kSlack];
  std::unique_ptr<uint8_t[]> large;
  uint8_t* copy = small;
  if (bytes.length > kSmall) {
    large.reset(new (std::nothrow) uint8_t[bytes.length + kSlack]);
    if (large == nullptr) return -ENOMEM;
    copy = large.get();
  }
  memcpy(copy, bytes.data, bytes.length);
  memset(copy + bytes.length, 0xff, kSlack);
  if (descriptor.fd() < 0) return -EBADF;
  if (!guards.Allow(descriptor.file(), copy)) return -EFAULT;
  int64_t result = Call(descriptor.fd(), request, copy);
  memcpy(bytes.data, copy, bytes.length);
  return result;
}

struct Request {
  unsigned number = 0;
  // What the number says, or what the caller says instead.
  size_t size = 0;
  bool size_given = false;
  bool has_payload = false;
};

bool ReadRequest(const Napi::CallbackInfo& info, Request* out) {
  if (!ReadInteger(info[1], "request", 0, UINT32_MAX, &out->number)) return false;
  out->has_payload = _IOC_DIR(out->number) != _IOC_NONE;
  out->size = out->has_payload ? _IOC_SIZE(out->number) : 0;
  if (IsNullish(info[3])) return true;
  double given = 0;
  if (!ReadInteger(info[3], "size", 0, kMaxSafeInteger, &given)) return false;
  bool is_value = given == 0 && info[2].IsNumber();
  if (!is_value && given < static_cast<double>(out->size)) {
    ThrowRange(info.Env(), "size", "at least what the request says", given);
    return false;
  }
  out->size = static_cast<size_t>(given);
  out->size_given = true;
  return true;
}

}  // namespace

Napi::Value Ioctl(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Guards guards;
  Request request;
  if (!guards.Read(info[4])) return Napi::Value();
  auto* descriptor = Descriptor::Read(info[0], "descriptor");
  if (descriptor == nullptr || !ReadRequest(info, &request)) return Napi::Value();
  DescriptorState& state = *descriptor->state();
  state.ForgetMode();
  const Napi::Value argument = info[2];

  if (IsNullish(argument) || argument.IsNumber()) {
    if (request.size > 0 || (request.has_payload && !request.size_given)) {
      ThrowType(env, "argument",
                "an ArrayBufferView: the request has a payload (size 0 says that it has not)");
      return Napi::Value();
    }
    uint64_t value = 0;
    double most = request.size_given ? kMaxSafeInteger : kNoAddress;
    if (argument.IsNumber() && !ReadInteger(argument, "argument", 0, most, &value)) {
      return Napi::Value();
    }
    if (!guards.Fit(env, 0)) return Napi::Value();
    return Napi::Number::New(env, static_cast<double>(Call(state.fd(), request.number,
                                                           reinterpret_cast<void*>(value))));
  }

  Bytes bytes;
  if (!ReadBytes(argument, "argument", &bytes)) return Napi::Value();
  if (request.size == 0) {
    ThrowType(env, "argument", "an integer or nothing: the request has no payload");
    return Napi::Value();
  }
  if (bytes.length < request.size) {
    ThrowRange(env, "argument.byteLength", "at least the size of the request",
               static_cast<double>(bytes.length));
    return Napi::Value();
  }
  if (!guards.Fit(env, bytes.length)) return Napi::Value();
  return Napi::Number::New(
      env, static_cast<double>(CallWithBytes(state, request.number, guards, bytes)));
}

}  // namespace vhost_iotlb
