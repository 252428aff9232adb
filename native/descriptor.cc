#include "descriptor.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <map>
#include <string>
#include <utility>

#include "arguments.h"
#include "environment.h"
#include "mapping.h"
#include "poller.h"
#include "process_lock.h"
#include "vcpu.h"

namespace vhost_iotlb {

namespace {

// The numbers that descriptors of all threads own, under the process lock. A number leaves before
// it is closed, hence one that is here is open. Never destroyed: Workers may outlive static
// destructors.
std::map<int, std::weak_ptr<OpenFile>>& OwnedNumbers() {
  static auto* numbers = new std::map<int, std::weak_ptr<OpenFile>>();
  return *numbers;
}

bool IsOwned(int fd) {
  ProcessLock lock;
  return OwnedNumbers().count(fd) > 0;
}

// dup(2), and what the number has open if a descriptor owns it.
int DuplicateNumber(int fd, std::shared_ptr<OpenFile>* file) {
  ProcessLock lock;
  auto owned = OwnedNumbers().find(fd);
  if (owned != OwnedNumbers().end()) *file = owned->second.lock();
  return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

}  // namespace

OpenFile::~OpenFile() {
  for (const auto& mapping : held_) mapping->holders--;
}

void OpenFile::Hold(const std::shared_ptr<Mapping>& mapping) {
  ProcessLock lock;
  for (const auto& held : held_) {
    if (held == mapping) return;
  }
  mapping->holders++;
  held_.push_back(mapping);
}

bool OpenFile::LetGo(const std::shared_ptr<Mapping>& mapping) {
  ProcessLock lock;
  for (auto held = held_.begin(); held != held_.end(); ++held) {
    if (*held != mapping) continue;
    mapping->holders--;
    held_.erase(held);
    return true;
  }
  return false;
}

bool OpenFile::Holds(uint64_t address, uint64_t length) const {
  ProcessLock lock;
  for (const auto& mapping : held_) {
    if (mapping->Contains(address, length)) return true;
  }
  return false;
}

DescriptorState::DescriptorState(int fd, std::shared_ptr<OpenFile> file)
    : fd_(fd), file_(std::move(file)) {
  if (fd < 0) return;
  ProcessLock lock;
  OwnedNumbers()[fd] = file_;
}

void DescriptorState::Close() {
  while (!polls.empty()) (*polls.begin())->Close();
  while (!vcpus.empty()) (*vcpus.begin())->Close();
  int fd = std::exchange(fd_, -1);
  if (fd < 0) return;
  {
    ProcessLock lock;
    OwnedNumbers().erase(fd);
  }
  // Not repeated on EINTR: Linux has freed the number by then.
  close(fd);
  file_.reset();
}

bool DescriptorState::MayWait() {
  if (non_blocking_) return false;
  int flags = fcntl(fd_, F_GETFL);
  non_blocking_ = flags >= 0 && (flags & O_NONBLOCK) != 0;
  return !non_blocking_;
}

namespace {

// A new descriptor, or -errno when the call that made `fd` was refused.
Napi::Value Wrap(Napi::Env env, int fd, std::shared_ptr<OpenFile> file = nullptr) {
  if (fd < 0) return Napi::Number::New(env, -errno);
  if (file == nullptr) file.reset(new OpenFile());
  Environment* environment = Environment::Of(env);
  environment->new_descriptor.reset(new DescriptorState(fd, std::move(file)));
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
    state_.reset(new DescriptorState(-1, nullptr));
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
  std::shared_ptr<OpenFile> file;
  int duplicate = DuplicateNumber(fd, &file);
  return Wrap(info.Env(), duplicate, std::move(file));
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
    descriptor->state_->file().Hold(mapping);
    result = 0;
  }
  return Napi::Number::New(info.Env(), result);
}

Napi::Value Descriptor::LetGoOfMapping(const Napi::CallbackInfo& info) {
  auto* descriptor = Descriptor::Read(info[0], "descriptor");
  if (descriptor == nullptr) return Napi::Value();
  auto* view = MappingView::Read(info[1], "mapping");
  if (view == nullptr) return Napi::Value();
  std::shared_ptr<Mapping> mapping = view->mapping();
  int result = -EBADF;
  if (descriptor->state_->fd() >= 0 && mapping != nullptr) {
    result = descriptor->state_->file().LetGo(mapping) ? 0 : -ENOENT;
  }
  return Napi::Number::New(info.Env(), result);
}

}  // namespace vhost_iotlb
