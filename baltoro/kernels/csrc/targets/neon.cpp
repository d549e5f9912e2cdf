// Arm with NEON and its dot products: Apple M1, Graviton 2, Neoverse N1 and later.
#include <arm_neon.h>

#include "../kernels.h"

namespace baltoro::neon {

struct F16 {
  float32x4_t v[4];

  static F16 set(float value) {
    const float32x4_t all = vdupq_n_f32(value);
    return {{all, all, all, all}};
  }
  static F16 load(const float* from) {
    return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
  }
  static F16 load_bf16(const uint16_t* from) {
    F16 all;
    for (int i = 0; i < 4; ++i) all.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from + 4 * i), 16));
    return all;
  }
  static void store(float* to, F16 values) {
    for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, values.v[i]);
  }
};

static inline F16 operator+(F16 a, F16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vaddq_f32(a.v[i], b.v[i]);
  return a;
}
static inline F16 operator-(F16 a, F16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vsubq_f32(a.v[i], b.v[i]);
  return a;
}
static inline F16 operator*(F16 a, F16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vmulq_f32(a.v[i], b.v[i]);
  return a;
}
static inline F16 operator/(F16 a, F16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vdivq_f32(a.v[i], b.v[i]);
  return a;
}
static inline F16 min(F16 a, F16 b) {  // a NaN on either side stays one
  for (int i = 0; i < 4; ++i) a.v[i] = vminq_f32(a.v[i], b.v[i]);
  return a;
}
static inline F16 max(F16 a, F16 b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vmaxq_f32(a.v[i], b.v[i]);
  return a;
}

struct I16 {
  int32x4_t v[4];

  static I16 set(int32_t value) {
    const int32x4_t all = vdupq_n_s32(value);
    return {{all, all, all, all}};
  }
  static I16 zero() { return set(0); }
};

static inline I16 operator+(I16 x, I16 y) {
  for (int i = 0; i < 4; ++i) x.v[i] = vaddq_s32(x.v[i], y.v[i]);
  return x;
}
static inline F16 to_float(I16 x) {
  F16 all;
  for (int i = 0; i < 4; ++i) all.v[i] = vcvtq_f32_s32(x.v[i]);
  return all;
}
static inline I16 nearest(F16 x) {
  I16 all;
  for (int i = 0; i < 4; ++i) all.v[i] = vcvtnq_s32_f32(x.v[i]);
  return all;
}
static inline F16 power_of_two(I16 n) {
  F16 all;
  for (int i = 0; i < 4; ++i) all.v[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23));
  return all;
}

struct Bytes {
  uint8x16_t v[4];  // four outputs each

