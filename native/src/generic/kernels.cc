#include "trimtab/kernels.h"

namespace trimtab {
namespace scalar {
// clang-format off
#include "simd.h"
#include "../kernels/all.inc"
// clang-format on
}  // namespace scalar

const Kernels kScalar{"scalar", scalar::quantize, scalar::fast, scalar::exact, scalar::read, false};

}  // namespace trimtab
