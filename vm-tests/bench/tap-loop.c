// The plain way to move frames in C: one read() or write() a frame on a tap's descriptor.
//   tap-loop out|in|forward SECONDS BYTES TAP [TAP]
// Prints {"frames":N,"bytes":N,"ns":N} of what it moved; forward reads the first tap, writes the
// second. It says "ready" on standard error once its taps are there, and begins with the first byte
// of its standard input.
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int open_tap(const char *name) {
  struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  if (fd < 0) fail("/dev/net/tun");
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  if (ioctl(fd, TUNSETIFF, &request) < 0) fail("TUNSETIFF");
  int any = socket(AF_INET, SOCK_DGRAM, 0);
  if (any < 0 || ioctl(any, SIOCGIFFLAGS, &request) < 0) fail("SIOCGIFFLAGS");
  request.ifr_flags |= IFF_UP;
  if (ioctl(any, SIOCSIFFLAGS, &request) < 0) fail("SIOCSIFFLAGS");
  close(any);
  return fd;
}

int main(int argc, char **argv) {
  static unsigned char frame[65536];
  uint64_t frames = 0, bytes = 0, start, end, at;
  if (argc < 5) return 2;
  const int out = !strcmp(argv[1], "out"), forward = !strcmp(argv[1], "forward");
  const double seconds = atof(argv[2]);
  const size_t length = strtoul(argv[3], NULL, 10);
  int first = open_tap(argv[4]);
  int second = forward && argc > 5 ? open_tap(argv[5]) : -1;
  // To somebody else, in an Ethernet type for experiments (IEEE 802, 0x88b5).
  memcpy(frame, "\x02\0\0\0\0\x12\x02\0\0\0\0\x11\x88\xb5", 14);
  fputs("ready\n", stderr);
  if (read(0, &(char){0}, 1) < 0) fail("read");
  start = now();
  end = start + (uint64_t)(seconds * 1e9);
  for (uint64_t i = 0;; i++) {
    ssize_t n;
    if ((i & 63) == 0 && now() >= end) break;
    if (out) {
      n = write(first, frame, length);
    } else {
      n = read(first, frame, sizeof frame);
      if (n < 0 && errno == EAGAIN) {
        struct pollfd wait = {.fd = first, .events = POLLIN};
        poll(&wait, 1, 10);
        i |= 63;
        continue;
      }
      if (n > 0 && forward) n = write(second, frame, (size_t)n);
    }
    if (n < 0 && errno != EAGAIN) fail("read or write");
    if (n < 0) continue;
    frames++;
    bytes += (uint64_t)n;
  }
  at = now();
  printf("{\"frames\":%llu,\"bytes\":%llu,\"ns\":%llu}\n", (unsigned long long)frames,
         (unsigned long long)bytes, (unsigned long long)(at - start));
  return 0;
}
