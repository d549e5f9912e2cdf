// This and its neighbours, bind_*, are the only files that know Python. Arrays arrive as addresses: door.py has checked
// shapes, types and strides, and keeps the tensors alive during the call. (Four tensors through DLPack cost more than
// the kernel of a small layer.)
#include "bind.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "around.h"
#ifndef _WIN32
void bind_reader(nb::module_& m);  // bind_reader.cpp
#endif

void bind_step(nb::module_& m);      // bind_step.cpp
void bind_training(nb::module_& m);  // bind_training.cpp

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

  // A block holds gate, up and down of an expert, each with its scales; blocks begin `block_bytes` apart.
  m.def(
      "block_experts",
      [](const std::string& target, const Packed& gate, const Packed& up, const Packed& down, int64_t block_bytes,
         uintptr_t places, uintptr_t x, uintptr_t experts, uintptr_t weights, uintptr_t y, int64_t T, int64_t K,
         int64_t E, int threads) {
        const baltoro::Target& kernels = baltoro::target(target);
        baltoro::Matrix all[] = {matrix(gate), matrix(up), matrix(down)};
        for (baltoro::Matrix& each : all) each.next = block_bytes;
        nb::gil_scoped_release released;
        baltoro::experts(kernels, all[0], all[1], all[2], at<const float>(x), at<const int64_t>(experts),
                         at<const float>(weights), at<float>(y), T, K, E, threads, {at<const int64_t>(places), true});
      },
      nb::arg("target"), nb::arg("gate"), nb::arg("up"), nb::arg("down"), nb::arg("block_bytes"), nb::arg("places"),
      nb::arg("x"), nb::arg("experts"), nb::arg("weights"), nb::arg("y"), nb::arg("T"), nb::arg("K"), nb::arg("E"),
      nb::arg("threads"));

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

  m.def("within", [](uintptr_t numbers, int64_t count, int64_t end) {
    return baltoro::within(at<const int64_t>(numbers), count, end);
  });

  m.def("route", [](const std::string& target, uintptr_t w, bool is_bf16, uintptr_t bias, int64_t chosen,
                    int64_t groups, int64_t kept_groups, bool normalized, float factor, uintptr_t x, uintptr_t weights,
                    uintptr_t experts, int64_t T, int64_t D, int64_t E, int threads) {
    const baltoro::Target& kernels = baltoro::target(target);
    const nb::gil_scoped_release released;
    baltoro::route(kernels, {at<const void>(w), D, nullptr, is_bf16}, at<const float>(bias),
                   {chosen, groups, kept_groups, normalized, factor}, at<const float>(x), at<float>(weights),
                   at<int64_t>(experts), T, D, E, threads);
  });

  m.def("rms_norm", [](const std::string& target, uintptr_t x, int64_t stride, uintptr_t added, uintptr_t weight,
                       float eps, uintptr_t sum, uintptr_t y, int64_t T, int64_t D, int threads) {
    const baltoro::Target& kernels = baltoro::target(target);
    const nb::gil_scoped_release released;
    baltoro::rms_norm(kernels, at<const float>(x), stride, at<const float>(added), at<const float>(weight), eps,
                      at<float>(sum), at<float>(y), T, D, threads);
  });

  m.def("rotate", [](uintptr_t x, uintptr_t cos, uintptr_t sin, int64_t T, int64_t H, int64_t R, int64_t stride,
                     int64_t head_stride, int threads) {
    const nb::gil_scoped_release released;
    baltoro::rotate(at<float>(x), at<const float>(cos), at<const float>(sin), T, H, R, stride, head_stride, threads);
  });

  m.def("write_latents", [](const std::string& target, uintptr_t x, uintptr_t weight, float eps, uintptr_t cos,
                            uintptr_t sin, uintptr_t cache, bool is_bf16, uintptr_t slots, int64_t T, int64_t C,
                            int64_t R, int threads) {
    const baltoro::Target& kernels = baltoro::target(target);
    const nb::gil_scoped_release released;
    baltoro::write_latents(kernels, at<const float>(x), at<const float>(weight), eps, at<const float>(cos),
                           at<const float>(sin), at<void>(cache), is_bf16, at<const int64_t>(slots), T, C, R, threads);
  });

  m.def("mla_step", [](const std::string& target, const Packed& absorbed_keys, const Packed& values, uintptr_t q,
                       uintptr_t cache, uintptr_t slots, uintptr_t edges, float scale, uintptr_t out, int64_t B,
                       int64_t H, int64_t R, int threads) {
    const baltoro::Target& kernels = baltoro::target(target);
    const baltoro::Matrix keys_w = matrix(absorbed_keys), values_w = matrix(values);
    const nb::gil_scoped_release released;
    baltoro::mla_step(kernels, keys_w, values_w, at<const float>(q), at<const uint16_t>(cache),
                      at<const int64_t>(slots), at<const int64_t>(edges), scale, at<float>(out), B, H, R, threads);
  });

  m.def("mla_prefill",
        [](const std::string& target, const Packed& keys, const Packed& values, uintptr_t q, uintptr_t cache,
           uintptr_t slots, float scale, uintptr_t out, int64_t T, int64_t S, int64_t H, int64_t R, int threads) {
          const baltoro::Target& kernels = baltoro::target(target);
          const baltoro::Matrix keys_w = matrix(keys), values_w = matrix(values);
          const nb::gil_scoped_release released;
          baltoro::mla_prefill(kernels, keys_w, values_w, at<const float>(q), at<const uint16_t>(cache),
                               at<const int64_t>(slots), scale, at<float>(out), T, S, H, R, threads);
        });

  m.def("dense_mla_step", [](const std::string& target, uintptr_t kv_b, uintptr_t q, uintptr_t cache, bool is_bf16,
                             uintptr_t slots, uintptr_t edges, float scale, uintptr_t out, int64_t B, int64_t H,
                             int64_t N, int64_t V, int64_t C, int64_t R, int threads) {
    const baltoro::Target& kernels = baltoro::target(target);
    const nb::gil_scoped_release released;
    baltoro::dense_mla_step(kernels, at<const float>(kv_b), at<const float>(q),
                            {at<const void>(cache), C + R, at<const int64_t>(slots), is_bf16}, at<const int64_t>(edges),
                            scale, at<float>(out), B, H, N, V, C, R, threads);
  });

  m.def("dense_linear", [](const std::string& target, uintptr_t w, uintptr_t x, uintptr_t y, int64_t T, int64_t I,
                           int64_t O, int threads) {
    const baltoro::Target& kernels = baltoro::target(target);
    const nb::gil_scoped_release released;
    baltoro::dense_linear(kernels, at<const float>(w), at<const float>(x), at<float>(y), T, I, O, threads);
  });

  m.def("dense_experts",
        [](const std::string& target, uintptr_t gate, uintptr_t up, uintptr_t down, uintptr_t x, uintptr_t experts,
           uintptr_t weights, uintptr_t y, int64_t T, int64_t K, int64_t D, int64_t F, int threads) {
          const baltoro::Target& kernels = baltoro::target(target);
          const nb::gil_scoped_release released;
          baltoro::dense_experts(kernels, at<const float>(gate), at<const float>(up), at<const float>(down),
                                 at<const float>(x), at<const int64_t>(experts), at<const float>(weights), at<float>(y),
                                 T, K, D, F, threads);
        });
  bind_step(m);
  bind_training(m);
#ifndef _WIN32
  bind_reader(m);
#endif
}
