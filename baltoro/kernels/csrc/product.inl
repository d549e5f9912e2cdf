// Products of packed matrices, written once. A target file defines in its own namespace, before including this,
//
//   Bytes   64 bytes of weights      load(const uint8_t*)  low_halves(b)  high_halves(b)
//   prefetch(const uint8_t*)         prefetch_far(const uint8_t*): what comes long after a first cache has lost it
//   kReadsAhead                      whether the CPU by itself asks for integer weights soon enough
//   I16     16 int32                 set(int32_t)
//   F16     16 floats                set(float)  load(const float*)  load_bf16(const uint16_t*)  store(float*, v)
//           + - * /  min  max        to_float(I16)  nearest(F16) -> I16  power_of_two(I16) -> F16
//   kInt8Offset                      what dot_int8 leaves added to each weight: 128 or 0
//   dot_int8(I16, Bytes, const int8_t* x)   plus 4 products an output
//   dot_int4(Int4Sum, Bytes, const int8_t* x)   the same for halves, 0 .. 15
//   Int4Sum                          I16, or sums of at most kInt4Run inputs: zero()  operator+(I16, Int4Sum)
//   pairs_bf16(const uint8_t*)       4 inputs of 16 outputs, as is pairs_fp8(const uint8_t*)
//   dot_panels<Weights>(F16 (&sum)[P][T], const uint8_t* const (&)[P], const uint16_t* const (&x)[T], at)
//                                    plus 4 products an output, of T tokens
//   Fp8Mode                          lives while fp8 weights are multiplied
//   kTokens                          tokens of a tile
//   kPairTokens                      up to so many, two panels' sums fit into the registers
//   BALTORO_TILES                    where more tokens go through tiles.inl
//
// Everything is `static` or in that namespace, and no standard header's inline functions are used: the linker could
// otherwise pick an AVX-512 copy of one for the scalar target.

static constexpr int64_t kAhead = 6144;  // bytes that are asked for before they are needed, at least

// --- activations -----------------------------------------------------------------------------------------------

static uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

static float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

static uint16_t rounded_to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // a NaN stays one
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static void round_rows(const float* from, int64_t stride, int64_t rows, int64_t columns, uint16_t* to,
                       int64_t to_stride) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0; c < columns; ++c) to[row * to_stride + c] = rounded_to_bf16(from[row * stride + c]);
}

static void prepare_floats(int64_t inputs, int64_t padded, const float* x, uint16_t* values) {
  for (int64_t i = 0; i < inputs; ++i) values[i] = rounded_to_bf16(x[i]);
  for (int64_t i = inputs; i < padded; ++i) values[i] = 0;
}

// The largest of a group becomes 127. It is found among the bit patterns: there a NaN is larger than all numbers, so
// that it reaches the scale and from there every result.
static void prepare_bytes(int64_t inputs, int64_t group, int32_t offset, const float* x, int8_t* values, float* scales,
                          int32_t* starts) {
  for (int64_t g = 0; g < inputs / group; ++g) {
    const float* from = x + g * group;
    uint32_t largest = 0;
    for (int64_t i = 0; i < group; ++i) {
      const uint32_t magnitude = bits_of(from[i]) & 0x7FFFFFFF;
      largest = magnitude > largest ? magnitude : largest;
    }
    const float peak = float_of(largest);
    scales[g] = peak * (1.0f / 127.0f);
    const float inverse = peak < 7.9e-31f ? 0.0f : 127.0f / peak;  // 2^-100: what is so small is as good as zero
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, halves to even
    int32_t sum = 0;
    for (int64_t i = 0; i < group; ++i) {
      const int32_t value = static_cast<int32_t>(bits_of(from[i] * inverse + magic)) - 0x4B400000;
      const int8_t byte = static_cast<int8_t>(value < -127 ? -127 : value > 127 ? 127 : value);
      values[g * group + i] = byte;
      sum += byte;
    }
    starts[g] = -offset * sum;
  }
}

static void prepare(const Matrix& w, const float* x, const Inputs& to, int64_t row) {
  uint8_t* values = to.values + row * to.row_bytes;
  if (is_integer(w))
    prepare_bytes(w.inputs, w.group, w.format == Format::kInt8 ? kInt8Offset : 8, x, reinterpret_cast<int8_t*>(values),
                  to.scales + row * to.groups, to.starts + row * to.groups);
  else
    prepare_floats(w.inputs, to.row_bytes / 2, x, reinterpret_cast<uint16_t*>(values));
}

