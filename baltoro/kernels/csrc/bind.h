// How Python speaks of arrays and matrices.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

#include "kernels.h"

namespace nb = nanobind;

template <class T>
static T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (format, outputs, inputs, group, address of the data, of the scales)
using Packed = std::tuple<int, int64_t, int64_t, int64_t, uintptr_t, uintptr_t>;

static inline baltoro::Matrix matrix(const Packed& w) {
  return {static_cast<baltoro::Format>(std::get<0>(w)),
          std::get<1>(w),
          std::get<2>(w),
          std::get<3>(w),
          at<const uint8_t>(std::get<4>(w)),
          at<const uint8_t>(std::get<5>(w))};
}
