// The plain way to move frames in C: one read() or write() a frame on a tap's descriptor.
//   tap-loop out|in|forward BYTES TAP [TAP]
// `forward` reads the first tap and writes the second. It moves frames until it is killed; the
// kernel's counters of the taps say how many.
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what) {
  perror(what);
  exit(1);
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
  if (argc < 4) return 2;
  const int out = !strcmp(argv[1], "out"), forward = !strcmp(argv[1], "forward");
  const size_t length = strtoul(argv[2], NULL, 10);
  int first = open_tap(argv[3]);
  int second = forward && argc > 4 ? open_tap(argv[4]) : -1;
  // To somebody else, in an Ethernet type for experiments (IEEE 802, 0x88b5).
  memcpy(frame, "\x02\0\0\0\0\x12\x02\0\0\0\0\x11\x88\xb5", 14);
  for (;;) {
    ssize_t n = out ? write(first, frame, length) : read(first, frame, sizeof frame);
    if (n < 0 && errno == EAGAIN && !out) {
      struct pollfd wait = {.fd = first, .events = POLLIN};
      poll(&wait, 1, -1);
      continue;
    }
    if (n > 0 && forward) n = write(second, frame, (size_t)n);
    if (n < 0 && errno != EAGAIN) fail("read or write");
  }
}
