// What this CPU can do at most, with the same registers and instructions that the products use.

static constexpr int64_t kFar = 4096;

// Reads all bytes (a multiple of 512), and nothing else. The result depends on every byte, so no load can be dropped.
static uint32_t read_all(const uint8_t* from, int64_t bytes) {
  Bytes sum[8];
  for (int i = 0; i < 8; ++i) sum[i] = Bytes::load(from + 64 * i);
  for (int64_t at = 512; at < bytes; at += 512)
    for (int i = 0; i < 8; ++i) {
      prefetch(from + at + kFar + 64 * i);
      sum[i] = either(sum[i], Bytes::load(from + at + 64 * i));
    }
  for (int i = 1; i < 8; ++i) sum[0] = either(sum[0], sum[i]);
  return folded(sum[0]);
}

// It may point elsewhere now, for all that the compiler knows: what is made of it cannot be taken out of a loop.
static inline void moved(const uint8_t*& from) {
#if defined(__GNUC__)
  asm volatile("" : "+r"(from));
#else
  (void)from;
#endif
}

// Multiplies and adds, of registers and the first cache only: kRoofSums of 16 outputs a round.
static int64_t multiply(Format format, int64_t rounds, const uint8_t* weights, const int8_t* x, uint32_t& used) {
  F16 all = F16::set(0.0f);
  if (format == Format::kInt8) {
    I16 sum[kRoofSums];
    for (I16& each : sum) each = I16::set(0);
    for (int64_t i = 0; i < rounds; ++i, moved(weights)) {
      const Bytes w = Bytes::load(weights);
      for (int k = 0; k < kRoofSums; ++k) sum[k] = densest_int8(sum[k], w, x + 4 * k);
    }
    for (const I16& each : sum) all = all + to_float(each);
  } else if (format == Format::kInt4) {
    Int4Sum sum[kRoofSums];
    for (Int4Sum& each : sum) each = Int4Sum::zero();
    for (int64_t i = 0; i < rounds; ++i, moved(weights)) {
      const Bytes w = Bytes::load(weights);  // a few small numbers
      for (int k = 0; k < kRoofSums; ++k) sum[k] = dot_int4(sum[k], w, x + 4 * k);
    }
    for (const Int4Sum& each : sum) all = all + to_float(I16::set(0) + each);
  } else {
    F16 sum[kRoofSums];
    for (F16& each : sum) each = F16::set(0.0f);
    const F16 w = F16::load_bf16(reinterpret_cast<const uint16_t*>(weights));
    const F16 inputs = F16::load_bf16(reinterpret_cast<const uint16_t*>(x));
    for (int64_t i = 0; i < rounds; ++i)
      for (int k = 0; k < kRoofSums; ++k) sum[k] = densest_floats(sum[k], w, inputs);
    for (const F16& each : sum) all = all + each;
  }
  float lanes[kPanel];
  F16::store(lanes, all);
  for (const float lane : lanes) used ^= bits_of(lane);  // every lane: what is not used is not computed
  const bool integers = format == Format::kInt8 || format == Format::kInt4;
  return rounds * kRoofSums * kPanel * (integers ? kDensestInts : kDensestFloats);
}

#ifdef BALTORO_TILES
// The same of the formats that go through tiles: four of 16 x 16 results a round.
static int64_t multiply_tiles(Format format, int64_t rounds, const uint8_t* weights, const int8_t* x, uint32_t& used) {
  if (format == Format::kInt4) return multiply(format, rounds, weights, x, used);
  alignas(64) uint8_t some[kTileBytes] = {weights[0]};
  TileShapes shapes;
  for (int tile = 0; tile < 6; ++tile) shapes.rows[tile] = 16, shapes.row_bytes[tile] = 64;
  written();
  _tile_loadconfig(&shapes);
  _tile_loadd(4, some, 64);
  _tile_loadd(5, some, 64);
  for (int64_t i = 0; i < rounds; ++i) {
    if (format == Format::kInt8) {
      _tile_dpbsud(0, 4, 5);
      _tile_dpbsud(1, 4, 5);
      _tile_dpbsud(2, 4, 5);
      _tile_dpbsud(3, 4, 5);
    } else {
      _tile_dpbf16ps(0, 4, 5);
      _tile_dpbf16ps(1, 4, 5);
      _tile_dpbf16ps(2, 4, 5);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_release();
  used ^= some[0];
  return rounds * 4 * kTileRows * kPanel * (format == Format::kInt8 ? 64 : 32);
}
#endif
