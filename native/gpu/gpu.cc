// What XLA calls on a GPU: hands a kernel's machine code and its arrays to the driver. And what
// Python asks: what the driver says of a GPU.
//
// The driver is looked up when it is first needed, and CUDA's headers are not: this builds, and
// loads, where there is neither. The kernels are the files *.cu under jaxrnn/_src/ops/.

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <string>
#include <tuple>
#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kMostArrays = 48;  // jaxrnn/_src/ops/gpu/launch.py

struct Args {  // jaxrnn/_src/ops/gpu/device.cu
  void* array[kMostArrays];
  long long member[kMostArrays];
  void* host;
  int steps, rows, tiles, groups;
  int first;
};

// Of the driver's interface, what is used here.
using Status = int;
using Device = int;
using Handle = void*;  // of a context, a module, a function, a stream
struct Affinity {      // CUexecAffinityParam
  int type;
  unsigned multiprocessors;
};
struct Attribute {  // CUlaunchAttribute
  int id;
  union {
    long long pad[8];
    int cooperative;
    unsigned cluster[3];
  } value;
};
struct Config {  // CUlaunchConfig
  unsigned grid[3], block[3], shared;
  Handle stream;
  Attribute* attributes;
  unsigned count;
};
static_assert(sizeof(Attribute) == 72 && sizeof(Config) == 56, "as cuda.h has them");
struct Driver {
  Status (*Init)(unsigned);
  Status (*GetErrorString)(Status, const char**);
  Status (*DriverGetVersion)(int*);
  Status (*DeviceGet)(Device*, int);
  Status (*DeviceGetAttribute)(int*, int, Device);
  Status (*DevicePrimaryCtxRetain)(Handle*, Device);
  Status (*DevicePrimaryCtxRelease)(Device);
  Status (*CtxGetExecAffinity)(Affinity*, int);
  Status (*StreamGetCtx)(Handle, Handle*);
  Status (*CtxPushCurrent)(Handle);
  Status (*CtxPopCurrent)(Handle*);
  Status (*ModuleLoadData)(Handle*, const void*);
  Status (*ModuleUnload)(Handle);
  Status (*ModuleGetFunction)(Handle*, Handle, const char*);
  Status (*FuncSetAttribute)(Handle, int, int);
  Status (*MemHostAlloc)(void**, std::size_t, unsigned);
  Status (*MemHostGetDevicePointer)(void**, void*, unsigned);
  Status (*MemsetD32Async)(std::uintptr_t, unsigned, std::size_t, Handle);
  Status (*LaunchKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                         unsigned, Handle, void**, void**);
  Status (*LaunchCooperativeKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned,
                                    unsigned, unsigned, Handle, void**);
  // Of CUDA 11.8: null where the driver is older.
  Status (*LaunchKernelEx)(const Config*, Handle, void**, void**);
  Status (*OccupancyMaxActiveClusters)(int*, Handle, const Config*);
  bool found = false;
};

const Driver& TheDriver() {
  static const Driver driver = [] {
    Driver d;
    void* lib = dlopen("libcuda.so.1", RTLD_NOW);
    if (lib == nullptr) return d;
    auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(lib, name));
      return function != nullptr;
    };
    d.found = find(d.Init, "cuInit") && find(d.GetErrorString, "cuGetErrorString") &&
              find(d.DriverGetVersion, "cuDriverGetVersion") &&
              find(d.DeviceGet, "cuDeviceGet") &&
              find(d.DeviceGetAttribute, "cuDeviceGetAttribute") &&
              find(d.DevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain") &&
              find(d.DevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2") &&
              find(d.CtxGetExecAffinity, "cuCtxGetExecAffinity") &&
              find(d.StreamGetCtx, "cuStreamGetCtx") &&
              find(d.CtxPushCurrent, "cuCtxPushCurrent_v2") &&
              find(d.CtxPopCurrent, "cuCtxPopCurrent_v2") &&
              find(d.ModuleLoadData, "cuModuleLoadData") &&
              find(d.ModuleUnload, "cuModuleUnload") &&
              find(d.ModuleGetFunction, "cuModuleGetFunction") &&
              find(d.FuncSetAttribute, "cuFuncSetAttribute") &&
              find(d.MemHostAlloc, "cuMemHostAlloc") &&
              find(d.MemHostGetDevicePointer, "cuMemHostGetDevicePointer_v2") &&
              find(d.MemsetD32Async, "cuMemsetD32Async") &&
              find(d.LaunchKernel, "cuLaunchKernel") &&
              find(d.LaunchCooperativeKernel, "cuLaunchCooperativeKernel");
    find(d.LaunchKernelEx, "cuLaunchKernelEx");
    find(d.OccupancyMaxActiveClusters, "cuOccupancyMaxActiveClusters");
    return d;
  }();
  return driver;
}

