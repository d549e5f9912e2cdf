// Attention in the tile registers of AMX, in place of attention.inl.
//
// Scores: 16 keys as they lie in the cache are one factor, 16 queries of a packed panel the other, so that a row of
// results is a key's scores. The weights that become of them are turned, 16 queries by 32 keys, to be the first factor
// of the mixture; its other one are values, 32 of a column beside each other, which are put so two steps ahead. Every
// sum has one fixed order, whatever was asked beside it.

#include "product.inl"

static constexpr int64_t kColumns = 32;  // of values, two tiles
static constexpr int64_t kChunk = 512;   // keys whose scores are made at once
static constexpr int64_t kLanes = 2 * kPanel;
static constexpr int64_t kStep = 32;  // keys that a tile of weights holds
static constexpr float kLog2E = 1.44269504f;

// Tiles 0 to 3: results; 4 and 5: two first factors; 6 and 7: two second ones. All are whole.
struct AttentionMode {
  AttentionMode() {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.rows[tile] = 16, shapes.row_bytes[tile] = 64;
    written();
    _tile_loadconfig(&shapes);
  }
  ~AttentionMode() { _tile_release(); }
  AttentionMode(const AttentionMode&) = delete;
};

// Asks for rows that come next, some lines with each of the `steps` that are made meanwhile.
struct Ahead {
  const KeyRows& rows;
  int64_t value_bytes, key_lines, lines, each, row, line = 0;

  Ahead(const KeyRows& rows, int64_t key_bytes, int64_t value_bytes, int64_t steps)
      : rows(rows), value_bytes(value_bytes), key_lines((key_bytes + 63) / 64), row(rows.ahead) {
    lines = key_lines + (rows.values == rows.keys ? 0 : (value_bytes + 63) / 64);
    each = ((rows.ahead_end - rows.ahead) * lines + steps - 1) / steps;
  }
  void step() {
    for (int64_t i = 0; i < each && row < rows.ahead_end; ++i) {
      const int64_t slot = rows.slots ? rows.slots[row] : row;
      const void* from = rows.keys + slot * rows.stride + line * 32;
      if (line >= key_lines && rows.values)
        from = rows.values + slot * rows.value_stride + (line - key_lines) * 32;
      else if (line >= key_lines)
        from = rows.arranged + (row - rows.arranged_from) * value_bytes + (line - key_lines) * 64;
      _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1);
      if (++line == lines) line = 0, ++row;
    }
  }
};

// 16 keys, which may lie in order.
struct SixteenKeys {
  const uint16_t* const* rows;
  int64_t stride;  // in bytes; 0: they lie anywhere

  SixteenKeys(const uint16_t* const* keys, int64_t row_bytes) : rows(keys), stride(row_bytes) {
    for (int i = 1; i < 16; ++i)
      if (reinterpret_cast<const uint8_t*>(keys[i]) != reinterpret_cast<const uint8_t*>(keys[0]) + i * row_bytes)
        stride = 0;
  }
  // 64 bytes of each from `at` on, of which `count` are there and the others zeros; where they lie or in `room`
  const uint8_t* bytes(int64_t at, int64_t count, uint8_t* room) const {
    if (stride > 0 && count == 64) return reinterpret_cast<const uint8_t*>(rows[0]) + at;
    for (int i = 0; i < 16; ++i) {
      __builtin_memset(room + i * 64, 0, 64);
      __builtin_memcpy(room + i * 64, reinterpret_cast<const uint8_t*>(rows[i]) + at, count);
    }
    written();
    return room;
  }
  int64_t step(int64_t count) const { return stride > 0 && count == 64 ? stride : 64; }
};

// The same of a panel of queries.
static inline const uint8_t* query_rows(const uint8_t* from, int64_t count, uint8_t* room) {
  if (count == 64) return from;
  __builtin_memset(room, 0, 1024);
  __builtin_memcpy(room, from, count * 16);
  written();
  return room;
}

