// Rows of numbers to packed panels, written once, see lanes.inl. The torch twin is formats.py; results have its bits,
// on every target: sums run over the inputs in their order, and nothing is contracted.

#include "lanes.inl"

// --- sources: words of one, two or four numbers ------------------------------------------------------------------

struct FromFloat {
  static constexpr int numbers = 1;  // a word
  static void widen(WordLanes words, float, FloatLanes (&to)[1]) { to[0] = (FloatLanes)words; }
  static WordLanes odd(WordLanes) { return WordLanes{}; }
};

struct FromBf16 {
  static constexpr int numbers = 2;
  static void widen(WordLanes words, float, FloatLanes (&to)[2]) {
    to[0] = (FloatLanes)(words << 16);
    to[1] = (FloatLanes)(words & 0xFFFF0000u);
  }
  static WordLanes odd(WordLanes) { return WordLanes{}; }
};

struct FromFp8 {
  static constexpr int numbers = 4;

  // Exponent and mantissa in their place of a float, the bias corrected: 120 more. Subnormal numbers have no leading
  // one: they get it and lose it again, without ever being subnormal floats (slow, and 0 in some modes of the CPU).
  static void widen(WordLanes words, float scale, FloatLanes (&to)[4]) {
    for (int j = 0; j < 4; ++j) {
      const WordLanes top = words << (24 - 8 * j), size = top >> 4 & 0x07F00000u;
      const WordLanes subnormal = (WordLanes)((IntLanes)size < 0x00800000);
      const FloatLanes one = (FloatLanes)(subnormal & 0x3C800000u);  // 2^-6
      const FloatLanes value = (FloatLanes)(size + 0x3C000000u + (subnormal & 0x00800000u)) - one;
      to[j] = (FloatLanes)((WordLanes)value | (top & 0x80000000u)) * scale;
    }
  }
  static WordLanes odd(WordLanes words) { return ((words & 0x7F7F7F7Fu) + 0x01010101u) & 0x80808080u; }  // NaNs
};

// Some consecutive rows of a source, a lane each, and what is wrong with them.
struct Slice {
  const uint8_t* data;
  int64_t row_bytes, rows;  // rows: those that there are
  const float* scales;      // of this row of blocks
  WordLanes odd;            // not 0: a number that is none has been seen

  WordLanes present() const {
    WordLanes lanes{};
    for (int l = 0; l < kRows; ++l) lanes[l] = l < rows ? ~0u : 0;
    return lanes;
  }
};

// words[k] = word `first` + k of every row, zeros where there is none: of rows, or of bytes from `row_bytes` on
static inline void read_words(const Slice& from, int64_t first, WordLanes (&words)[kRows]) {
  const int64_t offset = 4 * first, left = from.row_bytes - offset;
  if (from.rows >= kRows && left >= 4 * kRows) {
    for (int l = 0; l < kRows; ++l) words[l] = loaded<WordLanes>(from.data + l * from.row_bytes + offset);
  } else {
    for (int l = 0; l < kRows; ++l) {
      words[l] = WordLanes{};
      if (l >= from.rows || left <= 0) continue;
      __builtin_memcpy(&words[l], from.data + l * from.row_bytes + offset, left < 4 * kRows ? left : 4 * kRows);
    }
  }
  transpose(words);
}

// Numbers [begin, end) of every row to `to`, (end - begin, kRows), and up to a block of words more.
template <class From>
static inline void read_floats(Slice& from, int64_t begin, int64_t end, float* to) {
  constexpr int64_t block = kRows * From::numbers;
  for (int64_t i = begin; i < end;) {
    const int64_t edge = From::numbers == 4 ? (i / 128 + 1) * 128 : end, stop = edge < end ? edge : end;
    const float scale = From::numbers == 4 ? from.scales[i / 128] : 1.0f;
    for (; i < stop; i += block) {
      WordLanes words[kRows];
      read_words(from, i / From::numbers, words);
      for (int k = 0; k < kRows; ++k) {
        FloatLanes numbers[From::numbers];
        from.odd |= From::odd(words[k]);
        From::widen(words[k], scale, numbers);
        for (int n = 0; n < From::numbers; ++n) stored_to(to + (i - begin + k * From::numbers + n) * kRows, numbers[n]);
      }
    }
    i = stop;
  }
}

// --- integers ----------------------------------------------------------------------------------------------------

static constexpr float kRounding = 12582912.0f;   // 1.5 * 2^23: added, it rounds to the nearest integer, halves to even
static constexpr uint32_t kNothing = 0x0D800000;  // 2^-100: a group of nothing larger is a group of zeros

