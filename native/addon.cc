// The table of what JavaScript sees; `lib/native.ts` is its contract.
#include <napi.h>

#include "affinity.h"
#include "descriptor.h"
#include "environment.h"
#include "ioctl.h"
#include "mapping.h"
#include "messages.h"
#include "poller.h"
#include "spin.h"
#include "vcpu.h"

namespace vhost_iotlb {

namespace {

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
void Export(Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<function>(exports.Env(), name));
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  if (!Environment::Create(env)) return exports;
  Environment* environment = Environment::Of(env);
  environment->descriptor_class = Napi::Persistent(Descriptor::Define(env));
  environment->mapping_class = Napi::Persistent(MappingView::Define(env));
  environment->poller_class = Napi::Persistent(Poller::Define(env));
  environment->vcpu_class = Napi::Persistent(Vcpu::Define(env));

  Export<Descriptor::Open>(exports, "open");
  Export<Descriptor::Adopt>(exports, "adopt");
  Export<Descriptor::Duplicate>(exports, "duplicate");
  Export<Descriptor::EventFd>(exports, "eventfd");
  Export<Descriptor::Socket>(exports, "socket");
  Export<Descriptor::SetNs>(exports, "setns");
  Export<Descriptor::HoldMapping>(exports, "hold");
  Export<Descriptor::LetGoOfMapping>(exports, "letGo");
  Export<Ioctl>(exports, "ioctl");
  Export<ReadMany>(exports, "readMany");
  Export<WriteMany>(exports, "writeMany");
  Export<Writer>(exports, "writer");
  Export<Read>(exports, "read");
  Export<Write>(exports, "write");
  Export<MappingView::MapMemory>(exports, "mapMemory");
  Export<MappingView::OpenMapping>(exports, "openMapping");
  Export<Poller::Poll>(exports, "poll");
  Export<Affinity>(exports, "affinity");
  Export<CurrentProcessor>(exports, "currentProcessor");
  Export<AwaitChange>(exports, "awaitChange");
  Export<Vcpu::Create>(exports, "vcpu");
  return exports;
}

}  // namespace

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)

}  // namespace vhost_iotlb
