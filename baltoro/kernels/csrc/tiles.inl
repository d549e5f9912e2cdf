// Products in the tile registers of AMX, in place of product.inl's tiles where a target defines BALTORO_TILES.
//
// A tile is 16 rows of 64 bytes. 16 chunks of a packed panel are one as they lie there: each row has the same few
// inputs of 16 outputs. The other factor is up to 16 tokens, 64 bytes of inputs each, and a third tile takes their
// 16 x 16 results. Two panels meet up to 32 tokens at once. fp8 is unpacked into the first cache. Sums of int8 are
// exact, hence the same bits as on every target. Floats have their own order of additions, and go through tiles
// whatever the number of tokens. int4 goes through registers: with a result for each 32 inputs, tiles are no faster
// (docs/log.md).
//
// The intrinsics' numbers of tiles are literals: they become text of the assembler. Nor does a compiler know that they
// read memory, hence `written`.

static constexpr int kTileRows = 16, kTileBytes = 1024;
static constexpr int kBlockTiles = 2;  // of tokens: with two panels, tiles 0 to 3 hold the results

alignas(64) static const uint8_t kZeros[kTileBytes] = {};  // loaded, since adding to a tile that was cleared is slow

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

template <class Weights>
static constexpr bool kExact = __is_same(typename Weights::Tile, Integers);
template <class Weights>
static constexpr bool kUnpacked = __is_same(Weights, Fp8);

// Integers that lie as plain rows and scattered tokens go through registers.
template <class Weights>
static bool in_tiles(const Inputs& x) {
  return kExact<Weights> ? x.together > 1 : !__is_same(Weights, ScatteredBf16);
}

static inline void written() { asm volatile("" ::: "memory"); }

// Lives while tokens are multiplied in tiles. Tiles 0 to 3: results; 4 and 5: 64 bytes of each token, and their
// weights; 6 and 7: the same for what is left of a group's inputs.
struct TileMode {
  TileMode(const Matrix& w, const Inputs& x) {
    if (is_integer(w) && x.together == 1) return;  // see in_tiles
    TileShapes shapes;
    const auto rows = static_cast<uint8_t>(x.together), left = static_cast<uint8_t>(left_bytes(w));
    for (int tile = 0; tile < 4; ++tile) shapes.rows[tile] = rows, shapes.row_bytes[tile] = 64;
    shapes.rows[4] = rows, shapes.row_bytes[4] = 64;
    shapes.rows[5] = 16, shapes.row_bytes[5] = 64;
    if (left > 0) {
      shapes.rows[6] = rows, shapes.row_bytes[6] = left;
      shapes.rows[7] = left / 4, shapes.row_bytes[7] = 64;
    }
    written();
    _tile_loadconfig(&shapes);
  }
  ~TileMode() { _tile_release(); }
  TileMode(const TileMode&) = delete;

  // Of a group's inputs, or of all where there are no groups. Only the last block of fp8 can be shorter than 128.
  static int64_t left_bytes(const Matrix& w) { return is_integer(w) ? w.group % 64 : (w.inputs + 3) / 4 * 4 * 2 % 64; }
};

// Tokens whose rows go into one or two tiles: consecutive ones from a multiple of `together` on.
struct Block {
  const uint8_t* values;
  const float* scales;
  const int32_t* starts;
  int64_t tile_bytes, row_groups;  // from tile to tile, from token to token
  int64_t count;
  int tiles, together;

  Block(const Inputs& x, const Token* tokens, int64_t count)
      : values(x.values + tokens[0].row * x.row_bytes),
        scales(x.scales + tokens[0].row * x.groups),
        starts(x.starts + tokens[0].row * x.groups),
        tile_bytes(x.together * x.row_bytes),
        row_groups(x.groups),
        count(count),
        tiles(count > x.together ? 2 : 1),
        together(x.together) {}

  // Where byte `at` of its rows begins, in the first tile
  const uint8_t* bytes_at(int64_t at) const { return values + at / 64 * 64 * together + at % 64; }
};

template <int PANELS>
static inline void clear(int tiles) {
  _tile_loadd(0, kZeros, 64);
  if (PANELS > 1) _tile_loadd(2, kZeros, 64);
  if (tiles == 1) return;
  _tile_loadd(1, kZeros, 64);
  if (PANELS > 1) _tile_loadd(3, kZeros, 64);
}