  static Bytes load(const uint8_t* from) {
    return {{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
  }
};

static inline Bytes low_halves(Bytes w) {
  for (uint8x16_t& part : w.v) part = vandq_u8(part, vdupq_n_u8(15));
  return w;
}
static inline Bytes high_halves(Bytes w) {
  for (uint8x16_t& part : w.v) part = vshrq_n_u8(part, 4);
  return w;
}
static inline Bytes either(Bytes a, Bytes b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vorrq_u8(a.v[i], b.v[i]);
  return a;
}
static inline uint32_t folded(Bytes b) {
  return vmaxvq_u8(vorrq_u8(vorrq_u8(b.v[0], b.v[1]), vorrq_u8(b.v[2], b.v[3])));
}
static inline void prefetch(const uint8_t* from) { __builtin_prefetch(from); }
static inline void prefetch_far(const uint8_t* from) { prefetch(from); }
static constexpr bool kReadsAhead = false;

static constexpr int32_t kInt8Offset = 0;  // the dot product is signed on both sides

static inline int8x16_t four_bytes(const int8_t* from) {
  int32_t value;
  __builtin_memcpy(&value, from, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(value));
}
static inline I16 dot_int4(I16 sum, Bytes w, const int8_t* x) {
  const int8x16_t inputs = four_bytes(x);
  for (int i = 0; i < 4; ++i) sum.v[i] = vdotq_s32(sum.v[i], vreinterpretq_s8_u8(w.v[i]), inputs);
  return sum;
}
static inline I16 dot_int8(I16 sum, Bytes w, const int8_t* x) {
  for (uint8x16_t& part : w.v) part = veorq_u8(part, vdupq_n_u8(0x80));
  return dot_int4(sum, w, x);
}

static inline float32x4_t first_floats(uint32x4_t pairs) { return vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16)); }
static inline float32x4_t second_floats(uint32x4_t pairs) {
  return vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xFFFF0000)));
}
static inline float widened(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

using Int4Sum = I16;
static constexpr int64_t kInt4Run = 0;

struct Pairs {
  uint32x4_t first[4], second[4];  // bf16 inputs 0 and 1 of four outputs each, inputs 2 and 3
};

static inline Pairs pairs_bf16(const uint8_t* from) {
  const Bytes first = Bytes::load(from), second = Bytes::load(from + 64);
  Pairs all;
  for (int i = 0; i < 4; ++i) {
    all.first[i] = vreinterpretq_u32_u8(first.v[i]);
    all.second[i] = vreinterpretq_u32_u8(second.v[i]);
  }
  return all;
}

// e4m3 bytes to bf16 through half floats and floats, all exactly, as in avx2.cpp.
static inline uint32x4_t pairs_of(uint8x8_t bytes) {
  const int16x8_t wide = vshlq_n_s16(vmovl_s8(vreinterpret_s8_u8(bytes)), 7);
  const uint16x8_t half = vandq_u16(vreinterpretq_u16_s16(wide), vdupq_n_u16(0xBF80));
  const uint16x8_t ones = vdupq_n_u16(0x3F80);
  const float16x8_t made = vreinterpretq_f16_u16(vorrq_u16(half, vceqq_u16(vandq_u16(half, ones), ones)));
  const float32x4_t low = vmulq_n_f32(vcvt_f32_f16(vget_low_f16(made)), 256.0f);
  const float32x4_t high = vmulq_n_f32(vcvt_f32_f16(vget_high_f16(made)), 256.0f);
  return vreinterpretq_u32_u16(vuzp2q_u16(vreinterpretq_u16_f32(low), vreinterpretq_u16_f32(high)));
}

static inline Pairs pairs_fp8(const uint8_t* from) {
  Pairs all;
  for (int i = 0; i < 4; ++i) {
    all.first[i] = pairs_of(vld1_u8(from + 16 * i));
    all.second[i] = pairs_of(vld1_u8(from + 16 * i + 8));
  }
  return all;
}

static inline F16 dot_four(F16 sum, const Pairs& w, const uint16_t* x) {
  for (int i = 0; i < 4; ++i) {
    sum.v[i] = vfmaq_n_f32(sum.v[i], first_floats(w.first[i]), widened(x[0]));
    sum.v[i] = vfmaq_n_f32(sum.v[i], second_floats(w.first[i]), widened(x[1]));
    sum.v[i] = vfmaq_n_f32(sum.v[i], first_floats(w.second[i]), widened(x[2]));
    sum.v[i] = vfmaq_n_f32(sum.v[i], second_floats(w.second[i]), widened(x[3]));
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
  uint32x4_t even[4], odd[4];  // columns 8 i .. 8 i + 3 of both rows in turn, and the next four
};

static inline Rows two_rows(const uint16_t* a, const uint16_t* b) {
  Rows rows;
  for (int i = 0; i < 4; ++i) {
    const uint16x8_t first = vld1q_u16(a + 8 * i), second = vld1q_u16(b + 8 * i);
    rows.even[i] = vreinterpretq_u32_u16(vzip1q_u16(first, second));
    rows.odd[i] = vreinterpretq_u32_u16(vzip2q_u16(first, second));
  }
  return rows;
}
static inline void dot_rows(F16 (&sum)[2], const Rows& rows, const uint16_t* pair) {
  const float first = widened(pair[0]), second = widened(pair[1]);
  for (int i = 0; i < 4; ++i) {
    sum[0].v[i] = vfmaq_n_f32(sum[0].v[i], first_floats(rows.even[i]), first);
    sum[0].v[i] = vfmaq_n_f32(sum[0].v[i], second_floats(rows.even[i]), second);
    sum[1].v[i] = vfmaq_n_f32(sum[1].v[i], first_floats(rows.odd[i]), first);
    sum[1].v[i] = vfmaq_n_f32(sum[1].v[i], second_floats(rows.odd[i]), second);
  }
}
static inline void in_order(F16 (&sum)[2]) {
  const F16 even = sum[0], odd = sum[1];
  sum[0] = {{even.v[0], odd.v[0], even.v[1], odd.v[1]}};
  sum[1] = {{even.v[2], odd.v[2], even.v[3], odd.v[3]}};
}
static inline uint32x4_t rounded(float32x4_t x) {  // of numbers that are no NaNs, to bf16 in the upper halves
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  return vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1)));
}
static inline void store_pairs(uint16_t* to, F16 first, F16 second) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t upper = vandq_u32(rounded(second.v[i]), vdupq_n_u32(0xFFFF0000));
    vst1q_u16(to + 8 * i, vreinterpretq_u16_u32(vorrq_u32(vshrq_n_u32(rounded(first.v[i]), 16), upper)));
  }
}

// What roofs are measured with: products an output of one instruction, and sums that fit into the registers
static inline I16 densest_int8(I16 sum, Bytes w, const int8_t* x) { return dot_int4(sum, w, x); }
static inline F16 densest_floats(F16 sum, F16 a, F16 b) {
  for (int i = 0; i < 4; ++i) sum.v[i] = vfmaq_f32(sum.v[i], a.v[i], b.v[i]);
  return sum;
}
static constexpr int kDensestInts = 4, kDensestFloats = 1, kRoofSums = 6;

static constexpr int kTokens = 2, kPairTokens = 2;  // 16 of 32 registers for sums
static constexpr int kQueries = 2;

#include "../attention.inl"
#include "../dense.inl"
#include "../pack.inl"
#include "../roof.inl"

extern const Target kernels = {"neon",     1,        prepare,   product,  gated,     weighted,
                               round_rows, nullptr,  attend,    pack,     read_all,  multiply,
                               dots,       mix_rows, normalize, sigmoids, gate_rows, softmax};

}  // namespace baltoro::neon
