#include "trimtab/functions.h"
#include "trimtab/layout.h"

namespace trimtab {
namespace scalar {
// clang-format off
#include "simd.h"
#include "../kernels/functions.inc"
// clang-format on
}  // namespace scalar

const Functions kScalarFunctions{scalar::normalize, scalar::activate, scalar::cap, scalar::mix,
                                 scalar::largest, scalar::keep, scalar::attend};

}  // namespace trimtab
