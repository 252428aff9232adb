#include "mapping.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <utility>

#include "arguments.h"
#include "environment.h"
#include "process_lock.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace vhost_iotlb {

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHuge2M = size_t{1} << 21;
constexpr size_t kHuge1G = size_t{1} << 30;

// What threads share, under the process lock. Never destroyed: Workers may outlive static
// destructors.
struct Registry {
  uint64_t last = 0;
  std::map<uint64_t, std::weak_ptr<Mapping>> mappings;
  // What the buffers that V8 still knows keep in place, by the number of the view.
  std::map<uint64_t, std::shared_ptr<Mapping>> views;
};

Registry& Shared() {
  static auto* registry = new Registry();
  return *registry;
}

uint64_t KeepForView(std::shared_ptr<Mapping> mapping) {
  ProcessLock lock;
  uint64_t view = ++Shared().last;
  Shared().views.emplace(view, std::move(mapping));
  return view;
}

// Twice is a no-op: when a buffer cannot be made, Node may or may not have run its finalizer.
void ReleaseView(uint64_t view) {
  std::shared_ptr<Mapping> dropped;
  ProcessLock lock;
  auto found = Shared().views.find(view);
  if (found == Shared().views.end()) return;
  dropped = std::move(found->second);
  Shared().views.erase(found);
}

int MemoryFile(size_t huge_page) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (huge_page == kHuge2M) flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  if (huge_page == kHuge1G) flags |= MFD_HUGETLB | MFD_HUGE_1GB;
  int fd = memfd_create("guest-memory", flags | MFD_NOEXEC_SEAL);
  // Kernels before 6.3 do not know the flag.
  if (fd < 0 && errno == EINVAL) fd = memfd_create("guest-memory", flags);
  return fd;
}

// Normal pages are not populated: a guest of some GiB would be committed and zeroed at once, and
// a first touch without free memory is the OOM killer's case, not SIGBUS. Huge pages come from a
// pool that can be empty when touched (a cgroup, a NUMA policy), which would be SIGBUS, so
// that they are allocated here, where it is an error number.
int Allocate(int fd, size_t length, bool huge) {
  if (ftruncate(fd, static_cast<off_t>(length)) < 0) return -errno;
  if (huge) {
    int result = 0;
    do {
      result = fallocate(fd, 0, 0, static_cast<off_t>(length));
    } while (result < 0 && errno == EINTR);
    if (result < 0) return -errno;
  }
  return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ? -errno : 0;
}

}  // namespace

Mapping::Mapping(uint8_t* data, size_t length) : data_(data), length_(length) {}

