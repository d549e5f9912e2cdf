// AVX-512 and the tiles of AMX: Sapphire Rapids and later.
#include <immintrin.h>

#include "../kernels.h"
#include "../training.h"

#define BALTORO_TILES

namespace baltoro::amx {

#include "avx512.inl"
//
#include "../attention_tiles.inl"
#include "../dense.inl"
#include "../pack.inl"
#include "../roof.inl"
//
#include "../training_products.inl"
//
#include "../training_attention.inl"
#include "../training_mixture.inl"

extern const Target kernels = {"amx",      kTileRows, prepare,   product,  gated,     weighted,
                               round_rows, arrange,   attend,    pack,     read_all,  multiply_tiles,
                               dots,       mix_rows,  normalize, sigmoids, gate_rows, softmax};

extern const Training kTraining = {training::pack,
                                   training::pack_back,
                                   training::round,
                                   training::pairs,
                                   training::product,
                                   training::outer,
                                   training::norm,
                                   training::norm_gradient,
                                   training::turn,
                                   training::attend,
                                   training::attend_gradient,
                                   training::experts,
                                   training::experts_gradient,
                                   training::loss,
                                   training::route_gradient,
                                   training::sum_heads,
                                   training::gather};

}  // namespace baltoro::amx
