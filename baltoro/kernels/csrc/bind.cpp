// The only file that knows Python. Arrays arrive as addresses: ops.py has checked shapes, types and strides, and
// keeps the tensors alive during the call. (Four tensors through DLPack cost more than the kernel of a small layer.)
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "kernels.h"

namespace nb = nanobind;

template <class T>
static T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

NB_MODULE(_native, m) {
  m.def("targets", &baltoro::targets, "Names of the targets that this CPU can run, slowest first.");

  m.def(
      "matmul_fp8",
      [](const std::string& target, uintptr_t x, uintptr_t w, uintptr_t scale, uintptr_t y, int64_t T, int64_t O,
         int64_t I) {
        const baltoro::Target& kernels = baltoro::target(target);
        nb::gil_scoped_release released;
        kernels.matmul_fp8(at<const float>(x), at<const uint8_t>(w), at<const float>(scale), at<float>(y), T, O, I);
      },
      nb::arg("target"), nb::arg("x"), nb::arg("w"), nb::arg("scale"), nb::arg("y"), nb::arg("T"), nb::arg("O"),
      nb::arg("I"));
}
