// y = x W^T + bias on a chosen instruction set and number of threads.
#pragma once

#include <string>
#include <vector>

#include "trimtab/functions.h"
#include "trimtab/kernels.h"
#include "trimtab/matrix.h"

namespace trimtab {

// Names of the instruction sets that are built in and that this processor has, slowest first. "scalar" is always there.
std::vector<std::string> instruction_sets();

// By name; the fastest for an empty one. Throws std::invalid_argument for a name that is unknown or not of this processor.
const Kernels& kernels(const std::string& name);

// The other functions of the same instruction set.
const Functions& functions(const Kernels& kernels);

// How activations enter the product: as they are, or rounded to 15 or 8 bits with a scale for every 64 of them at most.
// Plain matrices take them as they are.
enum class Activations : int { exact = 0, int8 = 1, int16 = 2 };

// x [tokens, in], bias [out] or null, y [tokens, out]; y must not overlap x. A token whose activations are not all finite
// gives NaN in all rows, unless they are taken as they are.
void linear(const Matrix& matrix, const float* x, int64_t tokens, const float* bias, float* y, Activations activations,
            const Kernels& kernels, int threads);

// Whether a product of this matrix with several tokens may be taken by `Kernels::fast` from activations in bfloat16, to which
// `Kernels::quantize` rounds them. One token is taken from floats.
bool takes_bfloats(const Tiles& matrix, const Kernels& kernels);

// The two halves of `linear` for matrices of codes, for whoever shares activations between products: a batch over memory of
// batch_bytes(), filled by Kernels::quantize. Matrices of the same inputs, group and padded group take the same batch if
// `planes` says the same of them.
inline bool planes(const Tiles& matrix) { return matrix.store == Store::codes && matrix.bits == 1; }
int64_t batch_bytes(const Tiles& matrix, int64_t tokens, int digits);
Batch lay_out(const Tiles& matrix, int64_t tokens, int digits, uint8_t* memory);

}  // namespace trimtab
