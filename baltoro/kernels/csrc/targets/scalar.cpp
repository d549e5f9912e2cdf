// Plain C++: any CPU. The reference that the other targets are read against.
#include "../kernels.h"

namespace baltoro::scalar {

struct F16 {
  float v[kPanel];

  static F16 set(float value) {
    F16 all;
    for (float& each : all.v) each = value;
    return all;
  }
  static F16 load(const float* from) {
    F16 all;
    __builtin_memcpy(all.v, from, sizeof all.v);
    return all;
  }
  static F16 load_bf16(const uint16_t* from) {
    F16 all;
    for (int o = 0; o < kPanel; ++o) all.v[o] = widened(from[o]);
    return all;
  }
  static void store(float* to, const F16& values) { __builtin_memcpy(to, values.v, sizeof values.v); }

  static float widened(uint16_t bf16) {
    const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
};

template <class Function>
static inline F16 each(const F16& a, const F16& b, Function f) {
  F16 all;
  for (int o = 0; o < kPanel; ++o) all.v[o] = f(a.v[o], b.v[o]);
  return all;
}

static inline F16 operator+(const F16& a, const F16& b) {
  return each(a, b, [](float x, float y) { return x + y; });
}
static inline F16 operator-(const F16& a, const F16& b) {
  return each(a, b, [](float x, float y) { return x - y; });
}
static inline F16 operator*(const F16& a, const F16& b) {
  return each(a, b, [](float x, float y) { return x * y; });
}
static inline F16 operator/(const F16& a, const F16& b) {
  return each(a, b, [](float x, float y) { return x / y; });
}
static inline F16 min(const F16& a, const F16& b) {  // b where one is a NaN, as on x86
  return each(a, b, [](float x, float y) { return x < y ? x : y; });
}
static inline F16 max(const F16& a, const F16& b) {
  return each(a, b, [](float x, float y) { return x > y ? x : y; });
}

struct I16 {
  int32_t v[kPanel];

  static I16 set(int32_t value) {
    I16 all;
    for (int32_t& each : all.v) each = value;
    return all;
  }
  static I16 zero() { return set(0); }
};

static inline I16 operator+(I16 x, const I16& y) {
  for (int o = 0; o < kPanel; ++o) x.v[o] += y.v[o];
  return x;
}
static inline F16 to_float(const I16& x) {
  F16 all;
  for (int o = 0; o < kPanel; ++o) all.v[o] = static_cast<float>(x.v[o]);
  return all;
}
static inline I16 nearest(const F16& x) {  // of less than 2^22: adding 1.5 * 2^23 rounds, halves to even
  I16 all;
  for (int o = 0; o < kPanel; ++o) all.v[o] = static_cast<int32_t>((x.v[o] + 12582912.0f) - 12582912.0f);
  return all;
}
static inline F16 power_of_two(const I16& n) {
  F16 all;
  for (int o = 0; o < kPanel; ++o) {
    const uint32_t bits = static_cast<uint32_t>(n.v[o] + 127) << 23;
    __builtin_memcpy(&all.v[o], &bits, 4);
  }
  return all;
}

struct Bytes {
  uint8_t v[64];

