#include <immintrin.h>

#include "trimtab/functions.h"
#include "trimtab/layout.h"

namespace trimtab {
namespace avx2 {
// clang-format off
#include "simd.h"
#include "../kernels/functions.inc"
// clang-format on
}  // namespace avx2

const Functions kAvx2Functions{avx2::normalize, avx2::activate, avx2::cap, avx2::mix,
                               avx2::largest, avx2::keep, avx2::attend};

}  // namespace trimtab
