// This and bind_reader.cpp are the only files that know Python. Arrays arrive as addresses: ops.py has checked shapes,
// types and strides, and keeps the tensors alive during the call. (Four tensors through DLPack cost more than the
// kernel of a small layer.)
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "kernels.h"

namespace nb = nanobind;

template <class T>
static T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

#ifndef _WIN32
void bind_reader(nb::module_& m);  // bind_reader.cpp
#endif

// (format, outputs, inputs, group, address of the data, of the scales)
using Packed = std::tuple<int, int64_t, int64_t, int64_t, uintptr_t, uintptr_t>;

static baltoro::Matrix matrix(const Packed& w) {
  return {static_cast<baltoro::Format>(std::get<0>(w)),
          std::get<1>(w),
          std::get<2>(w),
          std::get<3>(w),
          at<const uint8_t>(std::get<4>(w)),
          at<const uint8_t>(std::get<5>(w))};
}

NB_MODULE(_native, m) {
  m.def("targets", &baltoro::targets, "Names of the targets that this CPU can run, slowest first.");

  m.def(
      "read_roof",
      [](const std::string& target, uintptr_t from, int64_t bytes, int threads) {
        const baltoro::Target& kernels = baltoro::target(target);
        nb::gil_scoped_release released;
        return baltoro::read_roof(kernels, at<const uint8_t>(from), bytes, threads);
      },
      nb::arg("target"), nb::arg("from"), nb::arg("bytes"), nb::arg("threads"));

  m.def(
      "multiply_roof",
      [](const std::string& target, int format, int threads) {
        const baltoro::Target& kernels = baltoro::target(target);
        nb::gil_scoped_release released;
        return baltoro::multiply_roof(kernels, static_cast<baltoro::Format>(format), threads);
      },
      nb::arg("target"), nb::arg("format"), nb::arg("threads"));

  m.def(
      "pack",
      [](const std::string& target, int type, uintptr_t data, uintptr_t scales, const Packed& to, int threads) {
        const baltoro::Target& kernels = baltoro::target(target);
        const baltoro::Numbers from{static_cast<baltoro::Numbers::Type>(type), at<const uint8_t>(data),
                                    at<const float>(scales)};
        const baltoro::Matrix shape = matrix(to);
        nb::gil_scoped_release released;
        return baltoro::pack(kernels, from, shape, at<uint8_t>(std::get<4>(to)), at<uint8_t>(std::get<5>(to)), threads);
      },
      nb::arg("target"), nb::arg("type"), nb::arg("data"), nb::arg("scales"), nb::arg("to"), nb::arg("threads"));

  m.def(
      "matmul",
      [](const std::string& target, const Packed& w, uintptr_t x, uintptr_t y, int64_t T, int threads) {
        const baltoro::Target& kernels = baltoro::target(target);
        const baltoro::Matrix weights = matrix(w);
        nb::gil_scoped_release released;
        baltoro::matmul(kernels, weights, at<const float>(x), at<float>(y), T, threads);
      },
      nb::arg("target"), nb::arg("w"), nb::arg("x"), nb::arg("y"), nb::arg("T"), nb::arg("threads"));

  m.def(
      "matmul_each",
      [](const std::string& target, const Packed& w, uintptr_t x, uintptr_t y, int64_t T, int64_t H, int threads) {
        const baltoro::Target& kernels = baltoro::target(target);
        const baltoro::Matrix weights = matrix(w);
        nb::gil_scoped_release released;
        baltoro::matmul_each(kernels, weights, at<const float>(x), at<float>(y), T, H, threads);
      },
      nb::arg("target"), nb::arg("w"), nb::arg("x"), nb::arg("y"), nb::arg("T"), nb::arg("H"), nb::arg("threads"));

  m.def(
      "experts",
      [](const std::string& target, const Packed& gate, const Packed& up, const Packed& down, uintptr_t x,
         uintptr_t experts, uintptr_t weights, uintptr_t y, int64_t T, int64_t K, int64_t E, int threads) {
        const baltoro::Target& kernels = baltoro::target(target);
        const baltoro::Matrix gate_w = matrix(gate), up_w = matrix(up), down_w = matrix(down);
        nb::gil_scoped_release released;
        baltoro::experts(kernels, gate_w, up_w, down_w, at<const float>(x), at<const int64_t>(experts),
                         at<const float>(weights), at<float>(y), T, K, E, threads);
      },
      nb::arg("target"), nb::arg("gate"), nb::arg("up"), nb::arg("down"), nb::arg("x"), nb::arg("experts"),
      nb::arg("weights"), nb::arg("y"), nb::arg("T"), nb::arg("K"), nb::arg("E"), nb::arg("threads"));

  m.def(
      "mla_decode",
      [](const std::string& target, uintptr_t q, uintptr_t cache, uintptr_t slots, uintptr_t edges, float scale,
         uintptr_t context, int64_t B, int64_t H, int64_t C, int64_t R, int threads) {
        const baltoro::Target& kernels = baltoro::target(target);
        nb::gil_scoped_release released;
        baltoro::mla_decode(kernels, at<const float>(q), at<const uint16_t>(cache), at<const int64_t>(slots),
                            at<const int64_t>(edges), scale, at<float>(context), B, H, C, R, threads);
      },
      nb::arg("target"), nb::arg("q"), nb::arg("cache"), nb::arg("slots"), nb::arg("edges"), nb::arg("scale"),
      nb::arg("context"), nb::arg("B"), nb::arg("H"), nb::arg("C"), nb::arg("R"), nb::arg("threads"));

  m.def(
      "causal_attention",
      [](const std::string& target, uintptr_t q, uintptr_t k, uintptr_t v, float scale, uintptr_t out, int64_t T,
         int64_t S, int64_t H, int64_t K, int64_t V, int threads) {
        const baltoro::Target& kernels = baltoro::target(target);
        nb::gil_scoped_release released;
        baltoro::causal_attention(kernels, at<const float>(q), at<const uint16_t>(k), at<const uint16_t>(v), scale,
                                  at<float>(out), T, S, H, K, V, threads);
      },
      nb::arg("target"), nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("scale"), nb::arg("out"), nb::arg("T"),
      nb::arg("S"), nb::arg("H"), nb::arg("K"), nb::arg("V"), nb::arg("threads"));

#ifndef _WIN32
  bind_reader(m);
#endif
}
