// Every kernel of every target that runs here against the scalar one, on random shapes, from buffers that are exactly
// as large as the contract says: built with the sanitizers, a byte too far is an error. `make check-native` runs it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "../../baltoro/kernels/csrc/around.h"
#include "../../baltoro/kernels/csrc/kernels.h"

using namespace baltoro;

int check_reading(int rounds);  // reading.cpp

static std::mt19937 rng(1);
static int64_t between(int64_t low, int64_t high) { return low + static_cast<int64_t>(rng() % (high - low + 1)); }
static float normal() { return std::normal_distribution<float>()(rng); }
static uint16_t bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>(bits >> 16);
}

template <class T>
struct Exact {  // a heap block of its own: the sanitizer knows its end
  T* data;
  explicit Exact(int64_t count) : data(static_cast<T*>(std::malloc(count > 0 ? count * sizeof(T) : 1))) {}
  ~Exact() { std::free(data); }
  Exact(Exact&& other) : data(other.data) { other.data = nullptr; }
};

struct Packed {
  Matrix shape;
  Exact<uint8_t> data, scales;

  static Matrix shaped(Format format, int64_t outputs, int64_t inputs, int64_t group) {
    return {format, outputs, inputs, format == Format::kFp8 ? 128 : group, nullptr, nullptr};
  }
  Packed(Format format, int64_t outputs, int64_t inputs, int64_t group, int64_t stack)
      : shape(shaped(format, outputs, inputs, group)),
        data(stack * panels(shape) * panel_bytes(shape)),
        scales(stack * panels(shape) * panel_scale_bytes(shape)) {
    const int64_t bytes = stack * panels(shape) * panel_bytes(shape);
    for (int64_t i = 0; i < bytes; ++i) data.data[i] = static_cast<uint8_t>(rng());
    if (format == Format::kFp8)
      for (int64_t i = 0; i < bytes; ++i) data.data[i] &= 0xB7;  // no NaN
    if (format == Format::kBf16)
      for (int64_t i = 0; i < bytes; i += 2) data.data[i + 1] = (data.data[i + 1] & 0x80) | 0x3C;
    const int64_t count = stack * panels(shape) * panel_scale_bytes(shape);
    if (is_integer(shape))
      for (int64_t i = 0; i < count / 2; ++i) reinterpret_cast<uint16_t*>(scales.data)[i] = bf16(0.01f);
    else
      for (int64_t i = 0; i < count / 4; ++i) reinterpret_cast<float*>(scales.data)[i] = 0.01f;
    shape.data = data.data, shape.scales = scales.data;
  }
};

static int failures = 0;

static void compare(const char* what, const char* target, Format format, const float* found, const float* expected,
                    int64_t count, double allowed) {
  double norm = 0, off = 0;
  for (int64_t i = 0; i < count; ++i) {
    norm += static_cast<double>(expected[i]) * expected[i];
    off += (static_cast<double>(found[i]) - expected[i]) * (static_cast<double>(found[i]) - expected[i]);
  }
  if (std::sqrt(off) <= allowed * std::sqrt(norm)) return;
  std::printf("%s, %s, format %d: off by %.2e of %.2e\n", what, target, static_cast<int>(format), std::sqrt(off),
              std::sqrt(norm));
  ++failures;
}

static void products(const Target& target, const Target& scalar, Format format) {
  const bool grouped = format == Format::kInt8 || format == Format::kInt4;
  const int64_t group = 8 * between(1, 16), inputs = grouped ? group * between(1, 5) : between(1, 400);
  const int64_t outputs = between(1, 300), T = between(0, 20);
  const Packed w(format, outputs, inputs, group, 1);
  const Exact<float> x(T * inputs), found(T * outputs), expected(T * outputs);
  for (int64_t i = 0; i < T * inputs; ++i) x.data[i] = normal();
  matmul(target, w.shape, x.data, found.data, T, static_cast<int>(between(1, 4)));
  matmul(scalar, w.shape, x.data, expected.data, T, 1);
  compare("matmul", target.name, format, found.data, expected.data, T * outputs, grouped ? 0 : 1e-5);
}

