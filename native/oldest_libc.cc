// Keeps the addon loadable with glibc 2.28, the oldest that Node 20 supports.
//
// libstdc++ asks this variable of glibc 2.32 whether reference counts may go without atomics. Our
// own, found first and seen by nobody else, says what is always right.
extern "C" {
extern __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
}
