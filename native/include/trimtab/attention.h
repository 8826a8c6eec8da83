// How keys and values lie in memory, and one call of attention. Plain data: see layout.h.
//
// Pages of kPage positions, and in a page one block per key/value head:
//
//   keys    [tile of 16 positions][dim][position of the tile]: 16 scores grow at a time, without sums across a register
//   values  [position][dim]: 16 outputs grow at a time
//   scales  float32, of the keys [position], then of the values [position]; for bytes only, which hold code = x / scale + 128
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab {

enum class Kept : int { float32, bfloat16, int8 };

constexpr int64_t kPage = 256;    // positions
constexpr int64_t kMostQueries = 16;  // of one call

static constexpr int64_t kept_bytes(Kept kept) { return kept == Kept::float32 ? 4 : kept == Kept::bfloat16 ? 2 : 1; }
// Of a block. dim: a multiple of 16.
static constexpr int64_t block_bytes(Kept kept, int64_t dim) {
  return 2 * kPage * dim * kept_bytes(kept) + (kept == Kept::int8 ? 2 * kPage * 4 : 0);
}

// Queries that look at the keys of one head, each at the positions [first, last) of its own.
struct Attend {
  Kept kept;
  int64_t dim;
  const uint8_t* const* blocks;  // by page
  int64_t begin, end;            // positions that anyone looks at
  int64_t queries;               // at most kMostQueries
  const float* q;                // [query][dim], times the scale of the scores
  const int64_t *first, *last;   // [query]
  float softcap;                 // of the scores; 0: none
  // Results: the largest score, and with weights exp(score - largest) their sum and the sum of weighted values.
  float *most, *total, *sums;  // [query], [query], [query][dim]
  float* scores;               // scratch, [query][kPage]
};

}  // namespace trimtab