// Adds four products: of two first factors, rows `first_stride` and `second_stride` bytes apart, and two second ones.
template <int PANELS>
static inline void multiply_four(const uint8_t* first, int64_t first_stride, const uint8_t* second,
                                 int64_t second_stride, const uint8_t* one, const uint8_t* two) {
  _tile_loadd(6, one, 64);
  _tile_loadd(4, first, first_stride);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(5, second, second_stride);
  _tile_dpbf16ps(1, 5, 6);
  if (PANELS == 1) return;
  _tile_loadd(7, two, 64);
  _tile_dpbf16ps(2, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
}

static inline void clear_all() {
  _tile_loadd(0, kZeros, 64);
  _tile_loadd(1, kZeros, 64);
  _tile_loadd(2, kZeros, 64);
  _tile_loadd(3, kZeros, 64);
}

// scores(count, kLanes) of `keys`, of which there are whole steps.
template <int PANELS>
static void score(const Matrix& queries, const uint16_t* const* keys, int64_t count, int64_t row_bytes, Ahead& ahead,
                  float* scores) {
  alignas(64) uint8_t room[4][1024];
  const int64_t bytes = queries.inputs * 2, panel = panel_bytes(queries);
  for (int64_t i = 0; i < count; i += kStep) {
    const SixteenKeys first(keys + i, row_bytes), second(keys + i + 16, row_bytes);
    clear_all();
    for (int64_t at = 0; at < bytes; at += 64) {
      const int64_t some = smaller(64, bytes - at);
      const uint8_t* one = queries.data + at * 16;
      ahead.step();
      multiply_four<PANELS>(first.bytes(at, some, room[0]), first.step(some), second.bytes(at, some, room[1]),
                            second.step(some), query_rows(one, some, room[2]),
                            PANELS > 1 ? query_rows(one + panel, some, room[3]) : nullptr);
    }
    float* to = scores + i * kLanes;
    _tile_stored(0, to, kLanes * 4);
    _tile_stored(1, to + 16 * kLanes, kLanes * 4);
    if (PANELS > 1) {
      _tile_stored(2, to + kPanel, kLanes * 4);
      _tile_stored(3, to + 16 * kLanes + kPanel, kLanes * 4);
    }
  }
  written();
}

// 2^x, for x <= 0 with a relative error below 2^-20: what becomes of it is rounded to 8 bits. A NaN stays one.
static inline __m512 power(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(1.33952315e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61793720e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55033250e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40226507e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93147181e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

// exp(factor * score - peak), exactly 1 at the peak however large that is
static inline __m512 weight_of(__m512 score, __m512 factor, __m512 peak) {
  const __m512 below = _mm512_sub_ps(_mm512_mul_ps(score, factor), peak);
  return power(_mm512_mul_ps(below, _mm512_set1_ps(kLog2E)));
}

// 16 x 16 numbers of 32 bits, turned
static inline void turn(__m512i (&rows)[16]) {
  __m512i pairs[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // fours[4 g + i] has in lane l the rows 4 g .. 4 g + 3 of column 4 l + i
    const __m512i low = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0x44);
    const __m512i high = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0xEE);
    const __m512i low2 = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0x44);
    const __m512i high2 = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0xEE);
    rows[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    rows[4 + i] = _mm512_shuffle_i32x4(low, low2, 0xDD);
    rows[8 + i] = _mm512_shuffle_i32x4(high, high2, 0x88);
    rows[12 + i] = _mm512_shuffle_i32x4(high, high2, 0xDD);
  }
}

// exp(score - peak) of a panel of queries and `steps` times 32 keys, as tiles of 16 queries; the sum of them all.
// Keys from `count` on weigh nothing.
static void weigh(const float* scores, int64_t count, int64_t steps, __m512 factor, __m512 peak, uint8_t* weights,
                  __m512& sum) {
  const __m512i nothing = _mm512_setzero_si512();
  for (int64_t s = 0; s < steps; ++s) {
    __m512i pairs[16];
    for (int64_t pair = 0; pair < 16; ++pair) {
      const int64_t key = s * kStep + 2 * pair;
      if (key >= count) {
        pairs[pair] = nothing;
        continue;
      }
      const float* from = scores + key * kLanes;
      const __m512 one = weight_of(_mm512_loadu_ps(from), factor, peak);
      const __m512 two =
          key + 1 < count ? weight_of(_mm512_loadu_ps(from + kLanes), factor, peak) : _mm512_setzero_ps();
      sum = _mm512_add_ps(sum, _mm512_add_ps(one, two));
      const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(one));
      const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(two));
      pairs[pair] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    }
    turn(pairs);
    for (int q = 0; q < 16; ++q) _mm512_store_si512(weights + s * 1024 + q * 64, pairs[q]);
  }
  written();
}

// 32 rows and 32 columns are two tiles, whose rows hold numbers of two values in turn.
static void arrange(const KeyRows& rows, int64_t begin, int64_t end, int64_t width, uint8_t* to) {
  const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int64_t row = begin; row < end; row += kStep, to += width * kStep * 2)
    for (int64_t pair = 0; pair < kStep / 2; ++pair) {
      const uint16_t* values[2];
      for (int i = 0; i < 2; ++i) {  // behind the end the last one is meant, which then weighs nothing
        const int64_t at = smaller(row + 2 * pair + i, end - 1), slot = rows.slots ? rows.slots[at] : at;
        values[i] = rows.values + slot * rows.value_stride;
      }
      uint8_t* pairs = to + pair * 64;
      for (int64_t column = 0; column < width; column += kColumns, pairs += 2048) {
        const __m512i one = _mm512_loadu_si512(values[0] + column), two = _mm512_loadu_si512(values[1] + column);
        _mm512_store_si512(pairs, _mm512_permutex2var_epi16(one, first, two));
        _mm512_store_si512(pairs + 1024, _mm512_permutex2var_epi16(one, second, two));
      }
    }
}

