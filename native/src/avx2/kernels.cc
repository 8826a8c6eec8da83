#include <immintrin.h>

#include "trimtab/kernels.h"

namespace trimtab {
namespace avx2 {
// clang-format off
#include "simd.h"
#include "../kernels/all.inc"
// clang-format on
}  // namespace avx2

const Kernels kAvx2{"avx2", avx2::quantize, avx2::fast, avx2::exact, avx2::read, false};

}  // namespace trimtab
