// Watches a descriptor on the loop of its own environment.
#ifndef VHOST_IOTLB_POLLER_H_
#define VHOST_IOTLB_POLLER_H_

#include <napi.h>
#include <uv.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "arguments.h"
#include "descriptor.h"
#include "environment.h"
#include "tagged_wrap.h"

namespace vhost_iotlb {

class Poller;

// The libuv half. It outlives its JavaScript object until libuv has let go of the handle.
class PollHandle {
 public:
  struct Options {
    Napi::Value buffer;
    size_t size;
    Napi::Function listener;
    uint64_t busy_nanoseconds;
  };

  // Null with the -errno of libuv in `error`.
  static PollHandle* Start(Napi::Env env, std::shared_ptr<DescriptorState> descriptor,
                           const Options& options, int* error);

  // Stops at once, and frees this object in a later turn of the loop. Not to be called twice.
  void Close();
  void SetOwner(Poller* owner) { owner_ = owner; }
  void Ref() { uv_ref(reinterpret_cast<uv_handle_t*>(&poll_)); }
  void Unref() { uv_unref(reinterpret_cast<uv_handle_t*>(&poll_)); }

 private:
  PollHandle(Napi::Env env, std::shared_ptr<DescriptorState> descriptor, const Options& options);
  ~PollHandle() = default;

  static void OnEvent(uv_poll_t* poll, int status, int events);
  static void OnClosed(uv_handle_t* handle);
  // One batch into the buffer: how many messages, or -errno.
  int64_t Drain();
  void DeliverBatches();
  void Call(const Napi::Function& listener, int64_t value);
  void Fail(int64_t error);
  void DestroyContext();

  uv_poll_t poll_;
  Napi::Env env_;
  Environment* environment_;
  std::shared_ptr<DescriptorState> descriptor_;
  Napi::FunctionReference listener_;
  Napi::Reference<Napi::Value> buffer_;
  const size_t size_;
  const uint64_t busy_nanoseconds_;
  napi_async_context context_ = nullptr;
  Poller* owner_ = nullptr;
  bool open_ = true;
  bool calling_ = false;
};

// The class `Poller` of JavaScript. Kept alive by its handle while that is open.
class Poller : public TaggedWrap<Poller> {
 public:
  static constexpr const char* kExpected = "a Poller";

  static Napi::Function Define(Napi::Env env);
  static Napi::Value Poll(const Napi::CallbackInfo& info);

  explicit Poller(const Napi::CallbackInfo& info);
  ~Poller() override;

  // The handle has closed.
  void Forget();

 private:
  void CloseMethod(const Napi::CallbackInfo& info);
  void RefMethod(const Napi::CallbackInfo& info);
  void UnrefMethod(const Napi::CallbackInfo& info);

  PollHandle* handle_ = nullptr;
};

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_POLLER_H_
