// AVX-512 with VNNI, BF16 and VBMI: Zen 4, Sapphire Rapids and later.
#include <immintrin.h>

#include "../kernels.h"

namespace baltoro::avx512 {

#include "avx512.inl"
//
#include "../attention.inl"
#include "../dense.inl"
#include "../pack.inl"
#include "../roof.inl"

extern const Target kernels = {"avx512",   1,        prepare,   product,  gated,     weighted,
                               round_rows, nullptr,  attend,    pack,     read_all,  multiply,
                               dots,       mix_rows, normalize, sigmoids, gate_rows, softmax};

}  // namespace baltoro::avx512
