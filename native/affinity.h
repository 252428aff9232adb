// On which processors a thread of this process may run.
#ifndef VHOST_IOTLB_AFFINITY_H_
#define VHOST_IOTLB_AFFINITY_H_

#include <napi.h>

namespace vhost_iotlb {

Napi::Value Affinity(const Napi::CallbackInfo& info);
Napi::Value CurrentProcessor(const Napi::CallbackInfo& info);

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_AFFINITY_H_
