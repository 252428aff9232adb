#include "process_lock.h"

#include <uv.h>

#include <cstdlib>

namespace vhost_iotlb {

namespace {

uv_mutex_t mutex;
uv_once_t once = UV_ONCE_INIT;

}  // namespace

ProcessLock::ProcessLock() {
  uv_once(&once, [] {
    if (uv_mutex_init(&mutex) != 0) abort();
  });
  uv_mutex_lock(&mutex);
}

ProcessLock::~ProcessLock() {
  uv_mutex_unlock(&mutex);
}

}  // namespace vhost_iotlb
