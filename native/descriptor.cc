#include "descriptor.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <set>
#include <string>
#include <utility>

#include "arguments.h"
#include "environment.h"
#include "mapping.h"
#include "poller.h"
#include "process_lock.h"

namespace vhost_iotlb {

namespace {

// The numbers that descriptors of all threads own, so that none gets a second owner. Never
// destroyed: Workers may outlive static destructors.
std::set<int>& OwnedNumbers() {
  static auto* numbers = new std::set<int>();
  return *numbers;
}

bool IsOwned(int fd) {
  ProcessLock lock;
  return OwnedNumbers().count(fd) > 0;
}

}  // namespace

DescriptorState::DescriptorState(int fd) : fd_(fd) {
  if (fd < 0) return;
  ProcessLock lock;
  OwnedNumbers().insert(fd);
}

void DescriptorState::Close() {
  while (!polls.empty()) (*polls.begin())->Close();
  int fd = std::exchange(fd_, -1);
  if (fd >= 0) {
    {
      // Before the close, after which another thread may get the number from the kernel.
      ProcessLock lock;
      OwnedNumbers().erase(fd);
    }
    // Not repeated on EINTR: Linux has freed the number by then.
    close(fd);
  }
  for (const auto& mapping : held_) mapping->holders--;
  held_.clear();
}

bool DescriptorState::blocking() const {
  int flags = fcntl(fd_, F_GETFL);
  return flags >= 0 && (flags & O_NONBLOCK) == 0;
}

void DescriptorState::Hold(const std::shared_ptr<Mapping>& mapping) {
  for (const auto& held : held_) {
    if (held == mapping) return;
  }
  mapping->holders++;
  held_.push_back(mapping);
}

bool DescriptorState::Holds(uint64_t address, uint64_t length) const {
  for (const auto& mapping : held_) {
    if (mapping->Contains(address, length)) return true;
  }
  return false;
}

namespace {

// A new descriptor, or -errno when the call that made `fd` was refused.
Napi::Value Wrap(Napi::Env env, int fd) {
  if (fd < 0) return Napi::Number::New(env, -errno);
  Environment* environment = Environment::Of(env);
  environment->new_descriptor = std::shared_ptr<DescriptorState>(new DescriptorState(fd));
  Napi::Object object = environment->descriptor_class.New({});
  environment->new_descriptor.reset();
  return object;
}

}  // namespace

Napi::Function Descriptor::Define(Napi::Env env) {
  return DefineClass(env, "Descriptor",
                     {InstanceAccessor<&Descriptor::Fd>("fd"),
                      InstanceMethod<&Descriptor::CloseMethod>("close")});
}

Descriptor::Descriptor(const Napi::CallbackInfo& info) : TaggedWrap<Descriptor>(info) {
  state_ = std::move(Environment::Of(info.Env())->new_descriptor);
  if (state_ == nullptr) {
    state_ = std::shared_ptr<DescriptorState>(new DescriptorState(-1));
    ThrowIllegalConstructor(info.Env());
    return;
  }
  Tag(info);
}

Napi::Value Descriptor::Fd(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), state_->fd());
}

void Descriptor::CloseMethod(const Napi::CallbackInfo&) {
  state_->Close();
}

Napi::Value Descriptor::Open(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  int flags = 0;
  if (!info[0].IsString()) {
    ThrowType(env, "path", "a string");
    return Napi::Value();
  }
  std::string path = info[0].As<Napi::String>();
  if (path.find('\0') != std::string::npos) {
    ThrowType(env, "path", "a string without null bytes");
    return Napi::Value();
  }
  if (!ReadInteger(info[1], "flags", 0, INT_MAX, &flags)) return Napi::Value();
  int fd = -1;
  do {
    fd = open(path.c_str(), flags | O_CLOEXEC, 0600);
  } while (fd < 0 && errno == EINTR);
  return Wrap(env, fd);
}

Napi::Value Descriptor::Adopt(const Napi::CallbackInfo& info) {
  int fd = -1;
  if (!ReadInteger(info[0], "fd", 0, INT_MAX, &fd)) return Napi::Value();
  if (IsOwned(fd)) return Napi::Number::New(info.Env(), -EBUSY);
  int flags = fcntl(fd, F_GETFD);
  if (flags < 0 || fcntl(fd, F_SETFD, flags | FD_CLOEXEC) < 0) {
    return Napi::Number::New(info.Env(), -errno);
  }
  return Wrap(info.Env(), fd);
}

Napi::Value Descriptor::Duplicate(const Napi::CallbackInfo& info) {
  int fd = -1;
  if (!ReadInteger(info[0], "fd", 0, INT_MAX, &fd)) return Napi::Value();
  return Wrap(info.Env(), fcntl(fd, F_DUPFD_CLOEXEC, 3));
}

Napi::Value Descriptor::EventFd(const Napi::CallbackInfo& info) {
  unsigned initial = 0;
  if (!ReadInteger(info[0], "initial", 0, UINT32_MAX, &initial)) return Napi::Value();
  return Wrap(info.Env(), eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK));
}

Napi::Value Descriptor::Socket(const Napi::CallbackInfo& info) {
  int domain = 0;
  int type = 0;
  int protocol = 0;
  if (!ReadInteger(info[0], "domain", 0, INT_MAX, &domain) ||
      !ReadInteger(info[1], "type", 0, INT_MAX, &type) ||
      !ReadInteger(info[2], "protocol", 0, INT_MAX, &protocol)) {
    return Napi::Value();
  }
  return Wrap(info.Env(), socket(domain, type | SOCK_CLOEXEC, protocol));
}

Napi::Value Descriptor::SetNs(const Napi::CallbackInfo& info) {
  auto* descriptor = Descriptor::Read(info[0], "descriptor");
  int type = 0;
  if (descriptor == nullptr || !ReadInteger(info[1], "type", 0, INT_MAX, &type)) {
    return Napi::Value();
  }
  int result = setns(descriptor->state_->fd(), type);
  return Napi::Number::New(info.Env(), result < 0 ? -errno : result);
}

Napi::Value Descriptor::HoldMapping(const Napi::CallbackInfo& info) {
  auto* descriptor = Descriptor::Read(info[0], "descriptor");
  if (descriptor == nullptr) return Napi::Value();
  auto* view = MappingView::Read(info[1], "mapping");
  if (view == nullptr) return Napi::Value();
  std::shared_ptr<Mapping> mapping = view->mapping();
  int result = -EBADF;
  if (descriptor->state_->fd() >= 0 && mapping != nullptr) {
    descriptor->state_->Hold(mapping);
    result = 0;
  }
  return Napi::Number::New(info.Env(), result);
}

}  // namespace vhost_iotlb
