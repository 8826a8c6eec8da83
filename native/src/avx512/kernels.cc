#include <immintrin.h>

#include "trimtab/kernels.h"

#define TRIMTAB_BFLOATS  // whether the processor has them as well is asked at run time, in linear.cc

namespace trimtab {
namespace avx512 {
// clang-format off
#include "simd.h"
#include "../kernels/all.inc"
// clang-format on
}  // namespace avx512

const Kernels kAvx512{"avx512", avx512::quantize, avx512::fast, avx512::exact, avx512::read, true};

}  // namespace trimtab
