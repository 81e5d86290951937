// What XLA calls on a GPU: hands a kernel's machine code and its arrays to the driver.
//
// The driver is looked up when it is first needed, and CUDA's headers are not: this builds, and
// loads, where there is neither. The kernel is jaxrnn/_src/ops/recurrence/gpu/kernel.cu.

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kMostArrays = 48;  // jaxrnn/_src/ops/recurrence/gpu/launch.py

struct Args {  // kernel.cu
  void* array[kMostArrays];
  long long member[kMostArrays];
  int steps, rows, tiles, groups;
  int first;
};

// Of the driver's interface, what is used here.
using Status = int;
using Handle = void*;  // of a context, a module, a function, a stream
struct Driver {
  Status (*GetErrorString)(Status, const char**);
  Status (*StreamGetCtx)(Handle, Handle*);
  Status (*CtxPushCurrent)(Handle);
  Status (*CtxPopCurrent)(Handle*);
  Status (*ModuleLoadData)(Handle*, const void*);
  Status (*ModuleGetFunction)(Handle*, Handle, const char*);
  Status (*FuncSetAttribute)(Handle, int, int);
  Status (*MemsetD32Async)(std::uintptr_t, unsigned, std::size_t, Handle);
  Status (*LaunchCooperativeKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned,
                                    unsigned, unsigned, Handle, void**);
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
    d.found = find(d.GetErrorString, "cuGetErrorString") &&
              find(d.StreamGetCtx, "cuStreamGetCtx") &&
              find(d.CtxPushCurrent, "cuCtxPushCurrent_v2") &&
              find(d.CtxPopCurrent, "cuCtxPopCurrent_v2") &&
              find(d.ModuleLoadData, "cuModuleLoadData") &&
              find(d.ModuleGetFunction, "cuModuleGetFunction") &&
              find(d.FuncSetAttribute, "cuFuncSetAttribute") &&
              find(d.MemsetD32Async, "cuMemsetD32Async") &&
              find(d.LaunchCooperativeKernel, "cuLaunchCooperativeKernel");
    return d;
  }();
  return driver;
}

ffi::Error Failed(const char* what, Status status) {
  const char* why = "unknown";
  TheDriver().GetErrorString(status, &why);
  return ffi::Error::Internal(std::string("jaxrnn: ") + what + ": " + why);
}

#define TRY(call)                                          \
  do {                                                     \
    if (Status status = (call)) return Failed(#call, status); \
  } while (false)

// The kernel in a context; loaded once. Modules are kept for good.
ffi::Error Load(Handle context, ffi::Span<const std::int32_t> code, int shared, Handle* function) {
  static std::mutex mutex;
  static auto& loaded = *new std::map<std::pair<Handle, std::string>, Handle>;
  std::string bytes(reinterpret_cast<const char*>(code.begin()), 4 * code.size());
  std::lock_guard<std::mutex> lock(mutex);
  Handle& known = loaded[{context, std::move(bytes)}];
  if (known == nullptr) {
    const Driver& driver = TheDriver();
    Handle module, found;
    TRY(driver.ModuleLoadData(&module, code.begin()));
    TRY(driver.ModuleGetFunction(&found, module, "run"));
    constexpr int kMaxDynamicShared = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    TRY(driver.FuncSetAttribute(found, kMaxDynamicShared, shared));
    known = found;
  }
  *function = known;
  return ffi::Error::Success();
}

struct Current {  // a context, made this thread's for a while
  explicit Current(Handle context) { TheDriver().CtxPushCurrent(context); }
  ~Current() {
    Handle context;
    TheDriver().CtxPopCurrent(&context);
  }
};

ffi::Error Run(Handle stream, ffi::RemainingArgs args, ffi::RemainingRets results,
               ffi::Span<const std::int32_t> code, ffi::Span<const std::int64_t> members,
               ffi::Span<const std::int64_t> numbers) {
  const Driver& driver = TheDriver();
  if (!driver.found) return ffi::Error::Internal("jaxrnn: there is no libcuda.so.1");
  const std::size_t count = args.size() + results.size();
  if (count > kMostArrays || count != members.size() || numbers.size() != 8)
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
      exchange = given.array[i] = (*buffer)->untyped_data();  // the last one is it
      bytes = (*buffer)->size_bytes();
    }
    given.member[i] = members.begin()[i];
  }
  const std::int64_t* n = numbers.begin();
  const unsigned blocks = n[0], at_once = n[1], threads = n[2], shared = n[3];
  given.steps = n[4], given.rows = n[5], given.tiles = n[6], given.groups = n[7];

  Handle context, function;
  TRY(driver.StreamGetCtx(stream, &context));
  Current current(context);
  ffi::Error error = Load(context, code, shared, &function);
  if (error.failure()) return error;
  TRY(driver.MemsetD32Async(reinterpret_cast<std::uintptr_t>(exchange), 0xffffffff, bytes / 4,
                            stream));
  for (given.first = 0; given.first < given.groups; given.first += at_once) {
    const unsigned groups = std::min<unsigned>(at_once, given.groups - given.first);
    void* parameters[] = {&given};
    TRY(driver.LaunchCooperativeKernel(function, groups * blocks, 1, 1, threads, 1, 1, shared,
                                       stream, parameters));
  }
  return ffi::Error::Success();
}

}  // namespace

#pragma GCC visibility push(default)  // what Python looks up
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxrnn_gpu, Run,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<Handle>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const std::int32_t>>("code")
                                  .Attr<ffi::Span<const std::int64_t>>("members")
                                  .Attr<ffi::Span<const std::int64_t>>("numbers"));
