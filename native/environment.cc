#include "environment.h"

#include "poller.h"
#include "vcpu.h"

namespace vhost_iotlb {

Environment* Environment::Of(napi_env env) {
  void* data = nullptr;
  return napi_get_instance_data(env, &data) == napi_ok ? static_cast<Environment*>(data) : nullptr;
}

bool Environment::Create(Napi::Env env) {
  auto* environment = new Environment();
  napi_status status = napi_set_instance_data(
      env, environment, [](napi_env, void* data, void*) { delete static_cast<Environment*>(data); },
      nullptr);
  if (status != napi_ok) {
    delete environment;
  } else {
    status = napi_add_async_cleanup_hook(env, OnCleanup, environment, &environment->hook_);
  }
  if (status == napi_ok) return true;
  napi_throw_error(env, nullptr, "the environment accepts no cleanup hook");
  return false;
}

void Environment::OnCleanup(napi_async_cleanup_hook_handle, void* data) {
  auto* self = static_cast<Environment*>(data);
  self->ending_ = true;
  while (!self->open_polls.empty()) (*self->open_polls.begin())->Close();
  while (!self->open_vcpus.empty()) (*self->open_vcpus.begin())->Close();
  // Removing the hook may destroy this object.
  if (self->closing_handles == 0) napi_remove_async_cleanup_hook(self->hook_);
}

void Environment::HandleClosed() {
  closing_handles--;
  if (ending_ && closing_handles == 0) napi_remove_async_cleanup_hook(hook_);
}

}  // namespace vhost_iotlb
