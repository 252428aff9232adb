// One virtual processor of KVM: each time, it runs in a thread of its own or on the loop of the
// environment.
//
// KVM_RUN blocks for as long as the guest needs nothing. In the thread, the loop is told of each
// exit. On the loop, the guest runs in each turn until it exits or the loop has other work, for
// which the thread watches; an exit then wakes nobody, which is what most of its time goes to. What
// an exit means, and where and when the guest goes on, is decided in JavaScript, with which `struct
// kvm_run` is shared.
#ifndef VHOST_IOTLB_VCPU_H_
#define VHOST_IOTLB_VCPU_H_

#include <napi.h>
#include <uv.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "descriptor.h"
#include "environment.h"
#include "tagged_wrap.h"

namespace vhost_iotlb {

class Vcpu;

// The memory that KVM shares with its user: it stays until the thread and all views are gone.
class RunArea {
 public:
  RunArea(void* data, size_t length) : data_(static_cast<uint8_t*>(data)), length_(length) {}
  ~RunArea();
  RunArea(const RunArea&) = delete;
  RunArea& operator=(const RunArea&) = delete;

  uint8_t* data() const { return data_; }
  size_t length() const { return length_; }

 private:
  uint8_t* const data_;
  const size_t length_;
};

// The thread and its libuv half. It outlives its JavaScript object until libuv has let go.
class VcpuThread {
 public:
  // Null with -errno in `error`.
  static VcpuThread* Start(Napi::Env env, std::shared_ptr<DescriptorState> descriptor,
                           size_t length, Napi::Function listener, int* error);

  // Enters the guest. Nothing while it is there already.
  void Resume(bool on_loop);
  // Makes KVM_RUN return -EINTR, now or as soon as it is entered.
  void Interrupt();
  // Ends the thread before it returns, and frees this object in a later turn of the loop. Not to
  // be called twice.
  void Close();
  void SetOwner(Vcpu* owner) { owner_ = owner; }
  const std::shared_ptr<RunArea>& area() const { return area_; }
  int thread_id() const { return thread_id_; }

 private:
  VcpuThread(Napi::Env env, std::shared_ptr<DescriptorState> descriptor,
             std::shared_ptr<RunArea> area, Napi::Function listener);
  ~VcpuThread();

  // What the thread is for at the moment.
  enum Task { kNone, kRun, kWatch };


  static void Main(void* data);
  static void OnExit(uv_async_t* async);
  static void OnTurn(uv_idle_t* idle);
  static void OnClosed(uv_handle_t* handle);
  // The thread: tasks until the end.
  void Attend();
  void Run();
  // Answers the last entry that it has seen, `entry` if none.
  uint32_t Watch(uint32_t entry);
  void Ask(Task task);
  bool LoopHasWork();
  void EnterGuest();
  int RunOnce();
  void Deliver(int result);
  void Signal(int thread_id);
  void DestroyContext();

  // Also keeps the loop alive while the idle handle is stopped.
  uv_async_t async_;
  uv_idle_t idle_;
  int open_handles_ = 0;
  uv_loop_t* loop_ = nullptr;
  uv_thread_t thread_;
  uv_sem_t resume_;
  uv_sem_t started_;
  Napi::Env env_;
  Environment* environment_;
  std::shared_ptr<DescriptorState> descriptor_;
  std::shared_ptr<RunArea> area_;
  Napi::FunctionReference listener_;
  napi_async_context context_ = nullptr;
  Vcpu* owner_ = nullptr;
  // Written by the thread before it waits for `resume_`, read after the loop was told.
  std::atomic<int> result_{0};
  std::atomic<int> exits_{0};
  std::atomic<bool> ending_{false};
  // What the thread was asked for last, how often it or the loop was to enter the guest, and whether
  // the thread waits to be told.
  std::atomic<Task> task_{kNone};
  std::atomic<uint32_t> entries_{0};
  std::atomic<bool> waits_{true};
  // On the loop: the guest is running, and until when the loop need not have its turn.
  std::atomic<bool> running_{false};
  std::atomic<uint64_t> deadline_{UINT64_MAX};
  // Of the thread, 0 before it has started, and of the loop.
  int thread_id_ = 0;
  int loop_thread_id_ = 0;
  int seen_ = 0;
  bool has_thread_ = false;
  bool in_guest_ = false;
  bool on_loop_ = false;
  bool open_ = true;
  bool calling_ = false;
};

// The class `Vcpu` of JavaScript. Kept alive by its thread while that is there.
class Vcpu : public TaggedWrap<Vcpu> {
 public:
  static constexpr const char* kExpected = "a Vcpu";

  static Napi::Function Define(Napi::Env env);
  static Napi::Value Create(const Napi::CallbackInfo& info);

  explicit Vcpu(const Napi::CallbackInfo& info);
  ~Vcpu() override;

  // The thread has ended: its memory leaves JavaScript.
  void Forget();

 private:
  Napi::Value Run(const Napi::CallbackInfo& info);
  Napi::Value ThreadId(const Napi::CallbackInfo& info);
  void ResumeMethod(const Napi::CallbackInfo& info);
  void InterruptMethod(const Napi::CallbackInfo& info);
  void CloseMethod(const Napi::CallbackInfo& info);

  VcpuThread* thread_ = nullptr;
  Napi::Reference<Napi::Value> run_;
};

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_VCPU_H_
