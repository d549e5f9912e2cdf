// AVX-512 with VNNI, BF16 and VBMI: Zen 4, Sapphire Rapids and later.
#include <immintrin.h>

#include "../kernels.h"
#include "../training.h"

namespace baltoro::avx512 {

#include "avx512.inl"
//
#include "../attention.inl"
#include "../dense.inl"
#include "../pack.inl"
#include "../roof.inl"
//
#include "../training_products.inl"
//
#include "../training_attention.inl"
#include "../training_mixture.inl"

extern const Target kernels = {"avx512",   1,        prepare,   product,  gated,     weighted,
                               round_rows, nullptr,  attend,    pack,     read_all,  multiply,
                               dots,       mix_rows, normalize, sigmoids, gate_rows, softmax};

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

}  // namespace baltoro::avx512