// The driver's words for what went wrong, or null. It has none for some.
const char* Why(Status status) {
  const char* why = nullptr;
  if (status && TheDriver().GetErrorString(status, &why)) why = "an unknown error";
  return why;
}

ffi::Error Failed(const char* what, Status status) {
  return ffi::Error::Internal(std::string("jaxrnn: ") + what + ": " + Why(status));
}

#define TRY(call)                                          \
  do {                                                     \
    if (Status status = (call)) return Failed(#call, status); \
  } while (false)

struct Current {  // a context, made this thread's for a while
  explicit Current(Handle context) { TheDriver().CtxPushCurrent(context); }
  ~Current() {
    Handle context;
    TheDriver().CtxPopCurrent(&context);
  }
};

// A launch whose blocks are all on the chip at once, those of a cluster close to each other.
struct Clusters {
  Attribute attributes[2] = {};
  Config config = {};

  Clusters(unsigned blocks, unsigned threads, unsigned shared, unsigned size, Handle stream) {
    constexpr int kCooperative = 2, kClusterDimension = 4;  // CU_LAUNCH_ATTRIBUTE_*
    attributes[0].id = kClusterDimension;
    attributes[1].id = kCooperative;
    attributes[1].value.cooperative = 1;
    for (int i = 0; i < 3; ++i)
      config.grid[i] = config.block[i] = attributes[0].value.cluster[i] = 1;
    attributes[0].value.cluster[0] = size;
    config.grid[0] = blocks, config.block[0] = threads, config.shared = shared;
    config.stream = stream;
    config.attributes = attributes, config.count = 2;
  }
};

constexpr int kMaxDynamicShared = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

// What a block that gives up tells: a word of the host's memory that every GPU has mapped. So the
// host looks at it before each call, and no call waits for one before it.
std::atomic<std::uint32_t>* given_up = nullptr;

// A kernel in a context.
struct Kernel {
  Handle function = nullptr;
  void* given_up = nullptr;  // where the GPU sees that word
};

ffi::Error Load(const void* code, int shared, Kernel* kernel) {
  const Driver& driver = TheDriver();
  if (given_up == nullptr) {
    constexpr unsigned kPortable = 1, kMapped = 2;  // CU_MEMHOSTALLOC_*
    void* word;
    TRY(driver.MemHostAlloc(&word, sizeof *given_up, kPortable | kMapped));
    given_up = new (word) std::atomic<std::uint32_t>(0);
  }
  TRY(driver.MemHostGetDevicePointer(&kernel->given_up, given_up, 0));
  Handle module, found;
  TRY(driver.ModuleLoadData(&module, code));
  Status status = driver.ModuleGetFunction(&found, module, "run");
  if (!status) status = driver.FuncSetAttribute(found, kMaxDynamicShared, shared);
  if (status) {
    driver.ModuleUnload(module);
    return Failed("loading a kernel", status);
  }
  kernel->function = found;
  return ffi::Error::Success();
}

// The kernel in a context; loaded once, and kept for good. Two numbers, of a hash, stand for code.
ffi::Error Find(Handle context, const std::int64_t* hash, ffi::Span<const std::int32_t> code,
                int shared, Kernel* kernel) {
  static std::shared_mutex mutex;
  static auto& loaded = *new std::map<std::tuple<Handle, std::int64_t, std::int64_t>, Kernel>;
  const std::tuple key(context, hash[0], hash[1]);
  {
    std::shared_lock lock(mutex);
    auto known = loaded.find(key);
    if (known != loaded.end()) {
      *kernel = known->second;
      return ffi::Error::Success();
    }
  }
  std::unique_lock lock(mutex);
  Kernel& known = loaded[key];
  if (known.function == nullptr) {
    ffi::Error error = Load(code.begin(), shared, &known);
    if (error.failure()) {
      loaded.erase(key);
      return error;
    }
  }
  *kernel = known;
  return ffi::Error::Success();
}

ffi::Error Run(Handle stream, ffi::RemainingArgs args, ffi::RemainingRets results,
               ffi::Span<const std::int32_t> code, ffi::Span<const std::int64_t> members,
               ffi::Span<const std::int64_t> numbers) {
  const Driver& driver = TheDriver();
  if (!driver.found) return ffi::Error::Internal("jaxrnn: there is no libcuda.so.1");
  const std::size_t count = args.size() + results.size();
  if (count > kMostArrays || count != members.size() || numbers.size() != 12)
    return ffi::Error::InvalidArgument("jaxrnn: a call of another version's");
  Args given = {};
  void* exchange = nullptr;
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (i < args.size()) {
      auto buffer = args.get<ffi::AnyBuffer>(i);
      if (buffer.has_error()) return buffer.error();
      given.array[i] = buffer->untyped_data();
    } else {
      auto buffer = results.get<ffi::AnyBuffer>(i - args.size());
      if (buffer.has_error()) return buffer.error();
      exchange = given.array[i] = (*buffer)->untyped_data();  // the last one is it, if there is one
      bytes = (*buffer)->size_bytes();
    }
    given.member[i] = members.begin()[i];
  }
  const std::int64_t* n = numbers.begin();
  const unsigned blocks = n[0], at_once = n[1], threads = n[2], shared = n[3];
  const bool together = n[8];  // blocks wait for each other
  given.steps = n[4], given.rows = n[5], given.tiles = n[6], given.groups = n[7];
  const unsigned cluster = n[9];
  if (cluster > 1 && driver.LaunchKernelEx == nullptr)
    return ffi::Error::Internal("jaxrnn: the driver is older than clusters of blocks");

  Handle context;
  Kernel kernel;
  TRY(driver.StreamGetCtx(stream, &context));
  Current current(context);
  ffi::Error error = Find(context, n + 10, code, shared, &kernel);
  if (error.failure()) return error;
  if (given_up->exchange(0) != 0)
    return ffi::Error::Internal(
        "jaxrnn: in an earlier call of the kernel for GPUs, a block waited in vain for another one"
        " and gave up. What that call gave is NaN; this one has not begun. If it happens again,"
        " please report it; implementation='xla' does without the kernel");
  given.host = kernel.given_up;
  if (together)
    TRY(driver.MemsetD32Async(reinterpret_cast<std::uintptr_t>(exchange), 0xffffffff, bytes / 4,
                              stream));
  for (given.first = 0; given.first < given.groups; given.first += at_once) {
    const unsigned groups = std::min<unsigned>(at_once, given.groups - given.first);
    void* parameters[] = {&given};
    if (cluster > 1) {
      const Clusters launch(groups * blocks, threads, shared, cluster, stream);
      TRY(driver.LaunchKernelEx(&launch.config, kernel.function, parameters, nullptr));
    } else if (together) {
      TRY(driver.LaunchCooperativeKernel(kernel.function, groups * blocks, 1, 1, threads, 1, 1,
                                         shared, stream, parameters));
    } else {
      TRY(driver.LaunchKernel(kernel.function, groups * blocks, 1, 1, threads, 1, 1, shared, stream,
                              parameters, nullptr));
    }
  }
  return ffi::Error::Success();
}