  static Bytes load(const uint8_t* from) {
    Bytes all;
    __builtin_memcpy(all.v, from, 64);
    return all;
  }
};

static inline Bytes low_halves(Bytes w) {
  for (uint8_t& byte : w.v) byte &= 15;
  return w;
}
static inline Bytes high_halves(Bytes w) {
  for (uint8_t& byte : w.v) byte >>= 4;
  return w;
}
static inline Bytes either(Bytes a, const Bytes& b) {
  for (int i = 0; i < 64; ++i) a.v[i] |= b.v[i];
  return a;
}
static inline uint32_t folded(const Bytes& b) {
  uint32_t all = 0;
  for (uint8_t byte : b.v) all |= byte;
  return all;
}
static inline void prefetch(const uint8_t* from) { __builtin_prefetch(from); }
static inline void prefetch_far(const uint8_t* from) { prefetch(from); }
static constexpr bool kReadsAhead = false;

static constexpr int32_t kInt8Offset = 128;

static inline I16 dot_int8(I16 sum, const Bytes& w, const int8_t* x) {
  for (int o = 0; o < kPanel; ++o)
    for (int i = 0; i < 4; ++i) sum.v[o] += w.v[4 * o + i] * x[i];
  return sum;
}
static inline I16 dot_int4(I16 sum, const Bytes& w, const int8_t* x) { return dot_int8(sum, w, x); }

using Int4Sum = I16;
static constexpr int64_t kInt4Run = 0;

struct Pairs {
  float v[4][kPanel];
};

static inline Pairs pairs_bf16(const uint8_t* from) {
  Pairs all;
  for (int i = 0; i < 4; ++i)
    for (int o = 0; o < kPanel; ++o) {
      uint16_t bf16;
      __builtin_memcpy(&bf16, from + i / 2 * 64 + o * 4 + i % 2 * 2, 2);
      all.v[i][o] = F16::widened(bf16);
    }
  return all;
}

// e4m3fn has 4 exponent bits of bias 7 and 3 mantissa bits, no infinity, and one NaN per sign (S.1111.111).
struct Decoded {
  float value[256];
};

static constexpr Decoded decode_all() {
  Decoded table{};
  for (int byte = 0; byte < 256; ++byte) {
    const int exponent = byte >> 3 & 15, mantissa = byte & 7;
    float value = exponent == 0 ? static_cast<float>(mantissa) : static_cast<float>(8 + mantissa);
    for (int e = exponent == 0 ? 1 : exponent; e < 10; ++e) value *= 0.5f;  // value is in units of 2^(e - 10)
    for (int e = exponent; e > 10; --e) value *= 2.0f;
    if (exponent == 15 && mantissa == 7) value = __builtin_nanf("");
    table.value[byte] = byte & 0x80 ? -value : value;
  }
  return table;
}

static constexpr Decoded kDecoded = decode_all();

static inline Pairs pairs_fp8(const uint8_t* from) {
  Pairs all;
  for (int i = 0; i < 4; ++i)
    for (int o = 0; o < kPanel; ++o) all.v[i][o] = kDecoded.value[from[o / 4 * 16 + i / 2 * 8 + o % 4 * 2 + i % 2]];
  return all;
}

static inline F16 dot_four(F16 sum, const Pairs& w, const uint16_t* x) {
  for (int i = 0; i < 4; ++i) {
    const float input = F16::widened(x[i]);
    for (int o = 0; o < kPanel; ++o) sum.v[o] += w.v[i][o] * input;
  }
  return sum;
}

template <int T>
static inline void dot_pairs(F16 (&sum)[T], const Pairs& w, const uint16_t* const (&x)[T], int64_t at) {
  for (int t = 0; t < T; ++t) sum[t] = dot_four(sum[t], w, x[t] + at);
}
template <class Weights, int P, int T>
static inline void dot_panels(F16 (&sum)[P][T], const uint8_t* const (&from)[P], const uint16_t* const (&x)[T],
                              int64_t at) {
  for (int p = 0; p < P; ++p) dot_pairs(sum[p], Weights::load(from[p]), x, at);
}

struct Fp8Mode {
  Fp8Mode() {}
};

struct Rows {
  const uint16_t *first, *second;
};

static inline Rows two_rows(const uint16_t* a, const uint16_t* b) { return {a, b}; }
static inline void dot_rows(F16 (&sum)[2], Rows rows, const uint16_t* pair) {
  const float first = F16::widened(pair[0]), second = F16::widened(pair[1]);
  for (int c = 0; c < 2 * kPanel; ++c) {
    float& to = sum[c / kPanel].v[c % kPanel];
    to += F16::widened(rows.first[c]) * first;
    to += F16::widened(rows.second[c]) * second;
  }
}
static inline void in_order(F16 (&)[2]) {}
static inline uint16_t nearest_bf16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
static inline void store_pairs(uint16_t* to, const F16& first, const F16& second) {
  for (int o = 0; o < kPanel; ++o) {
    to[2 * o] = nearest_bf16(first.v[o]);
    to[2 * o + 1] = nearest_bf16(second.v[o]);
  }
}

// What roofs are measured with: products an output of one instruction, and sums that fit into the registers
static inline I16 densest_int8(I16 sum, const Bytes& w, const int8_t* x) { return dot_int8(sum, w, x); }
static inline F16 densest_floats(const F16& sum, const F16& a, const F16& b) { return sum + a * b; }
static constexpr int kDensestInts = 4, kDensestFloats = 1, kRoofSums = 4;

static constexpr int kTokens = 4, kPairTokens = 4;
static constexpr int kQueries = 4;

#include "../attention.inl"
#include "../dense.inl"
#include "../pack.inl"
#include "../roof.inl"

extern const Target kernels = {"scalar",   1,        prepare,   product,  gated,     weighted,
                               round_rows, nullptr,  attend,    pack,     read_all,  multiply,
                               dots,       mix_rows, normalize, sigmoids, gate_rows, softmax};

}  // namespace baltoro::scalar
