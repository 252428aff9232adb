// Shared anonymous memory of this process, and the views that JavaScript has of it.
//
// The memory belongs to the process, not to an environment: it stays until the last view of the
// last thread and the last descriptor that holds it are gone, because a kernel thread may write
// to it by its address. A view's part ends when V8 drops the backing store, not when `close()` is
// called: work in the thread pool may still use it in between.
#ifndef VHOST_IOTLB_MAPPING_H_
#define VHOST_IOTLB_MAPPING_H_

#include <napi.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "tagged_wrap.h"

namespace vhost_iotlb {

class Mapping {
 public:
  // Null with -errno in `error`.
  static std::shared_ptr<Mapping> Create(size_t length, size_t huge_page, int* error);
  // Null when the memory is gone, or never was.
  static std::shared_ptr<Mapping> Find(uint64_t id);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Whether [address, address + length) is inside, and not empty. Any 64-bit values are fine.
  bool Contains(uint64_t address, uint64_t length) const;

  uint8_t* data() const { return data_; }
  size_t length() const { return length_; }
  uint64_t id() const { return id_; }
  std::atomic<uint32_t> holders{0};

 private:
  Mapping(uint8_t* data, size_t length);

  uint8_t* const data_;
  const size_t length_;
  uint64_t id_ = 0;
};

// The class `Mapping` of JavaScript: one environment's view.
class MappingView : public TaggedWrap<MappingView> {
 public:
  static constexpr const char* kExpected = "a Mapping";

  static Napi::Function Define(Napi::Env env);
  static Napi::Value MapMemory(const Napi::CallbackInfo& info);
  static Napi::Value OpenMapping(const Napi::CallbackInfo& info);

  explicit MappingView(const Napi::CallbackInfo& info);

  // Null once closed.
  std::shared_ptr<Mapping> mapping() const { return open_ ? Mapping::Find(id_) : nullptr; }

 private:
  static Napi::Value Wrap(Napi::Env env, std::shared_ptr<Mapping> mapping);

  Napi::Value Buffer(const Napi::CallbackInfo& info);
  Napi::Value Address(const Napi::CallbackInfo& info);
  Napi::Value ByteLength(const Napi::CallbackInfo& info);
  Napi::Value Id(const Napi::CallbackInfo& info);
  Napi::Value Holders(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);

  Napi::Reference<Napi::Value> buffer_;
  uint64_t address_ = 0;
  size_t length_ = 0;
  uint64_t id_ = 0;
  bool open_ = false;
};

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_MAPPING_H_