// --- formats ---------------------------------------------------------------------------------------------------

struct Integers {};  // which of the two tiles below a format goes through
struct Floats {};

struct Int8 {
  using Tile = Integers;
  using Sum = I16;
  static constexpr int inputs = 4;   // a chunk
  static constexpr int64_t run = 0;  // inputs that a Sum holds; 0: any number
  static constexpr int32_t offset = kInt8Offset;
  Bytes weights;

  static Int8 load(const uint8_t* from) { return {Bytes::load(from)}; }
  I16 dot(I16 sum, const int8_t* x) const { return dot_int8(sum, weights, x); }
};

struct Int4 {
  using Tile = Integers;
  using Sum = Int4Sum;
  static constexpr int inputs = 8;
  static constexpr int64_t run = kInt4Run;
  static constexpr int32_t offset = 8;
  Bytes low, high;

  static Int4 load(const uint8_t* from) {
    const Bytes both = Bytes::load(from);
    return {low_halves(both), high_halves(both)};
  }
  Sum dot(Sum sum, const int8_t* x) const { return dot_int4(dot_int4(sum, low, x), high, x + 4); }
};

struct Fp8 {
  using Tile = Floats;
  static constexpr int bytes = 64;  // of four inputs
  static auto load(const uint8_t* from) { return pairs_fp8(from); }
};

struct Bf16 {
  using Tile = Floats;
  static constexpr int bytes = 128;
  static auto load(const uint8_t* from) { return pairs_bf16(from); }
};

struct ScatteredBf16 : Bf16 {};  // for tokens whose rows lie anywhere

// Where PANELS panels of weights begin, of one matrix or of gate and up, and what is asked for while they are read.
template <int PANELS>
struct Panels {
  const uint8_t* data[PANELS];
  const uint8_t* scales[PANELS];
  const uint8_t* ahead[PANELS];

  Panels<1> only(int p) const { return {{data[p]}, {scales[p]}, {ahead[p]}}; }
};

#ifdef BALTORO_TILES
#include "tiles.inl"
#else
struct TileMode {  // nothing to prepare
  TileMode(const Matrix&, const Inputs&) {}
};
#endif

// --- tiles: PANELS x TOKENS results in registers ---------------------------------------------------------------

// Adds up the inputs [begin, end) of a group.
template <class Weights, int PANELS, int TOKENS, class Sum>
static inline void dot_run(Panels<PANELS>& at, const int8_t* const (&values)[TOKENS], int64_t begin, int64_t end,
                           Sum (&dots)[PANELS][TOKENS]) {
  for (int64_t i = begin; i < end; i += Weights::inputs) {
    Weights weights[PANELS];
    for (int p = 0; p < PANELS; ++p) {
      prefetch(at.ahead[p]);
      weights[p] = Weights::load(at.data[p]);
      at.data[p] += 64, at.ahead[p] += 64;
    }
    for (int t = 0; t < TOKENS; ++t)
      for (int p = 0; p < PANELS; ++p) dots[p][t] = weights[p].dot(dots[p][t], values[t] + i);
  }
}

