// In place of CUDA's driver: one GPU, which the environment describes, and launches that do nothing
// but count.

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

int given(const char* name, int usual) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : usual;
}

constexpr int kNameless = 12345;  // a status for which the driver has no words

}  // namespace

extern "C" {

int stub_loads = 0, stub_contexts = 0;    // contexts: retained and not released
int stub_launches = 0, stub_plain = 0;    // the latter: of blocks that need not run together
bool stub_gives_up = false;  // the next launch
long stub_blocks = 0;        // of the last launch
int stub_cluster = 0;        // of the last launch: blocks of a cluster, 0 if there are none

int cuInit(unsigned) { return given("STUB_INIT", 0); }
int cuGetErrorString(int status, const char** text) {
  *text = status == kNameless ? nullptr : "as the stub wants";
  return status == kNameless;
}
int cuDriverGetVersion(int* version) {
  *version = given("STUB_DRIVER", 13000);
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? 0 : 101;
}
int cuDeviceGetAttribute(int* value, int which, int) {
  switch (which) {
    case 16: *value = given("STUB_MULTIPROCESSORS", 132); return 0;
    case 75: *value = given("STUB_CAPABILITY", 90) / 10; return 0;
    case 76: *value = given("STUB_CAPABILITY", 90) % 10; return 0;
    case 95: *value = given("STUB_COOPERATIVE", 1); return 0;
    case 97: *value = given("STUB_SHARED", 232448); return 0;
  }
  return 1;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &stub_contexts;
  ++stub_contexts;
  return 0;
}
int cuDevicePrimaryCtxRelease_v2(int) { return --stub_contexts, 0; }
int cuCtxGetExecAffinity(int* affinity, int) {
  const int most = given("STUB_AFFINITY", 0);
  affinity[1] = most;
  return most ? 0 : 801;
}
int cuStreamGetCtx(void*, void** context) {
  *context = &stub_contexts;
  return 0;
}
int cuCtxPushCurrent_v2(void*) { return 0; }
int cuCtxPopCurrent_v2(void**) { return 0; }
int cuModuleLoadData(void** module, const void* code) {
  ++stub_loads;
  *module = &stub_loads;
  const bool is_text = std::memcmp(code, ".version", 8) == 0;
  return is_text || std::memcmp(code, "\x7f" "ELF", 4) == 0 ? 0 : 209;
}
int cuModuleUnload(void*) { return --stub_loads, 0; }
int cuModuleGetFunction(void** function, void* module, const char*) {
  *function = module;
  return 0;
}
int cuFuncSetAttribute(void*, int which, int bytes) {
  return which == 8 && bytes <= given("STUB_SHARED", 232448) ? 0 : kNameless;
}
int cuMemHostAlloc(void** word, std::size_t bytes, unsigned) {
  *word = std::calloc(1, bytes);
  return 0;
}
int cuMemHostGetDevicePointer_v2(void** device, void* host, unsigned) {
  *device = host;
  return 0;
}
int cuMemsetD32Async(std::uintptr_t at, unsigned word, std::size_t count, void*) {
  for (std::size_t i = 0; i < count; ++i) reinterpret_cast<unsigned*>(at)[i] = word;
  return 0;
}
int cuLaunchKernel(void*, unsigned blocks, unsigned, unsigned, unsigned, unsigned, unsigned,
                   unsigned, void*, void**, void**) {
  ++stub_plain;
  stub_blocks = blocks;
  return 0;
}
// CUlaunchAttribute and CUlaunchConfig of cuda.h, where a union of 64 bytes holds the value.
struct Attribute {
  int id, pad;
  unsigned value[16];
};
struct Config {
  unsigned grid[3], block[3], shared;
  void* stream;
  const Attribute* attributes;
  unsigned count;
};

static bool launched(unsigned blocks, int cluster, void** parameters) {
  ++stub_launches;
  stub_blocks = blocks, stub_cluster = cluster;
  constexpr int kArrays = 48;  // of Args in device.cu: arrays and strides, then the host's word
  unsigned* host = reinterpret_cast<unsigned**>(parameters[0])[2 * kArrays];
  if (stub_gives_up) *host = 1;
  return stub_gives_up = false;
}

// Blocks of a cluster, if all of the launch are to be on the chip at once.
static int cluster_of(const Config* config) {
  int cluster = 0, cooperative = 0;
  for (unsigned i = 0; i < config->count; ++i) {
    const Attribute& attribute = config->attributes[i];
    if (attribute.id == 2) cooperative = attribute.value[0];
    if (attribute.id == 4 && attribute.value[1] == 1 && attribute.value[2] == 1)
      cluster = attribute.value[0];
  }
  return cooperative == 1 && config->grid[1] == 1 && config->block[2] == 1 ? cluster : 0;
}

int cuLaunchKernelEx(const Config* config, void*, void** parameters, void**) {
  const int cluster = cluster_of(config);
  if (cluster == 0 || config->grid[0] % cluster != 0 || config->block[0] != 256) return 1;
  return launched(config->grid[0], cluster, parameters);
}

int cuOccupancyMaxActiveClusters(int* count, void*, const Config* config) {
  const unsigned all = given("STUB_SHARED", 232448);
  if (cluster_of(config) == 0 || config->shared != all || config->block[0] != 256) return 1;
  *count = given("STUB_CLUSTERS", 32);
  return 0;
}

int cuLaunchCooperativeKernel(void*, unsigned blocks, unsigned, unsigned, unsigned, unsigned,
                              unsigned, unsigned, void*, void** parameters) {
  return launched(blocks, 0, parameters);
}

}  // extern "C"
