// One table of functions per instruction set, all with the same meaning; the driver in linear.cc picks one at run time.
#pragma once

#include "trimtab/layout.h"

namespace trimtab {

struct Kernels {
  const char* name;

  // Fills the arrays of `batch` (which are writable) for tokens [begin, end). x: [tokens, in].
  void (*quantize)(const Tiles& matrix, const float* x, const Batch& batch, int64_t begin, int64_t end);

  // y[token, row] = sum over columns + bias for the rows of tiles [begin, end), from integer activations.
  // The same bits for a token alone as among others. scratch: fast_scratch() bytes, 64-byte aligned.
  void (*fast)(const Tiles& matrix, const Batch& batch, const float* bias, float* y, int64_t begin, int64_t end,
               uint8_t* scratch);

  // The same from float activations and the float32 weights that the format defines; differs from a product with the
  // unpacked matrix only by the order of summation. scratch: exact_scratch() bytes.
  void (*exact)(const Tiles& matrix, const float* x, int64_t tokens, const float* bias, float* y, int64_t begin, int64_t end,
                uint8_t* scratch);

  // Reads `bytes` (a multiple of 64) and returns their sum as 64-bit words: the yardstick for memory.
  uint64_t (*read)(const uint8_t* data, int64_t bytes);

  // Whether `quantize` and `fast` also take bfloat16 matrices of 3 tiles and more, with several tokens of activations that are
  // bfloat16 numbers, on a processor that has AVX512_BF16. They then give the sums of `exact`.
  bool bfloats;
};

extern const Kernels kScalar;
#if defined(TRIMTAB_X86)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif
#if defined(TRIMTAB_ARM)
extern const Kernels kNeon;
extern const Kernels kDotprod;
#endif

int64_t fast_scratch(const Tiles& matrix, int64_t tokens);
int64_t exact_scratch(const Tiles& matrix, int64_t tokens);

}  // namespace trimtab
