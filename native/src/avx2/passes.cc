#include <immintrin.h>

#include "trimtab/passes.h"

namespace trimtab {
namespace avx2 {
// clang-format off
#include "simd.h"
#include "../kernels/passes.inc"
// clang-format on
}  // namespace avx2

const Passes kAvx2Passes{avx2::pack, avx2::add, avx2::attend};

}  // namespace trimtab