static void heads(const Target& target, const Target& scalar, Format format) {
  const int64_t group = 8 * between(1, 4), I = group * between(1, 4), O = between(1, 70), H = between(1, 9);
  const int64_t T = between(0, 9);
  const Packed w(format, O, I, group, H);
  const Exact<float> x(T * H * I), found(T * H * O), expected(T * H * O);
  for (int64_t i = 0; i < T * H * I; ++i) x.data[i] = normal();
  matmul_each(target, w.shape, x.data, found.data, T, H, static_cast<int>(between(1, 4)));
  matmul_each(scalar, w.shape, x.data, expected.data, T, H, 1);
  compare("matmul_each", target.name, format, found.data, expected.data, T * H * O, is_integer(w.shape) ? 0 : 1e-5);
}

static void mixtures(const Target& target, const Target& scalar, Format format) {
  const int64_t group = 8 * between(1, 4), D = group * between(1, 6), F = group * between(1, 6);
  const int64_t E = between(1, 20), K = between(1, E < 8 ? E : 8), T = between(0, 20);
  const Packed gate(format, F, D, group, E), up(format, F, D, group, E), down(format, D, F, group, E);
  const Exact<float> x(T * D), weights(T * K), found(T * D), expected(T * D);
  const Exact<int64_t> chosen(T * K);
  for (int64_t i = 0; i < T * D; ++i) x.data[i] = normal();
  for (int64_t i = 0; i < T * K; ++i) weights.data[i] = 0.5f, chosen.data[i] = between(0, E - 1);
  experts(target, gate.shape, up.shape, down.shape, x.data, chosen.data, weights.data, found.data, T, K, E,
          static_cast<int>(between(1, 4)));
  experts(scalar, gate.shape, up.shape, down.shape, x.data, chosen.data, weights.data, expected.data, T, K, E, 1);
  compare("experts", target.name, format, found.data, expected.data, T * D, 1e-2);  // a rounding may go the other way
}

static void attention(const Target& target, const Target& scalar) {
  const int64_t B = between(1, 3), H = between(1, 70), C = 32 * between(1, 4), R = 4 * between(1, 8);
  std::vector<int64_t> edges{0};
  for (int64_t b = 0; b < B; ++b) edges.push_back(edges.back() + between(1, 700));
  const int64_t rows = edges.back() + 3;
  const Exact<float> q(B * H * (C + R)), found(B * H * C), expected(B * H * C);
  const Exact<uint16_t> cache(rows * (C + R));
  const Exact<int64_t> slots(edges.back());
  for (int64_t i = 0; i < B * H * (C + R); ++i) q.data[i] = normal() * 0.2f;
  for (int64_t i = 0; i < rows * (C + R); ++i) cache.data[i] = bf16(normal());
  for (int64_t i = 0; i < edges.back(); ++i) slots.data[i] = between(0, rows - 1);
  mla_decode(target, q.data, cache.data, slots.data, edges.data(), 0.3f, found.data, B, H, C, R, 3);
  mla_decode(scalar, q.data, cache.data, slots.data, edges.data(), 0.3f, expected.data, B, H, C, R, 1);
  compare("mla_decode", target.name, Format::kBf16, found.data, expected.data, B * H * C, 5e-3);

  const int64_t T = between(1, 80), S = T + between(0, 600), heads = between(1, 3), K = 4 * between(1, 20);
  const Exact<float> query(T * heads * K), out(T * heads * C), right(T * heads * C);
  const Exact<uint16_t> k(S * heads * K), v(S * heads * C);
  for (int64_t i = 0; i < T * heads * K; ++i) query.data[i] = normal();
  for (int64_t i = 0; i < S * heads * K; ++i) k.data[i] = bf16(normal());
  for (int64_t i = 0; i < S * heads * C; ++i) v.data[i] = bf16(normal());
  causal_attention(target, query.data, k.data, v.data, 0.2f, out.data, T, S, heads, K, C, 3);
  causal_attention(scalar, query.data, k.data, v.data, 0.2f, right.data, T, S, heads, K, C, 1);
  compare("causal_attention", target.name, Format::kBf16, out.data, right.data, T * heads * C, 5e-3);
}

