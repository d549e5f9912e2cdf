// Activations made ready for products: where their rows lie, and who prepares them.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace baltoro {

constexpr int64_t kFewTokens = 4;  // up to so many, integers are as fast in registers

// How many rows should lie together when a matrix meets at most `count` tokens at once. A tile of integers must not
// reach from one 64-byte piece of a row into the next.
static inline int together(const Target& target, const Matrix& w, int64_t count) {
  if (target.tile_rows == 1 || count < 1 || w.format == Format::kInt4) return 1;
  if (w.format == Format::kInt8 && (count <= kFewTokens || (64 % w.group != 0 && w.group % 64 != 0))) return 1;
  return static_cast<int>(std::min<int64_t>(target.tile_rows, count));
}

// What Inputs points into, with room for `rows`; kept by the thread from call to call.
struct Room {
  std::vector<uint8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> starts;

  Inputs inputs_of(const Matrix& w, int64_t rows, int together = 1) {
    int64_t row_bytes = is_integer(w) ? w.inputs : (w.inputs + 3) / 4 * 8;
    if (together > 1) row_bytes = (row_bytes + 63) / 64 * 64;
    const int64_t row_groups = is_integer(w) ? groups(w) : 0;
    rows = (rows + together - 1) / together * together;
    values.resize(std::max<size_t>(values.size(), rows * row_bytes));
    scales.resize(std::max<size_t>(scales.size(), rows * row_groups));
    starts.resize(std::max<size_t>(starts.size(), rows * row_groups));
    return {values.data(), scales.data(), starts.data(), row_bytes, row_groups, together};
  }
};

// Row `row` of plain rows to row `slot` of `to`.
static inline void place(const Inputs& from, int64_t row, const Inputs& to, int64_t slot) {
  const uint8_t* values = from.values + row * from.row_bytes;
  uint8_t* first = to.values + slot / to.together * to.together * to.row_bytes + slot % to.together * 64;
  if (to.together == 1)
    std::copy_n(values, from.row_bytes, first);
  else
    for (int64_t at = 0; at < from.row_bytes; at += 64)
      std::copy_n(values + at, std::min<int64_t>(64, from.row_bytes - at), first + at * to.together);
  std::copy_n(from.scales + row * from.groups, from.groups, to.scales + slot * to.groups);
  std::copy_n(from.starts + row * from.groups, from.groups, to.starts + slot * to.groups);
}

static inline Matrix of_expert(Matrix stack, int64_t expert) {
  stack.data += expert * (stack.next ? stack.next : panels(stack) * panel_bytes(stack));
  if (stack.scales) stack.scales += expert * (stack.next ? stack.next : panels(stack) * panel_scale_bytes(stack));
  return stack;
}

// Prepares `count` rows of x: the i-th is row from(i), and becomes row to(i).
template <class From, class To>
static void prepare_rows(const Target& target, const Matrix& w, const float* x, const Inputs& inputs, int64_t count,
                         From from, To to, int threads) {
  auto work = [&](int64_t i) {
    thread_local Room room;
    const float* row = x + from(i) * w.inputs;
    if (inputs.together == 1) return target.prepare(w, row, inputs, to(i));
    const Inputs plain = room.inputs_of(w, 1);
    target.prepare(w, row, plain, 0);
    place(plain, 0, inputs, to(i));
  };
  parallel_for(count * w.inputs < 65536 ? 1 : threads, count, work);
}

static inline int64_t rounded_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

}  // namespace baltoro
