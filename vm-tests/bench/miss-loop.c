// The floor under the cost of a miss: one device, one question at a time, answered by a loop that
// does nothing else.   miss-loop COUNT [spin]
// Each round takes a page back, offers a frame in it, kicks, waits for the question (poll, or
// reading over and over with "spin"), walks and answers. Prints {"p50":ns,"p90":ns,"p99":ns} from
// the kick to the return of the answering write().
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/vhost.h>
#include <linux/virtio_ring.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "walk.h"

#define RING 256
#define BUFFERS 256
#define HEADER 12
#define FRAME 64
#define RING_IOVA 0x10000000ull
#define BUFFER_IOVA 0x20000000ull
#define BUFFER_AT 0x100000ull
#define MEMORY (4ull << 20)
#define TABLES (1ull << 20)
#define FEATURES ((1ull << 32) | (1ull << 33) | (1ull << 15)) /* VERSION_1 ACCESS_PLATFORM MRG_RXBUF */

static unsigned char *memory;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int call(int fd, unsigned long request, void *argument, const char *name) {
  int result = ioctl(fd, request, argument);
  if (result < 0) fail(name);
  return result;
}
#define CALL(fd, request, argument) call(fd, request, argument, #request)

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void send_message(int fd, uint8_t type, uint64_t iova, uint64_t size, uint64_t at,
                         uint8_t perm) {
  struct vhost_msg_v2 message = {.type = VHOST_IOTLB_MSG_V2};
  message.iotlb.iova = iova;
  message.iotlb.size = size;
  message.iotlb.uaddr = (uint64_t)(uintptr_t)memory + at;
  message.iotlb.perm = perm;
  message.iotlb.type = type;
  if (write(fd, &message, sizeof message) != sizeof message) fail("write of a message");
}

// Answers one question if there is one. The kernel may ask the same several times.
static int answer(int fd, const uint64_t *tables) {
  struct vhost_msg_v2 question;
  struct translation found;
  const ssize_t n = read(fd, &question, sizeof question);
  if (n < 0 && errno != EAGAIN) fail("read of a question");
  if (n != sizeof question) return 0;
  if (!walk(tables, TABLES, 0, question.iotlb.iova >> 12, 1, &found)) exit(3);
  send_message(fd, VHOST_IOTLB_UPDATE, question.iotlb.iova & ~4095ull, 4096, found.page << 12,
               (uint8_t)found.access);
  return 1;
}

static int open_tap(void) {
  struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
  int header = HEADER, fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  if (fd < 0) fail("/dev/net/tun");
  strcpy(request.ifr_name, "floor%d");
  CALL(fd, TUNSETIFF, &request);
  CALL(fd, TUNSETVNETHDRSZ, &header);
  int any = socket(AF_INET, SOCK_DGRAM, 0);
  CALL(any, SIOCGIFFLAGS, &request);
  request.ifr_flags |= IFF_UP;
  CALL(any, SIOCSIFFLAGS, &request);
  close(any);
  return fd;
}

static int by_value(const void *a, const void *b) {
  const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  const unsigned count = argc > 1 ? (unsigned)atoi(argv[1]) : 1000;
  const int spin = argc > 2 && !strcmp(argv[2], "spin");
  uint64_t features = FEATURES, backend = 1ull << VHOST_BACKEND_F_IOTLB_MSG_V2;
  struct vhost_memory none = {0};
  uint64_t *times = calloc(count, sizeof *times);
  uint64_t *tables = aligned_alloc(4096, TABLES);
  uint64_t next = 4096;
  int vhost = open("/dev/vhost-net", O_RDWR | O_NONBLOCK), tap = open_tap();
  int kick = eventfd(0, EFD_NONBLOCK), notify = eventfd(0, EFD_NONBLOCK);
  if (vhost < 0) fail("/dev/vhost-net");
  memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || tables == NULL || times == NULL) fail("memory");
  memset(memory, 0, MEMORY);
  memset(tables, 0, TABLES);
  for (uint64_t i = 0; i < BUFFERS; i++) {
    map_page(tables, 0, &next, (BUFFER_IOVA >> 12) + i, (BUFFER_AT >> 12) + i);
    memcpy(memory + BUFFER_AT + i * 4096 + HEADER, "\x02\0\0\0\0\x12\x02\0\0\0\0\x11\x88\xb5", 14);
  }

  CALL(vhost, VHOST_SET_OWNER, NULL);
  CALL(vhost, VHOST_SET_BACKEND_FEATURES, &backend);
  CALL(vhost, VHOST_SET_FEATURES, &features);
  CALL(vhost, VHOST_SET_MEM_TABLE, &none);
  struct vring_desc *desc = (void *)memory;
  struct vring_avail *avail = (void *)(memory + 0x4000);
  volatile struct vring_used *used = (void *)(memory + 0x8000);
  struct vhost_vring_state state = {.index = 1, .num = RING};
  struct vhost_vring_file file = {.index = 1};
  struct vhost_vring_addr place = {.index = 1,
                                   .desc_user_addr = RING_IOVA,
                                   .avail_user_addr = RING_IOVA + 0x4000,
                                   .used_user_addr = RING_IOVA + 0x8000};
  avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
  CALL(vhost, VHOST_SET_VRING_NUM, &state);
  state.num = 0;
  CALL(vhost, VHOST_SET_VRING_BASE, &state);
  CALL(vhost, VHOST_SET_VRING_ADDR, &place);
  file.fd = kick;
  CALL(vhost, VHOST_SET_VRING_KICK, &file);
  file.fd = notify;
  CALL(vhost, VHOST_SET_VRING_CALL, &file);
  send_message(vhost, VHOST_IOTLB_UPDATE, RING_IOVA, 0xc000, 0, VHOST_ACCESS_RW);
  file.fd = tap;
  CALL(vhost, VHOST_NET_SET_BACKEND, &file);

  for (unsigned i = 0; i < count; i++) {
    const uint64_t iova = BUFFER_IOVA + (uint64_t)(i % BUFFERS) * 4096;
    send_message(vhost, VHOST_IOTLB_INVALIDATE, iova, 4096, 0, 0);
    desc[i % RING] = (struct vring_desc){.addr = iova, .len = HEADER + FRAME};
    avail->ring[i % RING] = (uint16_t)(i % RING);
    __atomic_store_n(&avail->idx, (uint16_t)(i + 1), __ATOMIC_SEQ_CST);
    const uint64_t start = now();
    if (write(kick, &(uint64_t){1}, 8) != 8) fail("kick");
    do {
      struct pollfd wait = {.fd = vhost, .events = POLLIN};
      if (!spin && poll(&wait, 1, 10000) <= 0) fail("no question came");
    } while (!answer(vhost, tables));
    times[i] = now() - start;
    const uint64_t late = now() + 10000000000ull;
    while (used->idx != (uint16_t)(i + 1)) {
      if (now() > late) fail("the frame was not sent");
      if (!answer(vhost, tables)) sched_yield();
    }
  }
  qsort(times, count, sizeof *times, by_value);
  printf("{\"p50\":%llu,\"p90\":%llu,\"p99\":%llu}\n", (unsigned long long)times[count / 2],
         (unsigned long long)times[count * 9 / 10], (unsigned long long)times[count * 99 / 100]);
  return 0;
}
