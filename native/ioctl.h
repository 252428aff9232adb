// ioctl(2), with the argument checked against the size and direction that the request encodes.
#ifndef VHOST_IOTLB_IOCTL_H_
#define VHOST_IOTLB_IOCTL_H_

#include <napi.h>

namespace vhost_iotlb {

Napi::Value Ioctl(const Napi::CallbackInfo& info);

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_IOCTL_H_
