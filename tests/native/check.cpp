// Every kernel of every target that runs here against the scalar one, on random shapes, from buffers that are exactly
// as large as the contract says: built with the sanitizers, a byte too far is an error. `make check-native` runs it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

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
  Exact(const Exact&) = delete;
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
        packing(tested, scalar, format);
      }
      attention(tested, scalar);
    }
    std::printf("%s: %d rounds\n", tested.name, rounds);
  }
  failures += check_reading(rounds);
  return failures > 0;
}
