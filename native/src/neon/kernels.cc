#include <arm_neon.h>

#include "trimtab/kernels.h"

namespace trimtab {
namespace neon {
// clang-format off
#include "simd.h"
#include "../kernels/all.inc"
// clang-format on
}  // namespace neon

const Kernels kNeon{"neon", neon::quantize, neon::fast, neon::exact, neon::read, false};

}  // namespace trimtab
