// The arrays of a call: read in order, each held against the shape and type it should have.

#pragma once

#include <stdexcept>
#include <memory>
#include <string>
#include <vector>

#include "pages.h"
#include "task.h"
#include "xla/ffi/api/ffi.h"

namespace jaxrnn {

struct Bad : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* name, const char* what = "") {
  if (!holds) throw Bad(std::string(name) + what);
}

constexpr int64_t kAnySize = -1;
constexpr int32_t kAnyFloat = -1, kFlag = -2, kInt = -3, kAnyNumber = -4;  // beside Storage

// One array: [...members, ...own dimensions]. A member dimension of 1 is shared by all members.
// A complex number, which only kAnyNumber allows, is two numbers of the last dimension.
struct Buffer {
  char* data = nullptr;
  std::vector<int64_t> shape;  // its own dimensions
  std::vector<int64_t> strides;  // of the members, in elements
  int32_t storage = kF32;
  bool complex = false;
  int64_t bytes = 0;  // of an element

  char* member(int64_t index, const std::vector<int64_t>& sizes) const {
    int64_t offset = 0;
    for (size_t i = sizes.size(); i-- > 0; index /= sizes[i])
      offset += index % sizes[i] * strides[i];
    return data + offset * bytes;
  }
};

// Reads arguments, then results, in order. The first result has all members.
class Reader {
 public:
  using Shape = std::vector<int64_t>;

  Reader(xla::ffi::RemainingArgs args, xla::ffi::RemainingRets rets, size_t first_rank)
      : args_(args), rets_(rets) {
    require(rets.size() > 0, "a call without results");
    auto first = rets.get<xla::ffi::AnyBuffer>(0).value()->dimensions();
    require(first.size() >= first_rank, "the first result has too few dimensions");
    members_.assign(first.begin(), first.end() - first_rank);
  }

  const Shape& members() const { return members_; }

  Buffer argument(const char* name, const Shape& shape, int32_t storage) {
    require(arg_ < args_.size(), name, " is missing");
    return buffer(args_.get<xla::ffi::AnyBuffer>(arg_++).value(), name, shape, storage, false);
  }
  Buffer result(const char* name, const Shape& shape, int32_t storage) {
    require(ret_ < rets_.size(), name, " is missing");
    auto any = rets_.get<xla::ffi::AnyBuffer>(ret_++).value();
    Buffer out = buffer(*any, name, shape, storage, true);
    in_large_pages(out.data, any->size_bytes());
    return out;
  }
  std::vector<Buffer> arguments(int count, const char* name, const Shape& shape, int32_t storage) {
    std::vector<Buffer> out;
    for (int i = 0; i < count; ++i) out.push_back(argument(name, shape, storage));
    return out;
  }
  std::vector<Buffer> results(int count, const char* name, const Shape& shape, int32_t storage) {
    std::vector<Buffer> out;
    for (int i = 0; i < count; ++i) out.push_back(result(name, shape, storage));
    return out;
  }
  bool more_results() const { return ret_ < rets_.size(); }
  void end() {
    require(arg_ == args_.size() && ret_ == rets_.size(), "too many arrays");
  }

 private:
  template <class Any>
  Buffer buffer(const Any& any, const char* name, const Shape& shape, int32_t storage,
                bool has_all_members) const {
    auto dimensions = any.dimensions();
    size_t levels = members_.size();
    auto is = [&](bool holds, const char* what) { require(holds, name, what); };
    is(dimensions.size() == levels + shape.size(), ": an unexpected number of dimensions");
    Buffer out;
    out.data = static_cast<char*>(any.untyped_data());
    out.shape.assign(dimensions.begin() + levels, dimensions.end());
    switch (any.element_type()) {
      case xla::ffi::F32: out.storage = kF32, out.bytes = 4; break;
      case xla::ffi::F64: out.storage = kF64, out.bytes = 8; break;
      case xla::ffi::BF16: out.storage = kBF16, out.bytes = 2; break;
      case xla::ffi::F16: out.storage = kF16, out.bytes = 2; break;
      case xla::ffi::C64: out.storage = kF32, out.bytes = 4, out.complex = true; break;
      case xla::ffi::C128: out.storage = kF64, out.bytes = 8, out.complex = true; break;
      case xla::ffi::PRED: out.storage = kFlag, out.bytes = 1; break;
      case xla::ffi::S32: out.storage = kInt, out.bytes = 4; break;
      default: is(false, ": a type the kernel does not know");
    }
    if (storage == kAnyNumber)
      is(out.storage >= 0 && !out.shape.empty(), ": an unexpected type");
    else
      is(!out.complex && (storage == kAnyFloat ? out.storage >= 0 : out.storage == storage),
         ": an unexpected type");
    if (out.complex) out.shape.back() *= 2;
    for (size_t i = 0; i < shape.size(); ++i)
      is(shape[i] == kAnySize || shape[i] == out.shape[i], ": an unexpected shape");
    int64_t stride = 1;
    for (int64_t n : out.shape) stride *= n;
    out.strides.resize(levels);
    for (size_t i = levels; i-- > 0; stride *= dimensions[i]) {
      is(dimensions[i] == members_[i] || (dimensions[i] == 1 && !has_all_members),
         ": an unexpected number of members");
      out.strides[i] = dimensions[i] == 1 ? 0 : stride;
    }
    return out;
  }

  xla::ffi::RemainingArgs args_;
  xla::ffi::RemainingRets rets_;
  Shape members_;
  size_t arg_ = 0, ret_ = 0;
};

}  // namespace jaxrnn
