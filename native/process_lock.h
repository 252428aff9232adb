// One lock for the few tables that all threads of the process share.
//
// uv_mutex rather than std::mutex or pthread_mutex: it resolves inside of Node itself, which keeps
// the addon loadable with the oldest glibc that Node supports.
#ifndef VHOST_IOTLB_PROCESS_LOCK_H_
#define VHOST_IOTLB_PROCESS_LOCK_H_

namespace vhost_iotlb {

// Held for the life of the object. Not recursive.
class ProcessLock {
 public:
  ProcessLock();
  ~ProcessLock();
  ProcessLock(const ProcessLock&) = delete;
  ProcessLock& operator=(const ProcessLock&) = delete;
};

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_PROCESS_LOCK_H_
