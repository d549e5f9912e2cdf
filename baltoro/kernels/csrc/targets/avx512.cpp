// AVX-512 F, BW, VL and DQ: Skylake-X, Zen 4 and later.
#include <immintrin.h>

#include "../kernels.h"

namespace baltoro::avx512 {

struct Vec {
  static constexpr int lanes = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }

  // Through half floats, as in avx2.cpp.
  static Vec decode(const uint8_t* from) {
    const __m256i bytes = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(bytes, 7), _mm256_set1_epi16(static_cast<short>(0xBF80)));
    const __m256i magnitude = _mm256_and_si256(half, _mm256_set1_epi16(0x3F80));
    const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3F80));
    return {_mm512_cvtph_ps(_mm256_or_si256(half, nan))};
  }

  static Vec scaled(Vec w, float scale) { return {_mm512_mul_ps(w.v, _mm512_set1_ps(scale * 256.0f))}; }
  static Vec fma(Vec a, Vec b, Vec sum) { return {_mm512_fmadd_ps(a.v, b.v, sum.v)}; }
  static float total(Vec sum) { return _mm512_reduce_add_ps(sum.v); }
};

static constexpr int kTokens = 4;  // 4 rows x 4 tokens of sums, 4 weights, 1 input: 21 of 32 registers

#include "../matmul.inl"

extern const Target kernels = {"avx512", matmul_fp8};

}  // namespace baltoro::avx512
