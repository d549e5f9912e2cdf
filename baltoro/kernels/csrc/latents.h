// Keys and values of some heads, made of cached latents.
#pragma once
#include "inputs.h"

namespace baltoro {

// The rows of one sequence, prepared once for all heads. The caller's thread keeps the room from call to call.
class Latents {
 public:
  // keys (N, C) and values (V, C): stacks in one format. Row s of the cache (., C + R) bf16 is slots[s].
  Latents(const Target& target, const Matrix& keys, const Matrix& values, const uint16_t* cache, const int64_t* slots,
          int64_t S, int64_t R, int threads);

  // Of `count` heads from `head` on: k(count, S, N + R), the last R numbers being the shared key; v(count, rows, V)
  // with S rows or, as the target arranges values, with S rounded up to 32.
  void expand(int64_t head, int64_t count, uint16_t* k, uint16_t* v, int threads) const;
  int64_t value_rows() const { return target_.arrange ? (S_ + 31) / 32 * 32 : S_; }

 private:
  const Target& target_;
  Matrix keys_, values_;
  const uint16_t* cache_;
  const int64_t* slots_;
  int64_t S_, R_;
  Inputs inputs_;
};

}  // namespace baltoro
