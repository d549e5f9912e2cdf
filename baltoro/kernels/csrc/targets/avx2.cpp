// AVX2 with FMA and F16C: x86-64 since 2013.
#include <immintrin.h>

#include "../kernels.h"

namespace baltoro::avx2 {

struct Vec {
  static constexpr int lanes = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec load(const float* from) { return {_mm256_loadu_ps(from)}; }

  // Eight e4m3 bytes become half floats and those become floats, all exactly. With its exponent and mantissa moved
  // up by seven bits an e4m3 number is the half float that is 2^8 times smaller (bias 15 instead of 7), subnormals
  // included; `scaled` makes up for the 2^8. The conversion ignores denormals-are-zero, which torch can switch on.
  static Vec decode(const uint8_t* from) {
    const __m128i bytes = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const __m128i half = _mm_and_si128(_mm_slli_epi16(bytes, 7), _mm_set1_epi16(static_cast<short>(0xBF80)));
    const __m128i magnitude = _mm_and_si128(half, _mm_set1_epi16(0x3F80));
    const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x3F80));  // S.1111.111 is a NaN, not 480
    return {_mm256_cvtph_ps(_mm_or_si128(half, nan))};
  }

  static Vec scaled(Vec w, float scale) { return {_mm256_mul_ps(w.v, _mm256_set1_ps(scale * 256.0f))}; }
  static Vec fma(Vec a, Vec b, Vec sum) { return {_mm256_fmadd_ps(a.v, b.v, sum.v)}; }

  static float total(Vec sum) {
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(sum.v), _mm256_extractf128_ps(sum.v, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }
};

static constexpr int kTokens = 2;  // 4 rows x 2 tokens of sums, 4 weights, 1 input: 13 of 16 registers

#include "../matmul.inl"

extern const Target kernels = {"avx2", matmul_fp8};

}  // namespace baltoro::avx2
