// A walk of four levels over second-stage tables as VT-d has them (VT-d 4.1, 9.8): 512 entries of
// 8 bytes a table, bit 0 read, bit 1 write, bit 7 a leaf above the lowest level.
#ifndef WALK_H
#define WALK_H
#include <stdint.h>

#define LEVELS 4
#define TABLE_ENTRIES 512
#define ADDRESS_MASK 0x000ffffffffff000ull

struct translation {
  uint64_t page;
  uint64_t pages;
  unsigned access;
};

// `memory` holds the tables; addresses are offsets into its `bytes`. Returns 0 where not mapped.
static inline int walk(const uint64_t *memory, uint64_t bytes, uint64_t root, uint64_t page,
                       unsigned wanted, struct translation *out) {
  uint64_t table = root;
  unsigned access = 3;
  for (int level = LEVELS - 1; level >= 0; level--) {
    const uint64_t index = (page >> (9 * level)) & (TABLE_ENTRIES - 1);
    if (table + 4096 > bytes) return 0;
    const uint64_t entry = __atomic_load_n(&memory[table / 8 + index], __ATOMIC_RELAXED);
    access &= entry & 3;
    if (access == 0 || (access & wanted) != wanted) return 0;
    if (level == 0 || (entry & 0x80)) {
      const uint64_t span = 1ull << (9 * level);
      out->page = ((entry & ADDRESS_MASK) >> 12) + (page & (span - 1));
      out->pages = span;
      out->access = access;
      return 1;
    }
    table = entry & ADDRESS_MASK;
  }
  return 0;
}

// Maps a 4 KiB page; `next` is the first free byte for tables. For building, not for measuring.
static inline void map_page(uint64_t *memory, uint64_t root, uint64_t *next, uint64_t page,
                            uint64_t to) {
  uint64_t table = root;
  for (int level = LEVELS - 1; level > 0; level--) {
    uint64_t *entry = &memory[table / 8 + ((page >> (9 * level)) & (TABLE_ENTRIES - 1))];
    if (*entry == 0) {
      *entry = *next | 3;
      *next += 4096;
    }
    table = *entry & ADDRESS_MASK;
  }
  memory[table / 8 + (page & (TABLE_ENTRIES - 1))] = (to << 12) | 3;
}
#endif