// Adds the products of 64 bytes of each token, or of what is left of a group, with panel P's weights: rows of 64 bytes.
#define BALTORO_MULTIPLY(name, instruction, a, b)                                              \
  template <int P>                                                                             \
  static inline void name(const Block& block, const uint8_t* values, const uint8_t* weights) { \
    _tile_loadd(b, weights, 64);                                                               \
    _tile_loadd(a, values, 64);                                                                \
    if (P == 0)                                                                                \
      instruction(0, a, b);                                                                    \
    else                                                                                       \
      instruction(2, a, b);                                                                    \
    if (block.tiles == 1) return;                                                              \
    _tile_loadd(a, values + block.tile_bytes, 64);                                             \
    if (P == 0)                                                                                \
      instruction(1, a, b);                                                                    \
    else                                                                                       \
      instruction(3, a, b);                                                                    \
  }
BALTORO_MULTIPLY(multiply_bytes, _tile_dpbsud, 4, 5)
BALTORO_MULTIPLY(multiply_bytes_left, _tile_dpbsud, 6, 7)
BALTORO_MULTIPLY(multiply_floats, _tile_dpbf16ps, 4, 5)
BALTORO_MULTIPLY(multiply_floats_left, _tile_dpbf16ps, 6, 7)
#undef BALTORO_MULTIPLY

// The results of panel P, token by token.
template <int P>
static inline void store(const Block& block, void* to) {
  uint8_t* at = static_cast<uint8_t*>(to);
  if (P == 0)
    _tile_stored(0, at, 64);
  else
    _tile_stored(2, at, 64);
  if (block.tiles > 1) {
    if (P == 0)
      _tile_stored(1, at + block.together * 64, 64);
    else
      _tile_stored(3, at + block.together * 64, 64);
  }
  written();
}

