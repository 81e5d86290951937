// Calls of native/gpu/gpu.cc as XLA makes them, with stub_cuda.cc for a driver.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../native/gpu/gpu.cc"

namespace {

template <class Type>
Type& stub(const char* name) {
  return *static_cast<Type*>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), name));
}

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "driven: %s\n", what);
  std::exit(1);
}

// A call with one argument and the exchange, or another result if blocks need not run `together`;
// what went wrong, or "".
std::string call(std::int64_t hash, const std::vector<std::int32_t>& code, bool of_this_version,
                 bool together = true, int cluster = 1, int shared = 0) {
  float in[4] = {};
  std::vector<unsigned> out(64, 0);
  std::int64_t sizes[] = {4}, out_sizes[] = {64};
  XLA_FFI_Buffer from{}, to{};
  from.dtype = XLA_FFI_DataType_F32, from.data = in, from.rank = 1, from.dims = sizes;
  to.dtype = XLA_FFI_DataType_U32, to.data = out.data(), to.rank = 1, to.dims = out_sizes;
  void *arguments[] = {&from}, *results[] = {&to};
  XLA_FFI_ArgType argument_types[] = {XLA_FFI_ArgType_BUFFER};
  XLA_FFI_RetType result_types[] = {XLA_FFI_RetType_BUFFER};
  XLA_FFI_Args args{};
  args.size = 1, args.types = argument_types, args.args = arguments;
  XLA_FFI_Rets rets{};
  rets.size = 1, rets.types = result_types, rets.rets = results;
  const std::int64_t members[] = {0, 0};
  const std::int64_t numbers[] = {4, 2, 256, shared, 5, 4, 1, 5, together, cluster, hash, 7};
  ffi::Error error = Run(nullptr, ffi::RemainingArgs(&args, 0), ffi::RemainingRets(&rets, 0),
                         {code.data(), code.size()}, {members, 2},
                         {numbers, std::size_t(of_this_version ? 12 : 11)});
  if (error.failure()) return error.message();
  for (unsigned word : out)
    check(word == (together ? 0xffffffff : 0), "the exchange does not begin empty, or a result does");
  return "";
}

}  // namespace

int main() {
  std::vector<std::int32_t> code(3), other{1, 2, 3};
  std::memcpy(code.data(), "\x7f" "ELF", 4);
  int &loads = stub<int>("stub_loads"), &launches = stub<int>("stub_launches");

  check(call(1, code, true) == "", "a call fails");
  check(launches == 3, "five groups, two at once, are not three launches");
  long& blocks = stub<long>("stub_blocks");
  check(blocks == 4, "the last launch has not one group of four blocks");
  int& cluster = stub<int>("stub_cluster");
  check(cluster == 0, "there is a cluster that nobody asked for");
  check(call(1, code, true) == "" && loads == 1, "a kernel is loaded twice");
  check(call(2, code, true) == "" && loads == 2, "another kernel is taken for the first");

  check(stub<int>("stub_plain") == 0, "blocks that wait for each other are launched apart");
  const int so_far = launches;
  check(call(1, code, true, false) == "" && launches == so_far && stub<int>("stub_plain") == 3,
        "blocks that exchange nothing are launched together");

  stub<bool>("stub_gives_up") = true;
  check(call(1, code, true) == "", "who gives up is known too early");
  const int before = launches;
  check(call(2, code, true).find("gave up") != std::string::npos, "nobody says that it gave up");
  check(launches == before, "a kernel is launched although its call fails");
  check(call(1, code, true) == "", "it is said twice");

  launches = 0;
  check(call(1, code, true, true, 4) == "" && launches == 3, "clusters are not launched as often");
  check(cluster == 4 && blocks == 4, "the last launch has not one cluster of four blocks");

  for (int i = 0; i < 2; ++i)
    check(call(3, other, true).find("as the stub wants") != std::string::npos,
          "what cannot be loaded is no error");
  check(call(1, code, false).find("another version") != std::string::npos, "misread");
  const int loaded = loads;
  check(call(4, code, true, true, 1, 1 << 20).find("an unknown error") != std::string::npos,
        "a kernel that asks for more shared memory than there is, is no error");
  check(loads == loaded, "a kernel that cannot be launched is kept");

  std::int32_t facts[5], count = 0;
  const int kept = loads;
  check(jaxrnn_gpu_clusters(0, 4, &count) == nullptr && count == 32, "clusters are not counted");
  check(stub<int>("stub_contexts") == 0 && loads == kept, "what asked for clusters is kept");
  const char* why = jaxrnn_gpu_facts(0, facts);
  check(why == nullptr && stub<int>("stub_contexts") == 0, "a context is kept");
  why = jaxrnn_gpu_facts(1, facts);
  check(why != nullptr && std::string(why) == "as the stub wants", "a GPU that is not there");
}
