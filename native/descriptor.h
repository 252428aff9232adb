// Owned file descriptors. A number never leaves its object, and an object never names a number
// that it no longer owns.
#ifndef VHOST_IOTLB_DESCRIPTOR_H_
#define VHOST_IOTLB_DESCRIPTOR_H_

#include <napi.h>

#include <cstdint>
#include <list>
#include <memory>
#include <set>

#include "tagged_wrap.h"

namespace vhost_iotlb {

class Mapping;
class PollHandle;
class VcpuThread;

// What one descriptor, or several duplicates of it in any threads, have open. It keeps the memory
// in place that the kernel may use through it, until the last of them is closed.
class OpenFile {
 public:
  OpenFile() = default;
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  void Hold(const std::shared_ptr<Mapping>& mapping);
  // False when it was not held.
  bool LetGo(const std::shared_ptr<Mapping>& mapping);
  // Whether one of the mappings held contains all of [address, address + length).
  bool Holds(uint64_t address, uint64_t length) const;

 private:
  std::list<std::shared_ptr<Mapping>> held_;
};

// What a descriptor is without JavaScript. It belongs to one environment, hence to one thread.
class DescriptorState {
 public:
  // Takes `fd` over.
  DescriptorState(int fd, std::shared_ptr<OpenFile> file);
  ~DescriptorState() { Close(); }
  DescriptorState(const DescriptorState&) = delete;
  DescriptorState& operator=(const DescriptorState&) = delete;

  // -1 once closed.
  int fd() const { return fd_; }

  // Stops the polls and the processors, then closes, then lets the memory go: in this order, because only the close
  // stops the kernel from using it.
  void Close();
  // Whether a read may wait for data. Asks the kernel until the answer is no.
  bool MayWait();
  // An ioctl can change the answer (FIONBIO).
  void ForgetMode() { non_blocking_ = false; }

  // Not to be called once closed.
  OpenFile& file() const { return *file_; }

  std::set<PollHandle*> polls;
  std::set<VcpuThread*> vcpus;

 private:
  int fd_;
  bool non_blocking_ = false;
  std::shared_ptr<OpenFile> file_;
};

// The class `Descriptor` of JavaScript.
class Descriptor : public TaggedWrap<Descriptor> {
 public:
  static constexpr const char* kExpected = "a Descriptor";

  static Napi::Function Define(Napi::Env env);
  static Napi::Value Open(const Napi::CallbackInfo& info);
  static Napi::Value Adopt(const Napi::CallbackInfo& info);
  static Napi::Value Duplicate(const Napi::CallbackInfo& info);
  static Napi::Value EventFd(const Napi::CallbackInfo& info);
  static Napi::Value Socket(const Napi::CallbackInfo& info);
  static Napi::Value SetNs(const Napi::CallbackInfo& info);
  static Napi::Value HoldMapping(const Napi::CallbackInfo& info);
  static Napi::Value LetGoOfMapping(const Napi::CallbackInfo& info);

  explicit Descriptor(const Napi::CallbackInfo& info);

  const std::shared_ptr<DescriptorState>& state() const { return state_; }

 private:
  Napi::Value Fd(const Napi::CallbackInfo& info);
  void CloseMethod(const Napi::CallbackInfo& info);

  std::shared_ptr<DescriptorState> state_;
};

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_DESCRIPTOR_H_