template <class Weights, int PANELS, int TOKENS>
static inline void tile(const Matrix& w, Panels<PANELS> at, const Inputs& x, const Token* tokens,
                        F16 (&sum)[PANELS][TOKENS], Integers) {
  const int8_t* values[TOKENS];
  const float* scales[TOKENS];
  const int32_t* starts[TOKENS];
  for (int t = 0; t < TOKENS; ++t) {
    const int64_t row = tokens[t].row;
    values[t] = reinterpret_cast<const int8_t*>(x.values) + row * x.row_bytes;
    scales[t] = x.scales + row * x.groups;
    starts[t] = x.starts + row * x.groups;
    for (int p = 0; p < PANELS; ++p) sum[p][t] = F16::set(0.0f);
  }
  for (int64_t g = 0; g < x.groups; ++g) {
    I16 dots[PANELS][TOKENS];
    for (int t = 0; t < TOKENS; ++t)
      for (int p = 0; p < PANELS; ++p) dots[p][t] = I16::set(Weights::offset ? starts[t][g] : 0);
    if constexpr (Weights::run == 0) {
      dot_run<Weights>(at, values, 0, w.group, dots);
    } else {
      for (int64_t begin = 0; begin < w.group; begin += Weights::run) {
        typename Weights::Sum part[PANELS][TOKENS];
        for (int t = 0; t < TOKENS; ++t)
          for (int p = 0; p < PANELS; ++p) part[p][t] = Weights::Sum::zero();
        dot_run<Weights>(at, values, begin, begin + Weights::run < w.group ? begin + Weights::run : w.group, part);
        for (int t = 0; t < TOKENS; ++t)
          for (int p = 0; p < PANELS; ++p) dots[p][t] = dots[p][t] + part[p][t];
      }
    }
    for (int p = 0; p < PANELS; ++p) {
      const F16 scale = F16::load_bf16(reinterpret_cast<const uint16_t*>(at.scales[p]));
      at.scales[p] += kPanel * 2;
      for (int t = 0; t < TOKENS; ++t) sum[p][t] = sum[p][t] + to_float(dots[p][t]) * (scale * F16::set(scales[t][g]));
    }
    for (int t = 0; t < TOKENS; ++t) values[t] += w.group;
  }
}

template <class Weights, int PANELS, int TOKENS>
static inline void tile(const Matrix& w, Panels<PANELS> at, const Inputs& x, const Token* tokens,
                        F16 (&sum)[PANELS][TOKENS], Floats) {
  const uint16_t* values[TOKENS];
  for (int t = 0; t < TOKENS; ++t) {
    values[t] = reinterpret_cast<const uint16_t*>(x.values + tokens[t].row * x.row_bytes);
    for (int p = 0; p < PANELS; ++p) sum[p][t] = F16::set(0.0f);
  }
  const int64_t padded = (w.inputs + 3) / 4 * 4, block = groups(w) > 0 ? w.group : padded;
  for (int64_t start = 0; start < padded; start += block) {
    const int64_t end = start + block < padded ? start + block : padded;
    F16 part[PANELS][TOKENS];
    for (int t = 0; t < TOKENS; ++t)
      for (int p = 0; p < PANELS; ++p) part[p][t] = F16::set(0.0f);
    for (int64_t i = start; i < end; i += 4) {
      for (int p = 0; p < PANELS; ++p)
        for (int line = 0; line < Weights::bytes; line += 64) prefetch_far(at.ahead[p] + line);
      dot_panels<Weights>(part, at.data, values, i);
      for (int p = 0; p < PANELS; ++p) at.data[p] += Weights::bytes, at.ahead[p] += Weights::bytes;
    }
    for (int p = 0; p < PANELS; ++p) {
      float scale = 1.0f;
      if (groups(w) > 0) {
        scale = *reinterpret_cast<const float*>(at.scales[p]);
        at.scales[p] += 4;
      }
      for (int t = 0; t < TOKENS; ++t) sum[p][t] = sum[p][t] + part[p][t] * F16::set(scale);
    }
  }
}

// --- what becomes of the results -------------------------------------------------------------------------------

static F16 exponential(F16 x) {  // 2 ulp: Cody and Waite's reduction, then a polynomial of degree 6 on -ln2/2 .. ln2/2
  x = min(F16::set(88.0f), max(F16::set(-87.0f), x));  // a NaN is the second operand, and stays
  const I16 whole = nearest(x * F16::set(1.44269504f));
  const F16 n = to_float(whole);
  const F16 r = x - n * F16::set(0.693359375f) - n * F16::set(-2.12194440e-4f);
  F16 p = F16::set(1.98756915e-4f);
  p = p * r + F16::set(1.39819995e-3f);
  p = p * r + F16::set(8.33345191e-3f);
  p = p * r + F16::set(4.16657959e-2f);
  p = p * r + F16::set(1.66666655e-1f);
  p = p * r + F16::set(5.00000012e-1f);
  return (p * r * r + r + F16::set(1.0f)) * power_of_two(whole);
}

static F16 silu(F16 x) { return x / (F16::set(1.0f) + exponential(F16::set(0.0f) - x)); }

static void store(float* to, F16 values, int64_t count) {
  if (count >= kPanel) return F16::store(to, values);
  float all[kPanel];
  F16::store(all, values);
  for (int64_t o = 0; o < count; ++o) to[o] = all[o];
}