static Exact<float> normals(int64_t count, float size = 1.0f) {
  Exact<float> all(count);
  for (int64_t i = 0; i < count; ++i) all.data[i] = normal() * size;
  return all;
}

static void compare_bits(const char* what, const char* target, const void* found, const void* expected, int64_t bytes) {
  if (std::memcmp(found, expected, bytes) == 0) return;
  std::printf("%s, %s: other bits than scalar\n", what, target);
  ++failures;
}

static void routing(const Target& target, const Target& scalar) {
  const int64_t groups = between(1, 4), E = groups * between(2, 90), kept = between(1, groups), D = between(1, 300);
  const int64_t K = between(1, groups > 1 ? kept * (E / groups) : E), T = between(0, 20);
  const Choice choice{K, groups, kept, between(0, 1) == 1, 2.5f};
  const Exact<float> x = normals(T * D), w = normals(E * D, 0.1f), bias = normals(E, 0.1f), a(T * K), b(T * K);
  const Exact<uint16_t> half(E * D);
  for (int64_t i = 0; i < E * D; ++i) half.data[i] = bf16(w.data[i]);
  const Exact<int64_t> chosen(T * K), right(T * K);
  const bool is_bf16 = between(0, 1) == 1;
  const Dense rows{is_bf16 ? static_cast<const void*>(half.data) : w.data, D, nullptr, is_bf16};
  route(target, rows, bias.data, choice, x.data, a.data, chosen.data, T, D, E, 3);
  route(scalar, rows, bias.data, choice, x.data, b.data, right.data, T, D, E, 1);
  compare_bits("route, experts", target.name, chosen.data, right.data, T * K * 8);
  compare_bits("route, weights", target.name, a.data, b.data, T * K * 4);
}

static void norms(const Target& target, const Target& scalar) {
  const int64_t T = between(0, 40), D = between(1, 1200), C = between(1, 90), R = 2 * between(1, 20), N = T + 3;
  const Exact<float> x = normals(T * D), more = normals(T * D), weight = normals(D);
  const Exact<float> sum(T * D), right_sum(T * D), y(T * D), right(T * D);
  const bool adds = between(0, 1) == 1;
  rms_norm(target, x.data, D, adds ? more.data : nullptr, weight.data, 1e-6f, sum.data, y.data, T, D, 3);
  rms_norm(scalar, x.data, D, adds ? more.data : nullptr, weight.data, 1e-6f, right_sum.data, right.data, T, D, 1);
  compare_bits("rms_norm", target.name, y.data, right.data, T * D * 4);
  if (adds) compare_bits("rms_norm, sum", target.name, sum.data, right_sum.data, T * D * 4);

  const Exact<float> kv = normals(T * (C + R)), latent_weight = normals(C);
  const Exact<float> cos = normals(T * R / 2), sin = normals(T * R / 2);
  const Exact<int64_t> slots(T);
  for (int64_t t = 0; t < T; ++t) slots.data[t] = N - 1 - t;
  const Exact<float> cache(N * (C + R)), expected(N * (C + R));
  for (const bool is_bf16 : {false, true}) {
    std::memset(cache.data, 0, N * (C + R) * 4), std::memset(expected.data, 0, N * (C + R) * 4);
    for (const auto& [kernels, to] : {std::pair(&target, cache.data), std::pair(&scalar, expected.data)})
      write_latents(*kernels, kv.data, latent_weight.data, 1e-6f, cos.data, sin.data, to, is_bf16, slots.data, T, C, R,
                    3);
    compare_bits("write_latents", target.name, cache.data, expected.data, N * (C + R) * 4);
  }
}

