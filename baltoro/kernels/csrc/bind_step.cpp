// Layers and whole models as Python describes and runs them.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "around.h"
#include "bind.h"

namespace {

// The angles of some positions, gathered from a table (., pairs).
const float* gathered(std::vector<float>& room, const float* table, const int64_t* positions, int64_t T,
                      int64_t pairs) {
  room.resize(std::max<size_t>(room.size(), T * pairs));
  for (int64_t t = 0; t < T; ++t) std::copy_n(table + positions[t] * pairs, pairs, room.data() + t * pairs);
  return room.data();
}

}  // namespace

void bind_step(nb::module_& m) {
  // Weights are described once and kept: a tuple of them, read anew for each token, would cost as much as the products
  // of a small layer.
  nb::class_<baltoro::AttentionWeights>(m, "AttentionWeights")
      .def("__init__", [](baltoro::AttentionWeights* self, const Packed& q_a, const Packed& q_b, const Packed& kv_a,
                          const Packed& keys, const Packed& absorbed_keys, const Packed& values, const Packed& output,
                          uintptr_t q_norm, uintptr_t kv_norm, float eps) {
        new (self) baltoro::AttentionWeights{matrix(q_a),
                                             matrix(q_b),
                                             matrix(kv_a),
                                             matrix(keys),
                                             matrix(absorbed_keys),
                                             matrix(values),
                                             matrix(output),
                                             at<const float>(q_norm),
                                             at<const float>(kv_norm),
                                             eps};
      });

  nb::class_<baltoro::MixtureWeights>(m, "MixtureWeights")
      .def("__init__", [](baltoro::MixtureWeights* self, uintptr_t router, bool is_bf16, uintptr_t bias, int64_t chosen,
                          int64_t groups, int64_t kept_groups, bool normalized, float factor, int64_t experts,
                          int64_t here, const Packed& gate, const Packed& up, const Packed& down,
                          const Packed& shared_gate, const Packed& shared_up, const Packed& shared_down) {
        const baltoro::Matrix first = matrix(gate);
        new (self) baltoro::MixtureWeights{{at<const void>(router), first.inputs, nullptr, is_bf16},
                                           at<const float>(bias),
                                           {chosen, groups, kept_groups, normalized, factor},
                                           experts,
                                           here,
                                           first,
                                           matrix(up),
                                           matrix(down),
                                           matrix(shared_gate),
                                           matrix(shared_up),
                                           matrix(shared_down)};
      });

  nb::class_<baltoro::LayerWeights>(m, "LayerWeights")
      .def("__init__", [](baltoro::LayerWeights* self, uintptr_t input_norm, uintptr_t post_norm,
                          const baltoro::AttentionWeights& attention, const baltoro::MixtureWeights& mixture) {
        new (self) baltoro::LayerWeights{at<const float>(input_norm), at<const float>(post_norm), attention, mixture};
      });

  nb::class_<baltoro::ModelWeights>(m, "ModelWeights")
      .def("__init__", [](baltoro::ModelWeights* self, uintptr_t embedding, bool is_bf16, int64_t hidden,
                          const std::vector<const baltoro::LayerWeights*>& layers, uintptr_t norm, const Packed& head,
                          float eps, float scale, int64_t heads, int64_t rotary) {
        std::vector<baltoro::LayerWeights> own;
        for (const baltoro::LayerWeights* layer : layers) own.push_back(*layer);
        new (self) baltoro::ModelWeights{{at<const void>(embedding), hidden, nullptr, is_bf16},
                                         std::move(own),
                                         at<const float>(norm),
                                         matrix(head),
                                         eps,
                                         scale,
                                         heads,
                                         rotary};
      });

  static_assert(sizeof(baltoro::Chunk) == 4 * sizeof(int64_t));
  nb::class_<baltoro::Rows>(m, "Rows").def(
      "__init__",
      [](baltoro::Rows* self, int64_t T, uintptr_t write_slots, uintptr_t decoding, uintptr_t slots, uintptr_t edges,
         int64_t num_decoding, uintptr_t chunks, int64_t num_chunks, uintptr_t chunk_slots) {
        new (self) baltoro::Rows{T,
                                 nullptr,
                                 nullptr,
                                 at<const int64_t>(write_slots),
                                 at<const int64_t>(decoding),
                                 at<const int64_t>(slots),
                                 at<const int64_t>(edges),
                                 num_decoding,
                                 at<const baltoro::Chunk>(chunks),
                                 num_chunks,
                                 at<const int64_t>(chunk_slots)};
      });

  m.def("attention_step",
        [](const std::string& target, const baltoro::AttentionWeights& w, uintptr_t x, const baltoro::Rows& rows,
           uintptr_t cos, uintptr_t sin, uintptr_t cache, float scale, uintptr_t y, int64_t H, int64_t R, int threads) {
          const baltoro::Target& kernels = baltoro::target(target);
          const nb::gil_scoped_release released;
          baltoro::Rows turned = rows;
          turned.cos = at<const float>(cos), turned.sin = at<const float>(sin);
          baltoro::attention_step(kernels, w, at<const float>(x), turned, at<uint16_t>(cache), scale, at<float>(y), H,
                                  R, threads);
        });

  m.def("mixture_step",
        [](const std::string& target, const baltoro::MixtureWeights& w, uintptr_t h, uintptr_t x, uintptr_t weights,
           uintptr_t chosen, uintptr_t y, int64_t T, int threads) -> std::optional<double> {
          const baltoro::Target& kernels = baltoro::target(target);
          const nb::gil_scoped_release released;
          double seconds = 0.0;
          const bool all_here =
              baltoro::mixture_step(kernels, w, at<const float>(h), at<const float>(x), at<float>(weights),
                                    at<int64_t>(chosen), at<float>(y), seconds, T, threads);
          return all_here ? std::optional<double>(seconds) : std::nullopt;
        });

  m.def("forward", [](const std::string& target, const baltoro::ModelWeights& w, uintptr_t ids, uintptr_t positions,
                      uintptr_t cos, uintptr_t sin, const baltoro::Rows& rows, uintptr_t cache, int64_t layer_numbers,
                      uintptr_t wanted, int64_t count, uintptr_t logits, int threads) {
    const baltoro::Target& kernels = baltoro::target(target);
    const nb::gil_scoped_release released;
    thread_local std::vector<float> cos_room, sin_room;
    baltoro::Rows turned = rows;
    turned.cos = gathered(cos_room, at<const float>(cos), at<const int64_t>(positions), rows.T, w.rotary / 2);
    turned.sin = gathered(sin_room, at<const float>(sin), at<const int64_t>(positions), rows.T, w.rotary / 2);
    return baltoro::forward(kernels, w, at<const int64_t>(ids), turned, at<uint16_t>(cache), layer_numbers,
                            at<const int64_t>(wanted), count, at<float>(logits), threads);
  });
}
