#include <arm_neon.h>

#include "trimtab/kernels.h"

#define TRIMTAB_DOTPROD

namespace trimtab {
namespace dotprod {
// clang-format off
#include "simd.h"
#include "../kernels/all.inc"
// clang-format on
}  // namespace dotprod

const Kernels kDotprod{"dotprod", dotprod::quantize, dotprod::fast, dotprod::exact, dotprod::read, false};

}  // namespace trimtab
