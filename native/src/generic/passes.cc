#include "trimtab/passes.h"

namespace trimtab {
namespace scalar {
// clang-format off
#include "simd.h"
#include "../kernels/passes.inc"
// clang-format on
}  // namespace scalar

const Passes kScalarPasses{scalar::pack, scalar::add, scalar::attend};

}  // namespace trimtab
