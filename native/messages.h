// Reads and writes, one message a call of the kernel.
#ifndef VHOST_IOTLB_MESSAGES_H_
#define VHOST_IOTLB_MESSAGES_H_

#include <napi.h>

#include "arguments.h"

namespace vhost_iotlb {

// Messages of `size` bytes until there are no more or the bytes are full; never waits. The tail of
// a message that is shorter is zeroed. Their number (0 at the end of a stream), or -errno when the
// first read is refused.
int64_t ReadMessages(int fd, bool may_wait, Bytes bytes, size_t size);

Napi::Value ReadMany(const Napi::CallbackInfo& info);
Napi::Value WriteMany(const Napi::CallbackInfo& info);
Napi::Value Writer(const Napi::CallbackInfo& info);
Napi::Value Read(const Napi::CallbackInfo& info);
Napi::Value Write(const Napi::CallbackInfo& info);

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_MESSAGES_H_