static void plain_steps(const Target& target, const Target& scalar) {
  const int64_t T = between(0, 8), E = between(1, 6), K = between(1, E), D = between(1, 150), F = between(1, 150);
  const Exact<float> x = normals(T * D), weights = normals(T * K), gate = normals(E * F * D, 0.1f);
  const Exact<float> up = normals(E * F * D, 0.1f), down = normals(E * D * F, 0.1f), a(T * D), b(T * D);
  const Exact<int64_t> chosen(T * K);
  for (int64_t i = 0; i < T * K; ++i) chosen.data[i] = between(0, E - 1);
  dense_experts(target, gate.data, up.data, down.data, x.data, chosen.data, weights.data, a.data, T, K, D, F, 3);
  dense_experts(scalar, gate.data, up.data, down.data, x.data, chosen.data, weights.data, b.data, T, K, D, F, 1);
  compare_bits("dense_experts", target.name, a.data, b.data, T * D * 4);

  const Exact<float> wide(T * F), right(T * F);
  dense_linear(target, gate.data, x.data, wide.data, T, D, F, 3);
  dense_linear(scalar, gate.data, x.data, right.data, T, D, F, 1);
  compare_bits("dense_linear", target.name, wide.data, right.data, T * F * 4);

  const int64_t B = between(1, 3), H = between(1, 5), N = between(1, 40), V = between(1, 40), C = between(1, 90);
  const int64_t R = 2 * between(1, 9);
  std::vector<int64_t> edges{0};
  for (int64_t i = 0; i < B; ++i) edges.push_back(edges.back() + between(1, 100));
  const int64_t rows = edges.back() + 2;
  const Exact<float> kv_b = normals(H * (N + V) * C, 0.1f), q = normals(B * H * (N + R)),
                     cache = normals(rows * (C + R));
  const Exact<float> out(B * H * V), expected(B * H * V);
  const Exact<int64_t> slots(edges.back());
  for (int64_t i = 0; i < edges.back(); ++i) slots.data[i] = between(0, rows - 1);
  const Dense seen{cache.data, C + R, slots.data, false};
  dense_mla_step(target, kv_b.data, q.data, seen, edges.data(), 0.3f, out.data, B, H, N, V, C, R, 3);
  dense_mla_step(scalar, kv_b.data, q.data, seen, edges.data(), 0.3f, expected.data, B, H, N, V, C, R, 1);
  compare_bits("dense_mla_step", target.name, out.data, expected.data, B * H * V * 4);
}

static void packed_step(const Target& target, const Target& scalar, Format format) {
  const int64_t group = 8 * between(1, 4), N = group * between(1, 3), C = 32 * between(1, 3), V = between(1, 70);
  const int64_t B = between(1, 3), H = between(1, 6), R = 4 * between(1, 4);
  const Packed keys(format, C, N, group, H), values(format, V, C, 16, H);
  std::vector<int64_t> edges{0};
  for (int64_t b = 0; b < B; ++b) edges.push_back(edges.back() + between(1, 60));
  const Exact<float> q = normals(B * H * (N + R), 0.2f), found(B * H * V), expected(B * H * V);
  const Exact<uint16_t> cache(edges.back() * (C + R));
  const Exact<int64_t> slots(edges.back());
  for (int64_t i = 0; i < edges.back() * (C + R); ++i) cache.data[i] = bf16(normal());
  for (int64_t i = 0; i < edges.back(); ++i) slots.data[i] = edges.back() - 1 - i;
  mla_step(target, keys.shape, values.shape, q.data, cache.data, slots.data, edges.data(), 0.1f, found.data, B, H, R,
           3);
  mla_step(scalar, keys.shape, values.shape, q.data, cache.data, slots.data, edges.data(), 0.1f, expected.data, B, H, R,
           1);
  compare("mla_step", target.name, format, found.data, expected.data, B * H * V, 3e-2);
}

// The cache's rows end where the heap block does, and so does the last value.
static void packed_prompt(const Target& target, const Target& scalar, Format format) {
  const int64_t group = 8 * between(1, 4), C = group * between(1, 6), N = 4 * between(1, 9), V = 32 * between(1, 3);
  const int64_t H = between(1, 3), R = 4 * between(1, 4), T = between(1, 150), S = T + between(0, 300);
  const Packed keys(format, N, C, group, H), values(format, V, C, group, H);
  const Exact<float> q = normals(T * H * (N + R), 0.2f), found(T * H * V), expected(T * H * V);
  const Exact<uint16_t> cache(S * (C + R));
  const Exact<int64_t> slots(S);
  for (int64_t i = 0; i < S * (C + R); ++i) cache.data[i] = bf16(normal());
  for (int64_t i = 0; i < S; ++i) slots.data[i] = S - 1 - i;
  mla_prefill(target, keys.shape, values.shape, q.data, cache.data, slots.data, 0.1f, found.data, T, S, H, R, 3);
  mla_prefill(scalar, keys.shape, values.shape, q.data, cache.data, slots.data, 0.1f, expected.data, T, S, H, R, 1);
  compare("mla_prefill", target.name, format, found.data, expected.data, T * H * V, 3e-2);
}

