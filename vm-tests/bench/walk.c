// How long a walk takes in C: walk PAGES WALKS. Prints {"ns":N} for one, the median of seven runs.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "walk.h"

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  const uint64_t pages = strtoull(argv[1], NULL, 10), walks = strtoull(argv[2], NULL, 10);
  const uint64_t bytes = 64ull << 20;
  uint64_t *memory = aligned_alloc(4096, bytes);
  uint64_t root = 0, next = 4096, sum = 0;
  double runs[7];
  if (memory == NULL) return 1;
  for (uint64_t i = 0; i < bytes / 8; i++) memory[i] = 0;
  for (uint64_t page = 0; page < pages; page++) map_page(memory, root, &next, page, page);
  for (int run = 0; run < 7; run++) {
    struct timespec a, b;
    uint32_t seed = 1;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (uint64_t i = 0; i < walks; i++) {
      struct translation found = {0};
      seed = seed * 1664525u + 1013904223u;
      if (walk(memory, bytes, root, (seed >> 8) % pages, 1, &found)) sum += found.page;
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    runs[run] = ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / (double)walks;
  }
  qsort(runs, 7, sizeof runs[0], ascending);
  printf("{\"ns\":%.2f,\"sum\":%llu}\n", runs[3], (unsigned long long)sum);
  return 0;
}