template <int PANELS>
static inline void multiply_values(const uint8_t* weights, const uint8_t* values) {
  constexpr int64_t kNext = kChunk / kStep * 1024;  // the second panel's weights
  _tile_loadd(4, weights, 64);
  _tile_loadd(6, values, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, values + 1024, 64);
  _tile_dpbf16ps(1, 4, 7);
  if (PANELS == 1) return;
  _tile_loadd(5, weights + kNext, 64);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// mixed = mixed * shrink + weights * values, for `lanes` queries. What tiles made of some columns is read when those of
// the next are under way.
template <int PANELS>
static void mix_tiles(const uint8_t* weights, const uint8_t* values, int64_t steps, int64_t lanes, const float* shrink,
                      Ahead& ahead, const Attended& state) {
  alignas(64) float results[2][kLanes * kColumns];
  const int64_t blocks = state.width / kColumns;
  auto add = [&](int64_t block) {
    const float* from = results[block % 2];
    for (int64_t q = 0; q < lanes; ++q, from += kColumns) {
      float* to = state.mixed + q * state.width + block * kColumns;
      const F16 less = F16::set(shrink[q]);
      F16::store(to, F16::load(to) * less + F16::load(from));
      F16::store(to + kPanel, F16::load(to + kPanel) * less + F16::load(from + kPanel));
    }
  };
  for (int64_t block = 0; block < blocks; ++block) {
    clear_all();
    for (int64_t s = 0; s < steps; ++s) {
      ahead.step();
      multiply_values<PANELS>(weights + s * 1024, values + (s * blocks + block) * 2048);
    }
    if (block > 0) add(block - 1);
    float* to = results[block % 2];
    _tile_stored(0, to, kColumns * 4);
    _tile_stored(1, to + kPanel, kColumns * 4);
    if (PANELS > 1) {
      _tile_stored(2, to + kPanel * kColumns, kColumns * 4);
      _tile_stored(3, to + kPanel * kColumns + kPanel, kColumns * 4);
    }
    written();
  }
  add(blocks - 1);
}

template <int PANELS>
static void attend_panels(const Matrix& queries, const KeyRows& rows, int64_t begin, int64_t end, int64_t past,
                          float scale, Attended& state) {
  const int64_t lanes = queries.outputs;
  alignas(64) float scores[kChunk * kLanes];
  alignas(64) uint8_t weights[PANELS][kChunk / kStep][1024];
  alignas(64) float shrink[kLanes];
  const uint16_t* keys[kChunk];
  const AttentionMode mode;
  const int64_t all_steps = (end - begin + kStep - 1) / kStep, in_a_key = (queries.inputs + 31) / 32;
  Ahead ahead(rows, queries.inputs * 2, state.width * 2, all_steps * (in_a_key + state.width / kColumns));

  for (int64_t start = begin; start < end; start += kChunk) {
    const int64_t count = smaller(end - start, kChunk), steps = (count + kStep - 1) / kStep;
    for (int64_t i = 0; i < steps * kStep; ++i) {  // behind the end the last one is meant
      const int64_t row = smaller(start + i, end - 1), slot = rows.slots ? rows.slots[row] : row;
      keys[i] = rows.keys + slot * rows.stride;
    }
    score<PANELS>(queries, keys, count, rows.stride * 2, ahead, scores);
    for (int64_t i = past + 1 - start > 0 ? past + 1 - start : 0; i < count; ++i)  // query l sees keys 0 .. past + l
      for (int64_t l = 0; l < lanes && l < start + i - past; ++l) scores[i * kLanes + l] = -3.0e38f;

    const __m512 factor = _mm512_set1_ps(scale);
    for (int p = 0; p < PANELS; ++p) {
      const __m512 before = _mm512_loadu_ps(state.peak + p * kPanel);
      __m512 peak = before;
      for (int64_t i = 0; i < count; ++i)
        peak = _mm512_max_ps(peak, _mm512_mul_ps(_mm512_load_ps(scores + i * kLanes + p * kPanel), factor));
      const __m512 less = power(_mm512_mul_ps(_mm512_sub_ps(before, peak), _mm512_set1_ps(kLog2E)));
      __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(state.sum + p * kPanel), less);
      weigh(scores + p * kPanel, count, steps, factor, peak, weights[p][0], sum);
      _mm512_storeu_ps(state.peak + p * kPanel, peak);
      _mm512_storeu_ps(state.sum + p * kPanel, sum);
      _mm512_store_ps(shrink + p * kPanel, less);
    }
    const uint8_t* values = rows.arranged + (start - rows.arranged_from) * state.width * 2;
    mix_tiles<PANELS>(weights[0][0], values, steps, lanes, shrink, ahead, state);
  }
}

static void attend(const Matrix& queries, const KeyRows& rows, int64_t begin, int64_t end, int64_t past, float scale,
                   Attended& state) {
  if (panels(queries) == 1) return attend_panels<1>(queries, rows, begin, end, past, scale, state);
  attend_panels<2>(queries, rows, begin, end, past, scale, state);
}