static F16 stored(const float* from, int64_t count) {
  if (count >= kPanel) return F16::load(from);
  float all[kPanel] = {};
  for (int64_t o = 0; o < count; ++o) all[o] = from[o];
  return F16::load(all);
}

struct Replace {
  float* y;
  int64_t stride, outputs;

  template <int PANELS, int TOKENS>
  void operator()(const Token* tokens, int64_t panel, const F16 (&sum)[PANELS][TOKENS]) const {
    for (int t = 0; t < TOKENS; ++t)
      for (int p = 0; p < PANELS; ++p) {
        const int64_t o = (panel + p) * kPanel;
        store(y + tokens[t].out * stride + o, sum[p][t], outputs - o);
      }
  }
};

struct Add {
  float* y;
  int64_t stride, outputs;

  template <int PANELS, int TOKENS>
  void operator()(const Token* tokens, int64_t panel, const F16 (&sum)[PANELS][TOKENS]) const {
    for (int t = 0; t < TOKENS; ++t)
      for (int p = 0; p < PANELS; ++p) {
        const int64_t o = (panel + p) * kPanel;
        float* to = y + tokens[t].out * stride + o;
        store(to, stored(to, outputs - o) + F16::set(tokens[t].weight) * sum[p][t], outputs - o);
      }
  }
};

struct Gate {
  float* y;
  int64_t stride, outputs;

  template <int TOKENS>
  void operator()(const Token* tokens, int64_t panel, const F16 (&sum)[2][TOKENS]) const {
    const int64_t o = panel * kPanel;
    for (int t = 0; t < TOKENS; ++t) store(y + tokens[t].out * stride + o, silu(sum[0][t]) * sum[1][t], outputs - o);
  }
};

// --- all tokens of some panels ---------------------------------------------------------------------------------

template <class Weights, int PANELS, int TOKENS, class Then>
static void some_tokens(const Matrix& w, const Panels<PANELS>& at, int64_t panel, const Inputs& x, const Token* tokens,
                        const Then& then) {
  F16 sum[PANELS][TOKENS];
  if constexpr (PANELS == 1 || TOKENS <= kPairTokens) {
    tile<Weights, PANELS, TOKENS>(w, at, x, tokens, sum, typename Weights::Tile{});
  } else {
    for (int p = 0; p < PANELS; ++p) {
      F16 one[1][TOKENS];
      tile<Weights, 1, TOKENS>(w, at.only(p), x, tokens, one, typename Weights::Tile{});
      for (int t = 0; t < TOKENS; ++t) sum[p][t] = one[0][t];
    }
  }
  then(tokens, panel, sum);
}

template <class Weights, int PANELS, int TOKENS, class Then>
static void so_many_tokens(int64_t count, const Matrix& w, const Panels<PANELS>& at, int64_t panel, const Inputs& x,
                           const Token* tokens, const Then& then) {
  if (count == TOKENS) return some_tokens<Weights, PANELS, TOKENS>(w, at, panel, x, tokens, then);
  if constexpr (TOKENS > 1) so_many_tokens<Weights, PANELS, TOKENS - 1>(count, w, at, panel, x, tokens, then);
}

// In tiles that are as even as can be: 7 tokens as 4 and 3, since a tile of one costs much more than a sixth of one of
// six.
template <class Weights, int PANELS, class Then>
static void all_tokens(const Matrix& w, const Panels<PANELS>& at, int64_t panel, const Inputs& x, const Token* tokens,
                       int64_t count, const Then& then) {
#ifdef BALTORO_TILES
  if (in_tiles<Weights>(x)) return tiled_tokens<Weights>(w, at, panel, x, tokens, count, then);
#endif
  for (int64_t tiles = (count + kTokens - 1) / kTokens; tiles > 0; --tiles) {
    const int64_t now = (count + tiles - 1) / tiles;
    so_many_tokens<Weights, PANELS, kTokens>(now, w, at, panel, x, tokens, then);
    tokens += now, count -= now;
  }
}

static const uint8_t* panel_data(const Matrix& w, int64_t panel) { return w.data + panel * panel_bytes(w); }

