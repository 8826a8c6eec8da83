// What calibration spends its time on besides products when it computes in bfloat16: attention over whole windows, and the second
// moments of what matrices are given. One table per instruction set, like the kernels.
//
// Both are products of pairs: two bfloat16 numbers are multiplied with two others and added to one float32 sum. So whatever is
// summed over (tokens of a gram, the width of a head, keys) is laid out in pairs, and one side of the product in tiles:
//
//   packed   [tile of 16][pair][16][2]
#pragma once

#include <cstdint>

#include "trimtab/kernels.h"

namespace trimtab {

constexpr int64_t kSide = 4;             // tiles, and rows, that are multiplied at once
constexpr int64_t kGramTokens = 1024;    // of one round; an even number
constexpr int64_t kGramPairs = 64;       // in one sum, before it is added to the others: short sums round less
constexpr int64_t kQueryRows = 64;       // of one block; a multiple of kSide
constexpr int64_t kKeyRows = 128;        // of one block; a multiple of kSide * kRows

// total [columns, columns] += x^T x, on and below the diagonal. Above it, some entries change, too, and mean nothing.
struct GramRound {
  const uint16_t* x;                     // [tokens, columns] bfloat16
  int64_t row;                           // entries from one token to the next
  int64_t tokens, columns;               // tokens: at most kGramTokens
  uint16_t* packed;                      // gram_panels() * kSide tiles of kGramTokens / 2 pairs
  float* total;
};

static constexpr int64_t gram_panels(int64_t columns) { return ceil_to(columns, kSide * kRows) / (kSide * kRows); }

// Where rows [batch][head][token] of bfloat16 numbers lie, in entries.
template <class Number>
struct Heads {
  Number* data;
  int64_t batch, head, token;
};

// softmax(q k^T scale) v; with `causal`, query i looks at keys 0 to i. Scores and sums are float32, weights bfloat16.
struct WindowAttention {
  Heads<const uint16_t> q, k, v;         // k and v: kept_heads, each for as many neighbouring heads of q
  Heads<uint16_t> out;
  int64_t batches, heads, kept_heads, queries, keys;  // none of them 0
  int64_t dim, value_dim;                // multiples of 16
  float scale;
  bool causal;
};

static constexpr int64_t query_blocks(const WindowAttention& a) { return ceil_to(a.queries, kQueryRows) / kQueryRows; }

struct Passes {
  // The two halves of a round: tiles [begin, end) are packed; then panels of kSide tiles are added up.
  void (*pack)(const GramRound& round, int64_t begin, int64_t end);
  void (*add)(const GramRound& round, int64_t begin, int64_t end);

  // Blocks of queries [begin, end) of all batches and heads, in this order. scratch: attention_scratch() bytes.
  void (*attend)(const WindowAttention& call, int64_t begin, int64_t end, uint8_t* scratch);
};

extern const Passes kScalarPasses;
#if defined(TRIMTAB_X86)
extern const Passes kAvx2Passes;
extern const Passes kAvx512Passes;  // for processors that have AVX512_BF16
#endif

int64_t attention_scratch(const WindowAttention& call);

// The table for an instruction set; that of avx2 for an avx512 without products of bfloat16.
const Passes& passes(const Kernels& kernels);

// Whether this processor multiplies bfloat16 numbers by instructions of its own, and there are kernels that do.
bool multiplies_bfloats();

// total [columns, columns] += x^T x, as in GramRound, for any number of tokens.
void gram(const uint16_t* x, int64_t row, int64_t tokens, int64_t columns, float* total, const Passes& passes, int threads);

void attention(const WindowAttention& call, const Passes& passes, int threads);

}  // namespace trimtab
