#include <immintrin.h>

#include "trimtab/functions.h"
#include "trimtab/layout.h"

namespace trimtab {
namespace avx512 {
// clang-format off
#include "simd.h"
#include "../kernels/functions.inc"
// clang-format on
}  // namespace avx512

const Functions kAvx512Functions{avx512::normalize, avx512::activate, avx512::cap, avx512::mix,
                                 avx512::largest, avx512::keep, avx512::attend};

}  // namespace trimtab
