#include "latents.h"

#include <cstring>

namespace baltoro {

namespace {

constexpr int64_t kRows = 128;  // of a task: whole tiles, and their results stay in a core's own cache

float to_float(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace

Latents::Latents(const Target& target, const Matrix& keys, const Matrix& values, const uint16_t* cache,
                 const int64_t* slots, int64_t S, int64_t R, int threads)
    : target_(target), keys_(keys), values_(values), cache_(cache), slots_(slots), S_(S), R_(R) {
  thread_local Room room;
  inputs_ = room.inputs_of(keys, S, together(target, keys, S));
  const Inputs inputs = inputs_;
  const int64_t C = keys.inputs;
  auto work = [=, &target](int64_t s) {
    thread_local std::vector<float> wide;
    thread_local Room own_room;
    const uint16_t* row = cache + slots[s] * (C + R);
    wide.resize(std::max<size_t>(wide.size(), C));
    for (int64_t c = 0; c < C; ++c) wide[c] = to_float(row[c]);
    if (inputs.together == 1) return target.prepare(keys, wide.data(), inputs, s);
    const Inputs plain = own_room.inputs_of(keys, 1);
    target.prepare(keys, wide.data(), plain, 0);
    place(plain, 0, inputs, s);
  };
  parallel_for(S * C < 65536 ? 1 : threads, S, work);
}

void Latents::expand(int64_t head, int64_t count, uint16_t* k, uint16_t* v, int threads) const {
  const int64_t N = keys_.outputs, V = values_.outputs, C = keys_.inputs, K = N + R_;
  const int64_t stripes = (S_ + kRows - 1) / kRows;
  auto work = [=, this](int64_t index) {
    thread_local std::vector<float> wide;
    thread_local std::vector<uint16_t> plain;
    const int64_t h = index / stripes, begin = index % stripes * kRows, rows = std::min(kRows, S_ - begin);
    wide.resize(std::max<size_t>(wide.size(), kRows * std::max(N, V)));
    Token tokens[kRows];
    for (int64_t i = 0; i < rows; ++i) tokens[i] = {static_cast<int32_t>(begin + i), static_cast<int32_t>(i), 1.0f};
    const Matrix some_keys = of_expert(keys_, head + h), some_values = of_expert(values_, head + h);
    uint16_t *key = k + (h * S_ + begin) * K, *value = v + (h * value_rows() + begin) * V;
    target_.product(some_keys, inputs_, tokens, rows, 0, panels(some_keys), nullptr, wide.data(), N);
    target_.round_rows(wide.data(), N, rows, N, key, K);
    for (int64_t i = 0; i < rows; ++i) std::copy_n(cache_ + slots_[begin + i] * (C + R_) + C, R_, key + i * K + N);
    target_.product(some_values, inputs_, tokens, rows, 0, panels(some_values), nullptr, wide.data(), V);
    if (!target_.arrange) return target_.round_rows(wide.data(), V, rows, V, value, V);
    plain.resize(std::max<size_t>(plain.size(), kRows * V));
    target_.round_rows(wide.data(), V, rows, V, plain.data(), V);
    target_.arrange({nullptr, plain.data(), 0, V, nullptr}, 0, rows, V, reinterpret_cast<uint8_t*>(value));
  };
  parallel_for(threads, count * stripes, work);
}

}  // namespace baltoro