static inline WordLanes nearest_bf16(FloatLanes x) {  // in the lower halves
  const WordLanes bits = (WordLanes)x;
  return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

struct Scale {
  WordLanes bf16;
  FloatLanes inverse;

  // `nothing`: lanes whose scale is 1
  static Scale of(FloatLanes scale, IntLanes nothing) {
    const WordLanes bf16 = nearest_bf16(either(nothing, all_lanes(1.0f), scale));
    return {bf16, 1.0f / (FloatLanes)(bf16 << 16)};
  }
};

struct ToInt8 {
  static constexpr int numbers = 4;                                         // a word
  static constexpr float lowest = -127.0f, highest = 127.0f, offset = 128;  // is added
  static constexpr int place(int n) { return 8 * n; }                       // in the word, of its n-th number

  static Scale scale(Slice& from, const float* group, int64_t count) {
    WordLanes peak{};
    for (int64_t i = 0; i < count; ++i) {
      const WordLanes size = magnitude(loaded<FloatLanes>(group + i * kRows));
      peak = (IntLanes)size > (IntLanes)peak ? size : peak;
    }
    from.odd |= (WordLanes)((IntLanes)peak >= 0x7F800000);
    return Scale::of((FloatLanes)peak / 127.0f, (IntLanes)peak < static_cast<int32_t>(kNothing));
  }
};

struct ToInt4 {
  static constexpr int numbers = 8;
  static constexpr float lowest = -8.0f, highest = 7.0f, offset = 8;
  static constexpr int place(int n) { return 8 * (n % 4) + n / 4 * 4; }

  // How well the group is met when its largest number becomes REACH: it is projected onto what it is rounded to. Of the
  // sums only their quotient counts, dot^2 / norm, and dot / norm is the best scale.
  template <int TENTHS>
  struct Try {
    static constexpr float reach = TENTHS / 10.0f;
    FloatLanes dot{}, norm{};

    void add(FloatLanes number) {
      FloatLanes q = number * reach;  // number: -1 .. 1, and 1 is among them
      if (TENTHS < -70) q = least(q, all_lanes(7.0f));
      if (TENTHS < -85) q = greatest(q, all_lanes(-8.0f));  // what is less below -8 is rounded to it
      q = (q + kRounding) - kRounding;
      dot = dot + number * q;
      norm = norm + q * q;
    }
    void take(FloatLanes& best_dot, FloatLanes& best_norm) const {
      const IntLanes better = dot * dot * best_norm > best_dot * best_dot * norm;
      best_dot = either(better, dot, best_dot);
      best_norm = either(better, norm, best_norm);
    }
  };

  static Scale scale(Slice& from, const float* group, int64_t count) {
    FloatLanes low = loaded<FloatLanes>(group), high = low;
    for (int64_t i = 1; i < count; ++i) {
      const FloatLanes number = loaded<FloatLanes>(group + i * kRows);
      low = least(number, low), high = greatest(number, high);
    }
    const FloatLanes largest = either(high >= -low, high, low);
    const IntLanes nothing = (IntLanes)magnitude(largest) < static_cast<int32_t>(kNothing);
    const FloatLanes inverse = either(nothing, FloatLanes{}, 1.0f / largest);
    Try<-80> first;
    Try<-84> second;
    Try<-88> third;
    Try<70> fourth;
    for (int64_t i = 0; i < count; ++i) {
      const FloatLanes number = loaded<FloatLanes>(group + i * kRows) * inverse;
      first.add(number), second.add(number), third.add(number), fourth.add(number);
    }
    FloatLanes dot{}, norm = all_lanes(1.0f);
    first.take(dot, norm), second.take(dot, norm), third.take(dot, norm), fourth.take(dot, norm);
    // An infinity is the largest; a NaN is in every sum.
    from.odd |= (WordLanes)((IntLanes)magnitude(largest) >= 0x7F800000) | (WordLanes)(fourth.dot != fourth.dot);
    return Scale::of(largest * (dot / norm), nothing);
  }
};

template <class From, class To>
static void pack_integers(Slice from, const Matrix& shape, uint8_t* data, uint8_t* scales, float* room, bool& good) {
  const int64_t span = packing_span(shape);
  const WordLanes present = from.present();
  uint32_t spurious = 0;  // what the bits of kRounding leave in a word
  for (int n = 0; n < To::numbers; ++n) spurious += 0x4B400000u << To::place(n);
  for (int64_t begin = 0; begin < shape.inputs; begin += span) {
    const int64_t end = begin + span < shape.inputs ? begin + span : shape.inputs;
    read_floats<From>(from, begin, end, room);
    for (int64_t g = begin; g < end; g += shape.group) {
      const float* group = room + (g - begin) * kRows;
      const Scale scale = To::scale(from, group, shape.group);
      stored_to(scales, __builtin_convertvector(scale.bf16 & present, HalfLanes));
      scales += 2 * kPanel;
      for (int64_t i = 0; i < shape.group; i += To::numbers) {
        WordLanes word{};
        for (int n = 0; n < To::numbers; ++n) {
          const FloatLanes q = loaded<FloatLanes>(group + (i + n) * kRows) * scale.inverse;
          const FloatLanes held = greatest(least(q, all_lanes(To::highest)), all_lanes(To::lowest));
          word += (WordLanes)(held + (kRounding + To::offset)) << To::place(n);
        }
        stored_to(data, (word - spurious) & present);
        data += 4 * kPanel;
      }
    }
  }
  good &= !any(from.odd);
}

// --- bf16 --------------------------------------------------------------------------------------------------------

static void pack_words_of_bf16(WordLanes& odd, WordLanes pair, uint8_t* to) {
  odd |= ((pair & 0x7FFF7FFFu) + 0x00800080u) & 0x80008000u;  // infinities and NaNs
  stored_to(to, pair);
}

template <class From>
static void pack_bf16(Slice from, const Matrix& shape, uint8_t* data, uint8_t*, float* room, bool& good) {
  const int64_t padded = (shape.inputs + 3) / 4 * 4;
  const WordLanes present = from.present();
  if constexpr (From::numbers == 2) {
    for (int64_t i = 0; i < padded; i += 2 * kRows) {
      WordLanes words[kRows];
      read_words(from, i / 2, words);
      for (int k = 0; k < kRows && i + 2 * k < padded; ++k, data += 4 * kPanel)
        pack_words_of_bf16(from.odd, words[k], data);
    }
  } else {
    for (int64_t begin = 0; begin < padded; begin += 128) {
      const int64_t end = begin + 128 < padded ? begin + 128 : padded;
      read_floats<From>(from, begin, end, room);
      for (int64_t i = shape.inputs; i < end; ++i) stored_to(room + (i - begin) * kRows, FloatLanes{});  // never -0
      for (int64_t i = begin; i < end; i += 2, data += 4 * kPanel) {
        const float* pair = room + (i - begin) * kRows;
        const WordLanes low = nearest_bf16(loaded<FloatLanes>(pair)),
                        high = nearest_bf16(loaded<FloatLanes>(pair + kRows));
        pack_words_of_bf16(from.odd, (low | high << 16) & present, data);
      }
    }
  }
  good &= !any(from.odd);
}

// --- block-fp8 ---------------------------------------------------------------------------------------------------

static void pack_fp8_again(Slice from, const Matrix& shape, uint8_t* data, uint8_t* scales, bool& good) {
  for (int64_t i = 0; i < shape.inputs; i += 4 * kRows) {
    WordLanes words[kRows];
    read_words(from, i / 4, words);
    for (int k = 0; k < kRows && i + 4 * k < shape.inputs; ++k, data += 4 * kPanel) {
      from.odd |= FromFp8::odd(words[k]);
      stored_to(data, pairs_apart(words[k]));
    }
  }
  __builtin_memcpy(scales, from.scales, 4 * groups(shape));
  good &= !any(from.odd);
}

// |x| <= 448 to the nearest e4m3, halves to even, in the lowest bytes.
static inline WordLanes nearest_fp8(FloatLanes x) {
  const WordLanes size = magnitude(x), sign = (WordLanes)x >> 24 & 0x80u;
  const WordLanes normal = (size + 0x7FFFFu + (size >> 20 & 1u) - 0x3C000000u) >> 20;
  const WordLanes small = (WordLanes)((FloatLanes)size + 16384.0f) - 0x46800000u;  // in steps of 2^-9
  return ((IntLanes)size < 0x3C800000 ? small : normal) | sign;
}

template <class From>
static void pack_fp8(Slice from, const Matrix& shape, uint8_t* data, const float* block_scales, float* room) {
  for (int64_t begin = 0; begin < shape.inputs; begin += 128) {
    const int64_t end = begin + 128 < shape.inputs ? begin + 128 : shape.inputs;
    const FloatLanes scale = all_lanes(block_scales[begin / 128]);
    read_floats<From>(from, begin, (end + 3) / 4 * 4, room);
    for (int64_t i = begin; i < end; i += 4, data += 4 * kPanel) {
      WordLanes word{};
      for (int n = 0; n < 4; ++n) {
        const FloatLanes x = loaded<FloatLanes>(room + (i - begin + n) * kRows) / scale;
        word |= nearest_fp8(greatest(least(x, all_lanes(448.0f)), all_lanes(-448.0f))) << 8 * n;
      }
      stored_to(data, pairs_apart(word));
    }
  }
}

// The largest magnitude of each block, as bits: there a NaN is larger than all numbers.
template <class From>
static void add_peaks(Slice from, const Matrix& shape, uint32_t* peaks, float* room) {
  for (int64_t begin = 0; begin < shape.inputs; begin += 128) {
    const int64_t end = begin + 128 < shape.inputs ? begin + 128 : shape.inputs;
    read_floats<From>(from, begin, end, room);
    WordLanes peak{};
    for (int64_t i = 0; i < end - begin; ++i) {
      const WordLanes size = magnitude(loaded<FloatLanes>(room + i * kRows));
      peak = (IntLanes)size > (IntLanes)peak ? size : peak;
    }
    for (int l = 0; l < kRows; ++l)
      if (peak[l] > peaks[begin / 128]) peaks[begin / 128] = peak[l];
  }
}

// --- all together ------------------------------------------------------------------------------------------------

// The rows of slice `slice` of a panel
template <class From>
static Slice slice_of(const Numbers& from, const Matrix& shape, int64_t panel, int slice) {
  const int64_t row = panel * kPanel + slice * kRows, row_bytes = shape.inputs * (4 / From::numbers);
  const float* scales = From::numbers == 4 ? from.scales + row / 128 * ((shape.inputs + 127) / 128) : nullptr;
  const int64_t rows = row < shape.outputs ? shape.outputs - row : 0;
  return {from.data + (rows ? row * row_bytes : 0), row_bytes, rows, scales, WordLanes{}};
}

template <class From>
static bool pack_from(const Numbers& from, const Matrix& to, uint8_t* data, uint8_t* scales, int64_t begin, int64_t end,
                      float* room) {
  bool good = true;
  const int64_t blocks = (to.inputs + 127) / 128;
  float* block_scales = room + packing_room(to) - blocks;
  if (to.format == Format::kFp8 && From::numbers != 4) {  // begin and end are multiples of 8 panels, or the last
    uint32_t* peaks = reinterpret_cast<uint32_t*>(block_scales);
    for (int64_t b = 0; b < blocks; ++b) peaks[b] = 0;
    for (int64_t panel = begin; panel < end; ++panel)
      for (int slice = 0; slice < kPanel / kRows; ++slice)
        add_peaks<From>(slice_of<From>(from, to, panel, slice), to, peaks, room);
    for (int64_t b = 0; b < blocks; ++b) {
      if (peaks[b] >= 0x7F800000) return false;
      const float scale = float_of(peaks[b]) / 448.0f;
      block_scales[b] = scale < 0x1p-126f ? 1.0f : scale;
    }
  }
  for (int64_t panel = begin; panel < end; ++panel)
    for (int slice = 0; slice < kPanel / kRows; ++slice) {
      const Slice rows = slice_of<From>(from, to, panel, slice);
      uint8_t* chunks = data + panel * panel_bytes(to) + slice * 4 * kRows;
      uint8_t* factors = scales + panel * panel_scale_bytes(to);
      if (to.format == Format::kBf16) {
        pack_bf16<From>(rows, to, chunks, factors, room, good);
      } else if (to.format == Format::kInt8) {
        pack_integers<From, ToInt8>(rows, to, chunks, factors + slice * 2 * kRows, room, good);
      } else if (to.format == Format::kInt4) {
        pack_integers<From, ToInt4>(rows, to, chunks, factors + slice * 2 * kRows, room, good);
      } else if constexpr (From::numbers == 4) {
        pack_fp8_again(rows, to, chunks, factors, good);
      } else {
        pack_fp8<From>(rows, to, chunks, block_scales, room);
        __builtin_memcpy(factors, block_scales, 4 * blocks);
      }
    }
  return good;
}

static bool pack(const Numbers& from, const Matrix& to, uint8_t* data, uint8_t* scales, int64_t begin, int64_t end,
                 float* room) {
  switch (from.type) {
    case Numbers::kFloat32:
      return pack_from<FromFloat>(from, to, data, scales, begin, end, room);
    case Numbers::kBf16:
      return pack_from<FromBf16>(from, to, data, scales, begin, end, room);
    case Numbers::kBlockFp8:
      return pack_from<FromFp8>(from, to, data, scales, begin, end, room);
  }
  return false;
}
