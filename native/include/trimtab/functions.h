// What a model needs beside products: norms, curves, attention. One table per instruction set, like the kernels.
#pragma once

#include "trimtab/attention.h"

namespace trimtab {

enum class Curve : int { silu, gelu, gelu_tanh, relu };

struct Functions {
  // y = x / root mean square * weight; centred: mean subtracted first and bias, where there is one, added. y may be x.
  void (*normalize)(bool centred, const float* x, const float* weight, const float* bias, float epsilon, int64_t n, float* y);

  // x = curve(x), times `gate` where there is one.
  void (*activate)(Curve curve, float* x, const float* gate, int64_t n);

  // x = cap * tanh(x / cap).
  void (*cap)(float* x, float cap, int64_t n);

  // Every run of `block` entries (a power of two) times the Hadamard matrix of that order, entries +-1, in place.
  void (*mix)(float* x, int64_t block, int64_t n);

  // The largest entry; NaN if one is not finite.
  float (*largest)(const float* x, int64_t n);

  // Puts a key and a value [dim] into a block, at position `index` of its page.
  void (*keep)(Kept kept, const float* key, const float* value, int64_t dim, uint8_t* block, int64_t index);

  void (*attend)(const Attend& call);
};

extern const Functions kScalarFunctions;
#if defined(TRIMTAB_X86)
extern const Functions kAvx2Functions;
extern const Functions kAvx512Functions;
#endif
#if defined(TRIMTAB_ARM)
extern const Functions kNeonFunctions;
#endif

}  // namespace trimtab
