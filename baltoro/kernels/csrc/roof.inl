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

// rounds * 12 * 64 multiplications and additions of bytes.
static uint32_t multiply_bytes(int64_t rounds, const uint8_t* weights, const int8_t* x) {
  I16 sum[12];
  for (I16& each : sum) each = I16::set(0);
  const Bytes w = Bytes::load(weights);
  for (int64_t i = 0; i < rounds; ++i)
    for (int k = 0; k < 12; ++k) sum[k] = dot_int8(sum[k], w, x + 4 * k);
  F16 all = to_float(sum[0]);
  for (int k = 1; k < 12; ++k) all = all + to_float(sum[k]);
  float lanes[kPanel];
  F16::store(lanes, all);
  return bits_of(lanes[0]);
}

// rounds * 12 * 64 multiplications and additions of bf16 numbers.
static uint32_t multiply_floats(int64_t rounds, const uint8_t* weights, const uint16_t* x) {
  F16 sum[12];
  for (F16& each : sum) each = F16::set(0.0f);
  const Pairs w = pairs_bf16(weights);
  for (int64_t i = 0; i < rounds; ++i)
    for (int k = 0; k < 12; ++k) sum[k] = dot_pairs(sum[k], w, x + 4 * k);
  for (int k = 1; k < 12; ++k) sum[0] = sum[0] + sum[k];
  float lanes[kPanel];
  F16::store(lanes, sum[0]);
  return bits_of(lanes[0]);
}