std::shared_ptr<Mapping> Mapping::Create(size_t length, size_t huge_page, int* error) {
  int fd = MemoryFile(huge_page);
  // ENODEV: the host does not know this size of page at all.
  *error = fd >= 0 ? Allocate(fd, length, huge_page != 0) : -errno;
  void* data = MAP_FAILED;
  if (*error == 0) {
    int flags = MAP_SHARED | (huge_page == 0 ? 0 : MAP_POPULATE);
    data = mmap(nullptr, length, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (data == MAP_FAILED) *error = -errno;
  }
  if (fd >= 0) close(fd);
  if (huge_page != 0 && (*error == -ENOSPC || *error == -ENODEV)) *error = -ENOMEM;
  if (*error != 0) return nullptr;

  std::shared_ptr<Mapping> mapping(new Mapping(static_cast<uint8_t*>(data), length));
  ProcessLock lock;
  mapping->id_ = ++Shared().last;
  Shared().mappings.emplace(mapping->id_, mapping);
  return mapping;
}

std::shared_ptr<Mapping> Mapping::Find(uint64_t id) {
  ProcessLock lock;
  auto found = Shared().mappings.find(id);
  return found == Shared().mappings.end() ? nullptr : found->second.lock();
}

Mapping::~Mapping() {
  {
    ProcessLock lock;
    Shared().mappings.erase(id_);
  }
  munmap(data_, length_);
}

bool Mapping::Contains(uint64_t address, uint64_t length) const {
  uint64_t start = reinterpret_cast<uint64_t>(data_);
  if (length == 0 || length > length_ || address < start) return false;
  return address - start <= length_ - length;
}

Napi::Function MappingView::Define(Napi::Env env) {
  return DefineClass(env, "Mapping",
                     {InstanceAccessor<&MappingView::Buffer>("buffer"),
                      InstanceAccessor<&MappingView::Address>("address"),
                      InstanceAccessor<&MappingView::ByteLength>("byteLength"),
                      InstanceAccessor<&MappingView::Id>("id"),
                      InstanceAccessor<&MappingView::Holders>("holders"),
                      InstanceMethod<&MappingView::Close>("close")});
}

Napi::Value MappingView::MapMemory(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  size_t length = 0;
  size_t huge_page = 0;
  if (!ReadInteger(info[0], "byteLength", 1, kMaxSafeInteger, &length)) return Napi::Value();
  if (!ReadInteger(info[1], "hugePage", 0, kHuge1G, &huge_page)) return Napi::Value();
  if (huge_page != 0 && huge_page != kHuge2M && huge_page != kHuge1G) {
    ThrowRange(env, "hugePage", "0, 2 MiB or 1 GiB", static_cast<double>(huge_page));
    return Napi::Value();
  }
  if (length % (huge_page == 0 ? kPage : huge_page) != 0) {
    ThrowRange(env, "byteLength", "a multiple of the page size", static_cast<double>(length));
    return Napi::Value();
  }
  int error = 0;
  std::shared_ptr<Mapping> mapping = Mapping::Create(length, huge_page, &error);
  if (mapping == nullptr) return Napi::Number::New(env, error);
  return Wrap(env, std::move(mapping));
}

Napi::Value MappingView::OpenMapping(const Napi::CallbackInfo& info) {
  uint64_t id = 0;
  if (!ReadInteger(info[0], "id", 0, kMaxSafeInteger, &id)) return Napi::Value();
  std::shared_ptr<Mapping> mapping = Mapping::Find(id);
  if (mapping == nullptr) return Napi::Number::New(info.Env(), -ENOENT);
  return Wrap(info.Env(), std::move(mapping));
}

Napi::Value MappingView::Wrap(Napi::Env env, std::shared_ptr<Mapping> mapping) {
  Environment* environment = Environment::Of(env);
  environment->new_mapping = std::move(mapping);
  Napi::Object object = environment->mapping_class.New({});
  environment->new_mapping.reset();
  return object;
}

MappingView::MappingView(const Napi::CallbackInfo& info) : TaggedWrap<MappingView>(info) {
  Napi::Env env = info.Env();
  std::shared_ptr<Mapping> mapping = std::move(Environment::Of(env)->new_mapping);
  if (mapping == nullptr) {
    ThrowIllegalConstructor(env);
    return;
  }
  uint64_t view = KeepForView(mapping);
  napi_value buffer = nullptr;
  napi_status status = napi_create_external_arraybuffer(
      env, mapping->data(), mapping->length(),
      [](napi_env, void*, void* hint) { ReleaseView(reinterpret_cast<uint64_t>(hint)); },
      reinterpret_cast<void*>(view), &buffer);
  if (status != napi_ok) {
    ReleaseView(view);
    // Node 20 refuses more than 4 GiB with a plain Error.
    napi_value ignored = nullptr;
    if (env.IsExceptionPending()) napi_get_and_clear_last_exception(env, &ignored);
    ThrowRange(env, "byteLength", "what one ArrayBuffer of this runtime can view",
               static_cast<double>(mapping->length()));
    return;
  }
  buffer_ = Napi::Reference<Napi::Value>::New(Napi::Value(env, buffer), 1);
  address_ = reinterpret_cast<uint64_t>(mapping->data());
  length_ = mapping->length();
  id_ = mapping->id();
  open_ = true;
  Tag(info);
}

Napi::Value MappingView::Buffer(const Napi::CallbackInfo&) {
  return buffer_.Value();
}

Napi::Value MappingView::Address(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), address_);
}

Napi::Value MappingView::ByteLength(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(length_));
}

Napi::Value MappingView::Id(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(id_));
}

Napi::Value MappingView::Holders(const Napi::CallbackInfo& info) {
  std::shared_ptr<Mapping> mapping = Mapping::Find(id_);
  return Napi::Number::New(info.Env(), mapping == nullptr ? 0 : mapping->holders.load());
}

void MappingView::Close(const Napi::CallbackInfo& info) {
  if (!open_) return;
  open_ = false;
  napi_detach_arraybuffer(info.Env(), buffer_.Value());
}

}  // namespace vhost_iotlb
