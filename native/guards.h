// Host addresses inside a message, checked against the memory that the descriptor holds.
//
// No bug above may make the kernel write outside of guest memory, so that the last word is said
// here, on the very bytes that go to the kernel. What the fields mean is the caller's knowledge.
#ifndef VHOST_IOTLB_GUARDS_H_
#define VHOST_IOTLB_GUARDS_H_

#include <napi.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "descriptor.h"

namespace vhost_iotlb {

class Guards {
 public:
  // False when an exception is pending. May run JavaScript.
  bool Read(const Napi::Value& value);
  // False, with a RangeError, when a guard reads past `size`.
  bool Fit(napi_env env, size_t size) const;
  // Whether each address of the message lies in the memory that the file holds.
  bool Allow(const OpenFile& file, const uint8_t* message) const;

  bool empty() const { return count_ == 0; }

 private:
  // Twice what the largest message has: a memory table of 64 regions.
  static constexpr uint32_t kMost = 128;

  struct Guard {
    uint32_t address_at;
    // A literal length where negative.
    int64_t length_at;
  };
  const Guard* begin() const { return guards_.data(); }
  const Guard* end() const { return guards_.data() + count_; }

  std::array<Guard, kMost> guards_;
  uint32_t count_ = 0;
};

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_GUARDS_H_