// The next `rows` rows of a tile of weights: where they lie, or unpacked into `room`.
template <class Weights>
static inline const uint8_t* weight_rows(const uint8_t*& data, const uint8_t*& ahead, int rows, uint8_t* room) {
  const uint8_t* from = data;
  if constexpr (kUnpacked<Weights>) {
    for (int row = 0; row < rows; row += 2) {
      prefetch(ahead);
      const Pairs two = Weights::load(data);
      _mm512_store_si512(room + 64 * row, two.first);
      _mm512_store_si512(room + 64 * row + 64, two.second);
      data += 64, ahead += 64;
    }
    written();
    return room;
  }
  for (int row = 0; row < rows; ++row) prefetch(ahead + 64 * row);
  data += 64 * rows, ahead += 64 * rows;
  return from;
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// How the bytes of a token's row go into tiles: groups of `length` bytes, each in steps of 64 and what is left.
struct Steps {
  int64_t bytes, length;

  explicit Steps(const Matrix& w) {
    const int64_t size = is_integer(w) ? 1 : 2;
    bytes = (w.inputs + 3) / 4 * 4 * size;
    length = groups(w) > 0 ? w.group * size : bytes;
  }
};

// A panel's weights, step by step. Those that are unpacked have been so for a while when a tile takes them: one that
// reads what was just written waits until everything before it is done.
template <class Weights>
struct Stream {
  static constexpr unsigned kRooms = 4, kBefore = kUnpacked<Weights> ? 2 : 0;
  alignas(64) uint8_t room[kUnpacked<Weights> ? kRooms : 1][kTileBytes];
  const uint8_t* rows[kRooms];
  const Steps& steps;
  const uint8_t *data, *ahead;
  int64_t at = 0, group_end = 0;
  unsigned next = 0;

  Stream(const Steps& steps, const uint8_t* data, const uint8_t* ahead) : steps(steps), data(data), ahead(ahead) {
    for (unsigned step = 0; step < kBefore; ++step) advance();
  }
  void advance() {
    if (at >= steps.bytes) return;
    if (at == group_end) group_end = smaller(group_end + steps.length, steps.bytes);
    const int count = static_cast<int>(smaller(64, group_end - at)) / 4;
    rows[next % kRooms] = weight_rows<Weights>(data, ahead, count, room[kUnpacked<Weights> ? next % kRooms : 0]);
    at += count * 4, ++next;
  }
  // Of step number `step`, which all before it were asked for
  const uint8_t* take(unsigned step) {
    advance();
    return rows[step % kRooms];
  }
};

// Adds panel P's products with the bytes from `begin` on, of tokens whose group ends at `end`.
template <class Weights, int P>
static inline void multiply(const Block& block, int64_t begin, int64_t end, const uint8_t* weights) {
  const uint8_t* values = block.bytes_at(begin);
  const bool whole = end - begin >= 64;
  if constexpr (!kExact<Weights>)
    whole ? multiply_floats<P>(block, values, weights) : multiply_floats_left<P>(block, values, weights);
  else
    whole ? multiply_bytes<P>(block, values, weights) : multiply_bytes_left<P>(block, values, weights);
}

template <class Weights>
static inline void add_group(const Matrix& w, const uint8_t*& scales, const Block& block, int64_t g,
                             const uint8_t* results, F16* sum) {
  if constexpr (kExact<Weights>) {
    const F16 scale = F16::load_bf16(reinterpret_cast<const uint16_t*>(scales));
    scales += kPanel * 2;
    for (int64_t t = 0; t < block.count; ++t) {
      const int64_t at = t * block.row_groups + g;
      const I16 dots = I16{_mm512_load_si512(results + t * 64)} + I16::set(block.starts[at]);
      sum[t] = sum[t] + to_float(dots) * (scale * F16::set(block.scales[at]));
    }
  } else {
    F16 scale = F16::set(1.0f);
    if (groups(w) > 0) {
      scale = F16::set(*reinterpret_cast<const float*>(scales));
      scales += 4;
    }
    for (int64_t t = 0; t < block.count; ++t)
      sum[t] = sum[t] + F16::load(reinterpret_cast<const float*>(results + t * 64)) * scale;
  }
}

// All inputs of one block of tokens, for one or two panels. What tiles made of a group is read only when those of the
// next are under way, which takes them some fifty cycles.
template <class Weights, int PANELS>
static inline void tiled_block(const Matrix& w, Panels<PANELS> at, const Block& block,
                               F16 (&sum)[PANELS][kBlockTiles * kTileRows]) {
  alignas(64) uint8_t results[2][PANELS][kBlockTiles * kTileBytes];
  const Steps steps(w);
  Stream<Weights> first(steps, at.data[0], at.ahead[0]), second(steps, at.data[PANELS - 1], at.ahead[PANELS - 1]);
  int64_t group = 0;
  unsigned step = 0;
  auto add = [&](int64_t done) {
    for (int p = 0; p < PANELS; ++p) add_group<Weights>(w, at.scales[p], block, done, results[done % 2][p], sum[p]);
  };
  for (int64_t begin = 0; begin < steps.bytes; begin += steps.length, ++group) {
    const int64_t end = smaller(begin + steps.length, steps.bytes);
    clear<PANELS>(block.tiles);
    for (int64_t i = begin; i < end; i += 64, ++step) {
      multiply<Weights, 0>(block, i, end, first.take(step));
      if constexpr (PANELS > 1) multiply<Weights, 1>(block, i, end, second.take(step));
    }
    if (group > 0) add(group - 1);
    store<0>(block, results[group % 2][0]);
    if constexpr (PANELS > 1) store<1>(block, results[group % 2][1]);
  }
  add(group - 1);
}

// All tokens of some panels, to `then` one by one.
template <class Weights, int PANELS, class Then>
static void tiled_tokens(const Matrix& w, const Panels<PANELS>& at, int64_t panel, const Inputs& x, const Token* tokens,
                         int64_t count, const Then& then) {
  for (int64_t now; count > 0; tokens += now, count -= now) {
    now = count < kBlockTiles * x.together ? count : kBlockTiles * x.together;
    F16 sum[PANELS][kBlockTiles * kTileRows];
    for (int p = 0; p < PANELS; ++p)
      for (int64_t t = 0; t < now; ++t) sum[p][t] = F16::set(0.0f);
    tiled_block<Weights, PANELS>(w, at, Block(x, tokens, now), sum);
    for (int64_t t = 0; t < now; ++t) {
      F16 one[PANELS][1];
      for (int p = 0; p < PANELS; ++p) one[p][0] = sum[p][t];
      then(tokens + t, panel, one);
    }
  }
}
