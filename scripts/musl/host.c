// Stands in for Node: loads the addon named by its argument with every symbol bound.
#include <dlfcn.h>
#include <stdio.h>

int main(int count, char** arguments) {
  if (count != 2) return 2;
  void* addon = dlopen(arguments[1], RTLD_NOW);
  if (addon != 0 && dlsym(addon, "napi_register_module_v1") != 0) return 0;
  fprintf(stderr, "%s\n", dlerror());
  return 1;
}
