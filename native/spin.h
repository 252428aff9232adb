// Looking at a word of memory until somebody else changes it.
#ifndef VHOST_IOTLB_SPIN_H_
#define VHOST_IOTLB_SPIN_H_

#include <napi.h>

namespace vhost_iotlb {

Napi::Value AwaitChange(const Napi::CallbackInfo& info);

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_SPIN_H_