static const uint8_t* panel_scales(const Matrix& w, int64_t panel) {
  return groups(w) > 0 ? w.scales + panel * panel_scale_bytes(w) : w.scales;
}

// What to ask for while panel p of [begin, end) is read: the panel that comes some kilobytes later, there or at `next`.
// Asking again for what is being read costs nothing.
static const uint8_t* ahead_of(const Matrix& w, int64_t p, int64_t step, int64_t end, const uint8_t* next) {
  if (kReadsAhead && is_integer(w)) return panel_data(w, p);
  const int64_t bytes = panel_bytes(w), ahead = p + (kAhead + step * bytes - 1) / (step * bytes) * step;
  if (ahead < end) return panel_data(w, ahead);
  return next ? next + (ahead - end) * bytes : panel_data(w, p);
}

template <class Weights, class Then>
static void all_panels(const Matrix& w, const Inputs& x, const Token* tokens, int64_t count, int64_t begin, int64_t end,
                       const uint8_t* next, const Then& then) {
  int64_t p = begin;
  for (; p + 2 <= end; p += 2)
    all_tokens<Weights, 2>(w,
                           {{panel_data(w, p), panel_data(w, p + 1)},
                            {panel_scales(w, p), panel_scales(w, p + 1)},
                            {ahead_of(w, p, 2, end, next), ahead_of(w, p + 1, 2, end, next)}},
                           p, x, tokens, count, then);
  if (p < end)
    all_tokens<Weights, 1>(w, {{panel_data(w, p)}, {panel_scales(w, p)}, {ahead_of(w, p, 2, end, next)}}, p, x, tokens,
                           count, then);
}

template <class Then>
static void by_format(const Matrix& w, const Inputs& x, const Token* tokens, int64_t count, int64_t begin, int64_t end,
                      const uint8_t* next, const Then& then) {
  const TileMode tiles(w, x);
  switch (w.format) {
    case Format::kBf16:
      return all_panels<Bf16>(w, x, tokens, count, begin, end, next, then);
    case Format::kFp8: {
      const Fp8Mode mode;
      return all_panels<Fp8>(w, x, tokens, count, begin, end, next, then);
    }
    case Format::kInt8:
      return all_panels<Int8>(w, x, tokens, count, begin, end, next, then);
    case Format::kInt4:
      return all_panels<Int4>(w, x, tokens, count, begin, end, next, then);
  }
}

static void product(const Matrix& w, const Inputs& x, const Token* tokens, int64_t count, int64_t begin, int64_t end,
                    const uint8_t* next, float* y, int64_t stride) {
  by_format(w, x, tokens, count, begin, end, next, Replace{y, stride, w.outputs});
}

static void weighted(const Matrix& w, const Inputs& x, const Token* tokens, int64_t count, int64_t begin, int64_t end,
                     const uint8_t* next, float* y, int64_t stride) {
  by_format(w, x, tokens, count, begin, end, next, Add{y, stride, w.outputs});
}

template <class Weights>
static void gated_panels(const Matrix& gate, const Matrix& up, const Inputs& x, const Token* tokens, int64_t count,
                         int64_t begin, int64_t end, const Gate& then) {
  for (int64_t p = begin; p < end; ++p)
    all_tokens<Weights, 2>(gate,
                           {{panel_data(gate, p), panel_data(up, p)},
                            {panel_scales(gate, p), panel_scales(up, p)},
                            {ahead_of(gate, p, 1, end, nullptr), ahead_of(up, p, 1, end, nullptr)}},
                           p, x, tokens, count, then);
}

static void gated(const Matrix& gate, const Matrix& up, const Inputs& x, const Token* tokens, int64_t count,
                  int64_t begin, int64_t end, float* y, int64_t stride) {
  const TileMode tiles(gate, x);
  const Gate then{y, stride, gate.outputs};
  switch (gate.format) {
    case Format::kBf16:
      return gated_panels<Bf16>(gate, up, x, tokens, count, begin, end, then);
    case Format::kFp8: {
      const Fp8Mode mode;
      return gated_panels<Fp8>(gate, up, x, tokens, count, begin, end, then);
    }
    case Format::kInt8:
      return gated_panels<Int8>(gate, up, x, tokens, count, begin, end, then);
    case Format::kInt4:
      return gated_panels<Int4>(gate, up, x, tokens, count, begin, end, then);
  }
}
