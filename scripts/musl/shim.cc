// What Debian's static C++ runtime asks of glibc and musl does not have.
#include <sys/auxv.h>

#define HIDDEN extern "C" __attribute__((visibility("hidden")))

// A short cut to the unwinding tables (glibc 2.35). "Not found" sends the unwinder the long way, by
// dl_iterate_phdr, which musl has.
HIDDEN int _dl_find_object(void*, void*) { return -1; }

// How libgcc learns, on arm64, whether the processor has atomic instructions.
HIDDEN unsigned long __getauxval(unsigned long type) { return getauxval(type); }
