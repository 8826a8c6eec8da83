#include <arm_neon.h>

#include "trimtab/functions.h"
#include "trimtab/layout.h"

namespace trimtab {
namespace neon {
// clang-format off
#include "simd.h"
#include "../kernels/functions.inc"
// clang-format on
}  // namespace neon

const Functions kNeonFunctions{neon::normalize, neon::activate, neon::cap, neon::mix,
                               neon::largest, neon::keep, neon::attend};

}  // namespace trimtab
