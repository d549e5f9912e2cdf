// Training's calls. Structures of addresses are built here from what Python hands over one by one.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

#include "bind.h"
#include "training_calls.h"

static const baltoro::Training& training(const std::string& target) {
  const baltoro::Training* found = baltoro::training_of(target);
  if (!found) throw std::invalid_argument("target '" + target + "' has no kernels for training");
  return *found;
}

void bind_training(nb::module_& m) {
  using Released = nb::gil_scoped_release;

  m.def("can_train", [](const std::string& target) { return baltoro::training_of(target) != nullptr; });

  m.def("train_pack",
        [](const std::string& target, uintptr_t w, uintptr_t panels, int64_t E, int64_t O, int64_t I, int threads) {
          const auto& t = training(target);
          const Released released;
          baltoro::train_pack(t, at<const float>(w), at<uint16_t>(panels), E, O, I, threads);
        });

  m.def("train_pack_back", [](const std::string& target, uintptr_t w, uintptr_t panels, int64_t E, int64_t O, int64_t I,
                              int64_t all, int64_t offset, int threads) {
    const auto& t = training(target);
    const Released released;
    baltoro::train_pack_back(t, at<const float>(w), at<uint16_t>(panels), E, O, I, all, offset, threads);
  });

  m.def("train_round", [](const std::string& target, uintptr_t from, uintptr_t to, int64_t count, int threads) {
    const auto& t = training(target);
    const Released released;
    baltoro::train_round(t, at<const float>(from), at<uint16_t>(to), count, threads);
  });

  m.def("train_product",
        [](const std::string& target, uintptr_t x, int64_t stride, int64_t T, int64_t inputs, uintptr_t w,
           int64_t outputs, uintptr_t onto, uintptr_t y, int64_t y_stride, bool is_bf16, int threads) {
          const auto& t = training(target);
          const Released released;
          baltoro::train_product(t,
                                 {at<const uint16_t>(x), stride, T, inputs, at<const uint16_t>(w), outputs,
                                  at<const float>(onto), at<void>(y), y_stride, is_bf16},
                                 threads);
        });

  m.def("train_outer", [](const std::string& target, uintptr_t a, uintptr_t b, uintptr_t c, int64_t T, int64_t O,
                          int64_t I, int threads) {
    const auto& t = training(target);
    const Released released;
    baltoro::train_outer(t, at<const uint16_t>(a), at<const uint16_t>(b), at<float>(c), T, O, I, threads);
  });

  m.def("train_norm", [](const std::string& target, uintptr_t x, uintptr_t weight, int64_t stride, int64_t T,
                         int64_t width, float eps, uintptr_t y, uintptr_t wide, uintptr_t scales, int threads) {
    const auto& t = training(target);
    const Released released;
    baltoro::train_norm(t,
                        {at<const float>(x), at<const float>(weight), stride, T, width, eps, at<uint16_t>(y),
                         at<float>(wide), at<float>(scales)},
                        threads);
  });

  m.def("train_norm_gradient", [](const std::string& target, uintptr_t dy, uintptr_t x, uintptr_t weight,
                                  uintptr_t scales, int64_t stride, int64_t T, int64_t width, uintptr_t onto,
                                  uintptr_t wide, uintptr_t dx, int64_t dx_stride, uintptr_t dweight, int threads) {
    const auto& t = training(target);
    const Released released;
    baltoro::train_norm_gradient(
        t,
        {at<const float>(dy), at<const float>(x), at<const float>(weight), at<const float>(scales), stride, T, width,
         at<const float>(onto), at<float>(wide), at<uint16_t>(dx), dx_stride, nullptr},
        at<float>(dweight), threads);
  });

  m.def("train_turn", [](const std::string& target, uintptr_t x, uintptr_t cos, uintptr_t sin, int64_t T, int64_t H,
                         int64_t R, int64_t stride, int64_t head_stride, float sign, int threads) {
    const auto& t = training(target);
    const Released released;
    baltoro::train_turn(t, at<uint16_t>(x), at<const float>(cos), at<const float>(sin), T, H, R, stride, head_stride,
                        sign, threads);
  });

  m.def("train_attend",
        [](const std::string& target, uintptr_t q, uintptr_t kv, uintptr_t k_pe, uintptr_t edges, int64_t B, int64_t H,
           int64_t N, int64_t R, int64_t V, float scale, uintptr_t context, uintptr_t lse, uintptr_t peaks,
           uintptr_t dcontext, uintptr_t dq, uintptr_t dkv, uintptr_t dk_pe, int threads) {
          const auto& t = training(target);
          const baltoro::TrainAttention p{at<const uint16_t>(q),
                                          at<const uint16_t>(kv),
                                          at<const uint16_t>(k_pe),
                                          at<const int64_t>(edges),
                                          B,
                                          H,
                                          N,
                                          R,
                                          V,
                                          scale,
                                          at<uint16_t>(context),
                                          at<float>(lse),
                                          at<float>(peaks),
                                          at<const uint16_t>(dcontext),
                                          at<uint16_t>(dq),
                                          at<uint16_t>(dkv),
                                          at<float>(dk_pe)};
          const Released released;
          baltoro::train_attend(t, p, dcontext != 0, threads);
        });

  m.def("group_by_expert", [](uintptr_t chosen, int64_t T, int64_t K, int64_t E, uintptr_t places, uintptr_t tokens,
                              uintptr_t pieces, uintptr_t bounds) {
    const Released released;
    const auto all = baltoro::group_by_expert(at<const int64_t>(chosen), T, K, E, at<int64_t>(places),
                                              at<int64_t>(tokens), at<int64_t>(pieces), at<int64_t>(bounds));
    return std::pair<int64_t, int64_t>(all.places, all.pieces);
  });

  m.def("train_experts", [](const std::string& target, uintptr_t tokens, uintptr_t pieces, int64_t P,
                            int64_t num_pieces, int64_t D, int64_t F, uintptr_t gate, uintptr_t up, uintptr_t down,
                            uintptr_t x, uintptr_t gates, uintptr_t ups, uintptr_t y, uintptr_t places,
                            uintptr_t weights, int64_t T, int64_t K, uintptr_t onto, uintptr_t to, int threads) {
    const auto& t = training(target);
    baltoro::TrainExperts p{};
    p.tokens = at<const int64_t>(tokens), p.pieces = at<const int64_t>(pieces), p.P = P, p.num_pieces = num_pieces;
    p.D = D, p.F = F;
    p.gate = at<const uint16_t>(gate), p.up = at<const uint16_t>(up), p.down = at<const uint16_t>(down);
    p.x = at<const uint16_t>(x), p.gates = at<uint16_t>(gates), p.ups = at<uint16_t>(ups), p.y = at<float>(y);
    const Released released;
    baltoro::train_experts(
        t, p, {at<const int64_t>(places), at<const float>(weights), T, K, at<const float>(onto), at<float>(to)},
        threads);
  });

  m.def("train_experts_gradient", [](const std::string& target, uintptr_t tokens, uintptr_t pieces, uintptr_t bounds,
                                     int64_t P, int64_t num_pieces, int64_t E, int64_t D, int64_t F,
                                     uintptr_t from_hidden, uintptr_t from_output, uintptr_t x, uintptr_t gates,
                                     uintptr_t ups, uintptr_t dy, uintptr_t y, uintptr_t places, uintptr_t weights,
                                     int64_t T, int64_t K, uintptr_t onto, uintptr_t to, uintptr_t dweights,
                                     uintptr_t dgate, uintptr_t dup, uintptr_t ddown, int threads) {
    const auto& t = training(target);
    baltoro::TrainExperts p{};
    p.tokens = at<const int64_t>(tokens), p.pieces = at<const int64_t>(pieces), p.P = P;
    p.num_pieces = num_pieces, p.D = D, p.F = F;
    p.from_hidden = at<const uint16_t>(from_hidden), p.from_output = at<const uint16_t>(from_output);
    p.x = at<const uint16_t>(x), p.gates = at<uint16_t>(gates), p.ups = at<uint16_t>(ups);
    p.dy = at<const uint16_t>(dy), p.y = at<float>(y);
    const Released released;
    baltoro::train_experts_gradient(
        t, p, {at<const int64_t>(places), at<const float>(weights), T, K, at<const float>(onto), at<float>(to)},
        at<const int64_t>(bounds), E, at<float>(dweights), at<float>(dgate), at<float>(dup), at<float>(ddown), threads);
  });

  m.def("train_route_gradient", [](const std::string& target, uintptr_t x, uintptr_t w, uintptr_t dweights,
                                   uintptr_t chosen, int64_t T, int64_t K, int64_t D, int64_t E, bool normalized,
                                   float factor, uintptr_t dx, uintptr_t dw, int threads) {
    const auto& t = training(target);
    const Released released;
    baltoro::train_route_gradient(t,
                                  {at<const float>(x), at<const float>(w), at<const float>(dweights),
                                   at<const int64_t>(chosen), T, K, D, E, normalized, factor, at<float>(dx), nullptr},
                                  at<float>(dw), threads);
  });

  m.def("train_sum_heads", [](const std::string& target, uintptr_t x, uintptr_t to, int64_t T, int64_t H, int64_t R,
                              int64_t stride, int threads) {
    const auto& t = training(target);
    const Released released;
    baltoro::train_sum_heads(t, at<const float>(x), at<uint16_t>(to), T, H, R, stride, threads);
  });

  m.def("train_loss", [](const std::string& target, uintptr_t x, uintptr_t targets, int64_t rows, int64_t D, int64_t V,
                         uintptr_t w, uintptr_t w_back, uintptr_t losses, uintptr_t dx, uintptr_t dhead, int threads) {
    const auto& t = training(target);
    baltoro::LossRows p{};
    p.x = at<const uint16_t>(x), p.targets = at<const int64_t>(targets), p.rows = rows, p.D = D, p.V = V;
    p.w = at<const uint16_t>(w), p.w_back = at<const uint16_t>(w_back);
    p.losses = at<float>(losses), p.dx = at<float>(dx);
    const Released released;
    baltoro::train_loss(t, p, at<float>(dhead), threads);
  });
}