// From every kind of source to this format, from an address that is a multiple of nothing; the last row and column end
// where the heap block does.
static void packing(const Target& target, const Target& scalar, Format format) {
  const bool grouped = format == Format::kInt8 || format == Format::kInt4;
  const int64_t group = 8 * between(1, 20), inputs = grouped ? group * between(1, 4) : between(1, 400);
  const int64_t outputs = between(1, 300), blocks = ((outputs + 127) / 128) * ((inputs + 127) / 128);
  for (const Numbers::Type type : {Numbers::kFloat32, Numbers::kBf16, Numbers::kBlockFp8}) {
    const int64_t bytes = type == Numbers::kFloat32 ? 4 : type == Numbers::kBf16 ? 2 : 1, skip = between(0, 3);
    const Exact<uint8_t> data(outputs * inputs * bytes + skip);
    const Exact<float> factors(blocks);
    for (int64_t b = 0; b < blocks; ++b) factors.data[b] = std::abs(normal());
    for (int64_t i = 0; i < outputs * inputs; ++i) {
      uint8_t* to = data.data + skip + i * bytes;
      const float value = normal();
      const uint16_t half = bf16(value);
      const uint8_t code = static_cast<uint8_t>(rng()) & 0xF7;  // no NaN
      std::memcpy(to,
                  bytes == 4   ? static_cast<const void*>(&value)
                  : bytes == 2 ? static_cast<const void*>(&half)
                               : &code,
                  bytes);
    }
    Packed found(format, outputs, inputs, group, 1), expected(format, outputs, inputs, group, 1);
    const Numbers from{type, data.data + skip, type == Numbers::kBlockFp8 ? factors.data : nullptr};
    const bool good =
        pack(target, from, found.shape, found.data.data, found.scales.data, static_cast<int>(between(1, 4)));
    const bool right = pack(scalar, from, expected.shape, expected.data.data, expected.scales.data, 1);
    const int64_t data_bytes = panels(found.shape) * panel_bytes(found.shape);
    const int64_t scale_bytes = panels(found.shape) * panel_scale_bytes(found.shape);
    if (good && right && std::memcmp(found.data.data, expected.data.data, data_bytes) == 0 &&
        std::memcmp(found.scales.data, expected.scales.data, scale_bytes) == 0)
      continue;
    std::printf("pack, %s, source %d, format %d, %ld x %ld: other bits than scalar\n", target.name, type,
                static_cast<int>(format), static_cast<long>(outputs), static_cast<long>(inputs));
    ++failures;
  }
}

int main(int count, char** words) {
  const int rounds = count > 1 ? std::atoi(words[1]) : 20;
  const Target& scalar = target("scalar");
  const std::vector<std::string> names = targets();
  for (size_t index = names.size() > 1 ? 1 : 0; index < names.size(); ++index) {  // the scalar one runs beside each
    const Target& tested = target(names[index]);
    for (int round = 0; round < rounds; ++round) {
      for (const Format format : {Format::kBf16, Format::kFp8, Format::kInt8, Format::kInt4}) {
        products(tested, scalar, format);
        heads(tested, scalar, format);
        mixtures(tested, scalar, format);
        packed_step(tested, scalar, format);
        packed_prompt(tested, scalar, format);
        packing(tested, scalar, format);
      }
      attention(tested, scalar);
      routing(tested, scalar);
      norms(tested, scalar);
      plain_steps(tested, scalar);
    }
    std::printf("%s: %d rounds\n", tested.name, rounds);
  }
  failures += check_reading(rounds);
  return failures > 0;
}