// What the driver says of a GPU, in the order of `jaxrnn_gpu_facts`.
Status Ask(int ordinal, std::int32_t* facts) {
  const Driver& driver = TheDriver();
  constexpr int kMultiprocessors = 16, kMajor = 75, kMinor = 76, kCooperative = 95,
                kSharedOptIn = 97;  // CU_DEVICE_ATTRIBUTE_*
  Device device;
  int major = 0, minor = 0;
  Status status = driver.Init(0);
  if (!status) status = driver.DriverGetVersion(&facts[0]);
  if (!status) status = driver.DeviceGet(&device, ordinal);
  if (!status) status = driver.DeviceGetAttribute(&major, kMajor, device);
  if (!status) status = driver.DeviceGetAttribute(&minor, kMinor, device);
  if (!status) status = driver.DeviceGetAttribute(&facts[2], kMultiprocessors, device);
  if (!status) status = driver.DeviceGetAttribute(&facts[3], kSharedOptIn, device);
  if (!status) status = driver.DeviceGetAttribute(&facts[4], kCooperative, device);
  if (status) return status;
  facts[1] = 10 * major + minor;
  // Of a context that MPS confines, the multiprocessors it may use.
  Handle context;
  if ((status = driver.DevicePrimaryCtxRetain(&context, device))) return status;
  {
    Current current(context);
    Affinity affinity{};
    constexpr int kMultiprocessorCount = 0;  // CU_EXEC_AFFINITY_TYPE_SM_COUNT
    if (!driver.CtxGetExecAffinity(&affinity, kMultiprocessorCount) && affinity.multiprocessors)
      facts[2] = std::min<std::int32_t>(facts[2], affinity.multiprocessors);
  }
  return driver.DevicePrimaryCtxRelease(device);
}

