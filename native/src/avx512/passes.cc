#include <immintrin.h>

#include "trimtab/passes.h"

namespace trimtab {
namespace avx512 {
// clang-format off
#include "simd.h"
#include "pairs.h"
#include "../kernels/passes.inc"
// clang-format on
}  // namespace avx512

const Passes kAvx512Passes{avx512::pack, avx512::add, avx512::attend};

}  // namespace trimtab
