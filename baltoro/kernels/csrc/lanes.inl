// One register of 32-bit lanes, each a row of weights, in the compilers' own vector types: at the width that a target
// was compiled for they become its instructions, so that packing is written once and needs no target's help.

#if defined(__AVX512BW__)
static constexpr int kRows = 16;
#elif defined(__AVX2__)
static constexpr int kRows = 8;
#else
static constexpr int kRows = 4;
#endif

typedef float FloatLanes __attribute__((vector_size(4 * kRows)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kRows)));
typedef uint32_t WordLanes __attribute__((vector_size(4 * kRows)));
typedef uint16_t HalfLanes __attribute__((vector_size(2 * kRows)));
typedef uint16_t HalfPairs __attribute__((vector_size(4 * kRows)));

static inline FloatLanes all_lanes(float value) { return value - FloatLanes{}; }
static inline WordLanes all_lanes(uint32_t value) { return value + WordLanes{}; }

template <class Lanes>
static inline Lanes loaded(const void* from) {
  Lanes lanes;
  __builtin_memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <class Lanes>
static inline void stored_to(void* to, Lanes lanes) {
  __builtin_memcpy(to, &lanes, sizeof lanes);
}

static inline FloatLanes least(FloatLanes a, FloatLanes b) { return a < b ? a : b; }
static inline FloatLanes greatest(FloatLanes a, FloatLanes b) { return a > b ? a : b; }
static inline WordLanes magnitude(FloatLanes a) { return (WordLanes)a & 0x7FFFFFFFu; }
static inline FloatLanes either(IntLanes which, FloatLanes a, FloatLanes b) { return which ? a : b; }

static inline bool any(WordLanes lanes) {
  uint32_t all = 0;
  for (int l = 0; l < kRows; ++l) all |= lanes[l];
  return all != 0;
}

// Lane l of the result is lane Order::at(l) of both arguments, those of the second counted on from the first's last.
template <class Order, class Lanes, int... l>
static inline Lanes shuffled(Lanes a, Lanes b, std::integer_sequence<int, l...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Order::at(l)...);
#else
  typedef decltype(a < b) Places;
  return __builtin_shuffle(a, b, Places{Order::at(l)...});
#endif
}

template <class Order, class Lanes>
static inline Lanes shuffled(Lanes a, Lanes b) {
  return shuffled<Order>(a, b, std::make_integer_sequence<int, sizeof(Lanes) / sizeof(a[0])>{});
}

// The lower or upper of every four lanes of both in turn, in pieces of WIDTH (1 or 2) lanes
template <int WIDTH, bool UPPER>
struct Interleaved {
  static constexpr int at(int l) {
    const int piece = l % 4 / WIDTH, from = l / 4 * 4 + (UPPER ? 2 : 0) + piece / 2 * WIDTH + l % WIDTH;
    return piece % 2 ? kRows + from : from;
  }
};

// Of each 2 DISTANCE lanes the lower or upper half of both arguments
template <int DISTANCE, bool UPPER>
struct Exchanged {
  static constexpr int at(int l) {
    const int from = l / (2 * DISTANCE) * (2 * DISTANCE) + l % DISTANCE + (UPPER ? DISTANCE : 0);
    return l / DISTANCE % 2 ? kRows + from : from;
  }
};

template <int DISTANCE>
static inline void exchange(WordLanes (&words)[kRows]) {
  if constexpr (DISTANCE >= 4) {
    for (int i = 0; i < kRows; ++i)
      if (!(i & DISTANCE)) {
        const WordLanes lower = words[i], upper = words[i + DISTANCE];
        words[i] = shuffled<Exchanged<DISTANCE, false>>(lower, upper);
        words[i + DISTANCE] = shuffled<Exchanged<DISTANCE, true>>(lower, upper);
      }
    exchange<DISTANCE / 2>(words);
  }
}

// words[i] lane l becomes words[l] lane i: squares of four by four first, then the squares among themselves.
static inline void transpose(WordLanes (&words)[kRows]) {
  for (int i = 0; i < kRows; i += 4) {
    const WordLanes a = shuffled<Interleaved<1, false>>(words[i], words[i + 1]);
    const WordLanes b = shuffled<Interleaved<1, true>>(words[i], words[i + 1]);
    const WordLanes c = shuffled<Interleaved<1, false>>(words[i + 2], words[i + 3]);
    const WordLanes d = shuffled<Interleaved<1, true>>(words[i + 2], words[i + 3]);
    words[i] = shuffled<Interleaved<2, false>>(a, c);
    words[i + 1] = shuffled<Interleaved<2, true>>(a, c);
    words[i + 2] = shuffled<Interleaved<2, false>>(b, d);
    words[i + 3] = shuffled<Interleaved<2, true>>(b, d);
  }
  exchange<kRows / 2>(words);
}

// Of four lanes (outputs) of two pairs of bytes first all first pairs, then all second ones, as Format::kFp8 has them.
struct PairsApart {
  static constexpr int at(int l) { return l / 8 * 8 + l % 4 * 2 + l / 4 % 2; }
};

static inline WordLanes pairs_apart(WordLanes words) {
  return (WordLanes)shuffled<PairsApart>((HalfPairs)words, (HalfPairs)words);
}