// How many clusters a GPU can run at once, of a kernel that only takes all shared memory.
Status AskForClusters(int ordinal, int size, std::int32_t* count) {
  const Driver& driver = TheDriver();
  static const char kNothing[] =
      ".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry run() { ret; }\n";
  std::int32_t facts[5];
  Device device;
  Handle context, module, nothing;
  Status status = Ask(ordinal, facts);
  if (!status) status = driver.DeviceGet(&device, ordinal);
  if (!status) status = driver.DevicePrimaryCtxRetain(&context, device);
  if (status) return status;
  {
    Current current(context);
    status = driver.ModuleLoadData(&module, kNothing);
    if (!status) {
      status = driver.ModuleGetFunction(&nothing, module, "run");
      if (!status) status = driver.FuncSetAttribute(nothing, kMaxDynamicShared, facts[3]);
      const Clusters launch(size, 256, facts[3], size, nullptr);
      int found = 0;
      if (!status) status = driver.OccupancyMaxActiveClusters(&found, nothing, &launch.config);
      *count = found;
      driver.ModuleUnload(module);
    }
  }
  driver.DevicePrimaryCtxRelease(device);
  return status;
}

}  // namespace

#pragma GCC visibility push(default)  // what Python looks up

// Why nothing can be said of a GPU, or null. Else `facts` has the version of CUDA that the driver
// knows (1000 * major + 10 * minor), the compute capability (10 * major + minor), multiprocessors,
// the bytes of shared memory that a block may ask for, and whether there are cooperative launches.
extern "C" const char* jaxrnn_gpu_facts(int ordinal, std::int32_t* facts) {
  if (!TheDriver().found) return "there is no libcuda.so.1, or it is older than CUDA 11.4";
  return Why(Ask(ordinal, facts));
}

// Likewise; `count` is how many clusters of `size` blocks run at once, each block alone on its
// multiprocessor.
extern "C" const char* jaxrnn_gpu_clusters(int ordinal, int size, std::int32_t* count) {
  if (TheDriver().OccupancyMaxActiveClusters == nullptr || TheDriver().LaunchKernelEx == nullptr)
    return "its driver is older than CUDA 11.8";
  return Why(AskForClusters(ordinal, size, count));
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_gpu, Run,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<Handle>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const std::int32_t>>("code")
                                  .Attr<ffi::Span<const std::int64_t>>("members")
                                  .Attr<ffi::Span<const std::int64_t>>("numbers"));
