#include "messages.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <new>

#include "descriptor.h"
#include "guards.h"

namespace vhost_iotlb {

namespace {

ssize_t ReadOnce(int fd, void* data, size_t size) {
  ssize_t result = 0;
  do {
    result = read(fd, data, size);
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

// vhost-net answers 72 whatever the length: any answer that is not an error is one message.
ssize_t WriteOnce(int fd, const void* data, size_t size) {
  ssize_t result = 0;
  do {
    result = write(fd, data, size);
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

bool Readable(int fd) {
  pollfd entry = {fd, POLLIN, 0};
  return poll(&entry, 1, 0) > 0;
}

int64_t WriteMessages(int fd, const uint8_t* data, size_t size, size_t count) {
  size_t written = 0;
  while (written < count) {
    ssize_t result = WriteOnce(fd, data + written * size, size);
    if (result < 0) return written > 0 ? static_cast<int64_t>(written) : result;
    written++;
  }
  return static_cast<int64_t>(written);
}

// The guards see a copy, and the copy is what is written: the caller's bytes may be memory that
// another thread or the guest changes between check and use.
int64_t WriteGuarded(const DescriptorState& descriptor, const Guards& guards, const uint8_t* data,
                     size_t size, size_t count) {
  constexpr size_t kSmall = 4608;
  uint8_t small[kSmall];
  std::unique_ptr<uint8_t[]> large;
  uint8_t* copy = small;
  size_t length = size * count;
  if (length > kSmall) {
    large.reset(new (std::nothrow) uint8_t[length]);
    if (large == nullptr) return -ENOMEM;
    copy = large.get();
  }
  memcpy(copy, data, length);
  for (size_t i = 0; i < count; i++) {
    if (!guards.Allow(descriptor.file(), copy + i * size)) return -EFAULT;
  }
  return WriteMessages(descriptor.fd(), copy, size, count);
}

struct Transfer {
  Descriptor* descriptor;
  Bytes bytes;
};

// The arguments that read and write share: (descriptor, buffer, offset, length).
bool ReadTransfer(const Napi::CallbackInfo& info, Transfer* out) {
  out->descriptor = Descriptor::Read(info[0], "descriptor");
  if (out->descriptor == nullptr || !ReadBytes(info[1], "buffer", &out->bytes)) return false;
  size_t offset = 0;
  size_t length = 0;
  double whole = static_cast<double>(out->bytes.length);
  if (!ReadInteger(info[2], "offset", 0, whole, &offset)) return false;
  if (!ReadInteger(info[3], "length", 0, whole - static_cast<double>(offset), &length)) {
    return false;
  }
  out->bytes.data = out->bytes.data == nullptr ? nullptr : out->bytes.data + offset;
  out->bytes.length = length;
  return true;
}

Napi::Value Answer(const Napi::CallbackInfo& info, int64_t result) {
  return Napi::Number::New(info.Env(), static_cast<double>(result));
}

// A write whose arguments were read once. Reading them costs more than the call of the kernel.
struct BoundWrite {
  std::shared_ptr<DescriptorState> descriptor;
  Napi::Reference<Napi::Value> buffer;
  size_t size;
  Guards guards;
};

Napi::Value WriteBound(const Napi::CallbackInfo& info) {
  auto* bound = static_cast<BoundWrite*>(info.Data());
  const DescriptorState& state = *bound->descriptor;
  if (state.fd() < 0) return Answer(info, -EBADF);
  Bytes bytes;
  // The buffer may have been detached since.
  if (!ViewBytes(bound->buffer.Value(), &bytes) || bytes.length < bound->size) {
    return Answer(info, -EFAULT);
  }
  if (bound->guards.empty()) return Answer(info, WriteMessages(state.fd(), bytes.data, bound->size, 1));
  return Answer(info, WriteGuarded(state, bound->guards, bytes.data, bound->size, 1));
}

}  // namespace

int64_t ReadMessages(int fd, bool may_wait, Bytes bytes, size_t size) {
  int64_t count = 0;
  for (size_t at = 0; size <= bytes.length - at; at += size) {
    if (may_wait && !Readable(fd)) return count > 0 ? count : -EAGAIN;
    ssize_t result = ReadOnce(fd, bytes.data + at, size);
    if (result < 0) return count > 0 ? count : result;
    if (result == 0) return count;
    size_t got = static_cast<size_t>(result);
    if (got < size) memset(bytes.data + at + got, 0, size - got);
    count++;
  }
  return count;
}

Napi::Value ReadMany(const Napi::CallbackInfo& info) {
  auto* descriptor = Descriptor::Read(info[0], "descriptor");
  Bytes bytes;
  size_t size = 0;
  if (descriptor == nullptr || !ReadBytes(info[1], "buffer", &bytes) ||
      !ReadInteger(info[2], "size", 1, static_cast<double>(bytes.length), &size)) {
    return Napi::Value();
  }
  int fd = descriptor->state()->fd();
  if (fd < 0) return Answer(info, -EBADF);
  return Answer(info, ReadMessages(fd, descriptor->state()->MayWait(), bytes, size));
}

Napi::Value WriteMany(const Napi::CallbackInfo& info) {
  Guards guards;
  if (!guards.Read(info[4])) return Napi::Value();
  auto* descriptor = Descriptor::Read(info[0], "descriptor");
  Bytes bytes;
  size_t size = 0;
  size_t count = 0;
  if (descriptor == nullptr || !ReadBytes(info[1], "buffer", &bytes)) return Napi::Value();
  double whole = static_cast<double>(bytes.length);
  if (!ReadInteger(info[2], "size", 1, whole, &size)) return Napi::Value();
  if (!ReadInteger(info[3], "count", 0, static_cast<double>(bytes.length / size), &count) ||
      !guards.Fit(info.Env(), size)) {
    return Napi::Value();
  }
  const DescriptorState& state = *descriptor->state();
  if (state.fd() < 0) return Answer(info, -EBADF);
  if (guards.empty()) return Answer(info, WriteMessages(state.fd(), bytes.data, size, count));
  return Answer(info, WriteGuarded(state, guards, bytes.data, size, count));
}

Napi::Value Writer(const Napi::CallbackInfo& info) {
  auto bound = std::make_unique<BoundWrite>();
  if (!bound->guards.Read(info[3])) return Napi::Value();
  auto* descriptor = Descriptor::Read(info[0], "descriptor");
  Bytes bytes;
  if (descriptor == nullptr || !ReadBytes(info[1], "buffer", &bytes) ||
      !ReadInteger(info[2], "size", 1, static_cast<double>(bytes.length), &bound->size) ||
      !bound->guards.Fit(info.Env(), bound->size)) {
    return Napi::Value();
  }
  bound->descriptor = descriptor->state();
  bound->buffer = Napi::Reference<Napi::Value>::New(info[1], 1);
  auto function = Napi::Function::New<WriteBound>(info.Env(), "write", bound.get());
  if (function.IsEmpty()) return Napi::Value();
  function.AddFinalizer([](Napi::Env, BoundWrite* gone) { delete gone; }, bound.get());
  bound.release();
  return function;
}

Napi::Value Read(const Napi::CallbackInfo& info) {
  Transfer transfer = {};
  if (!ReadTransfer(info, &transfer)) return Napi::Value();
  int fd = transfer.descriptor->state()->fd();
  return Answer(info, ReadOnce(fd, transfer.bytes.data, transfer.bytes.length));
}

Napi::Value Write(const Napi::CallbackInfo& info) {
  Transfer transfer = {};
  if (!ReadTransfer(info, &transfer)) return Napi::Value();
  int fd = transfer.descriptor->state()->fd();
  return Answer(info, WriteOnce(fd, transfer.bytes.data, transfer.bytes.length));
}

}  // namespace vhost_iotlb
