// What one JavaScript environment (the main thread, or a Worker) owns: its classes, pollers and
// virtual processors.
//
// A handle that is open when its loop is destroyed aborts the process, therefore an asynchronous
// cleanup hook closes them all and lets the environment go when the last is closed.
#ifndef VHOST_IOTLB_ENVIRONMENT_H_
#define VHOST_IOTLB_ENVIRONMENT_H_

#include <napi.h>

#include <memory>
#include <set>

namespace vhost_iotlb {

class DescriptorState;
class Mapping;
class PollHandle;
class VcpuThread;

struct Environment {
  static Environment* Of(napi_env env);
  // False when the environment refuses; an exception is pending then.
  static bool Create(Napi::Env env);

  Napi::FunctionReference descriptor_class;
  Napi::FunctionReference mapping_class;
  Napi::FunctionReference poller_class;
  Napi::FunctionReference vcpu_class;

  // What the next constructor call is to wrap. JavaScript can reach the constructors, and finds
  // these empty.
  std::shared_ptr<DescriptorState> new_descriptor;
  std::shared_ptr<Mapping> new_mapping;
  PollHandle* new_poller = nullptr;
  VcpuThread* new_vcpu = nullptr;

  std::set<PollHandle*> open_polls;
  std::set<VcpuThread*> open_vcpus;
  // Handles between uv_close and its callback.
  size_t closing_handles = 0;

  // The close callback of a handle has run.
  void HandleClosed();

 private:
  static void OnCleanup(napi_async_cleanup_hook_handle handle, void* data);

  napi_async_cleanup_hook_handle hook_ = nullptr;
  bool ending_ = false;
};

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_ENVIRONMENT_H_
