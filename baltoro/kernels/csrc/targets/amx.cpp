// AVX-512 and the tiles of AMX: Sapphire Rapids and later.
#include <immintrin.h>

#include "../kernels.h"

#define BALTORO_TILES

namespace baltoro::amx {

#include "avx512.inl"
//
#include "../attention_tiles.inl"
#include "../dense.inl"
#include "../pack.inl"
#include "../roof.inl"

extern const Target kernels = {"amx",      kTileRows, prepare,   product,  gated,     weighted,
                               round_rows, arrange,   attend,    pack,     read_all,  multiply_tiles,
                               dots,       mix_rows,  normalize, sigmoids, gate_rows, softmax};

}  // namespace baltoro::amx
