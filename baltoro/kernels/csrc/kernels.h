// What Python may call: the contract. No instruction set and no Python in here.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace baltoro {

// y(T,O) = x(T,I) * dequantize(w)(O,I)^T, all row-major, sums in float32.
// w: e4m3fn bytes. scale(ceil(O/128), ceil(I/128)): one float per 128x128 block; edge blocks may be partial.
// Any T >= 0, O >= 1, I >= 1. y must not overlap x. Thread-safe; allocates nothing; runs on the calling thread.
// A row of y has the same bits whatever other rows are computed with it.
using MatmulFp8 = void(const float* x, const uint8_t* w, const float* scale, float* y, int64_t T, int64_t O, int64_t I);

// Every kernel, compiled for one instruction set.
struct Target {
  const char* name;
  MatmulFp8* matmul_fp8;
};

// Names of the targets that this CPU can run, slowest first; never empty.
std::vector<std::string> targets();

// One of targets(). Any other name throws std::invalid_argument; nothing falls back.
const Target& target(const std::string& name);

}  // namespace baltoro
