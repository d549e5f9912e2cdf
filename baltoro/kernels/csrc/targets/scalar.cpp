// Plain C++: any CPU. The reference that the other targets are read against.
#include <limits>

#include "../kernels.h"

namespace baltoro::scalar {

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
    if (exponent == 15 && mantissa == 7) value = std::numeric_limits<float>::quiet_NaN();
    table.value[byte] = byte & 0x80 ? -value : value;
  }
  return table;
}

static constexpr Decoded kDecoded = decode_all();

struct Vec {
  static constexpr int lanes = 1;
  float v;

  static Vec zero() { return {0.0f}; }
  static Vec load(const float* from) { return {*from}; }
  static Vec decode(const uint8_t* from) { return {kDecoded.value[*from]}; }
  static Vec scaled(Vec w, float scale) { return {w.v * scale}; }
  static Vec fma(Vec a, Vec b, Vec sum) { return {a.v * b.v + sum.v}; }
  static float total(Vec sum) { return sum.v; }
};

static constexpr int kTokens = 4;

#include "../matmul.inl"

extern const Target kernels = {"scalar", matmul_fp8};

}  // namespace baltoro::scalar
