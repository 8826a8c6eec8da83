#pragma once

#include "trimtab/session.h"

namespace trimtab {

constexpr int64_t kMostSplits = 16;  // of the positions that one token looks at

inline std::size_t size(int64_t n) { return static_cast<std::size_t>(n); }

// What one thread has to itself.
struct Session::Worker {
  Buffer memory, scratch, floats;
  int64_t stamp = 0;  // of the step whose inputs are in memory
  float *q, *sums, *scores, *key, *value;
  float most[kMostQueries], total[kMostQueries];
  int64_t first[kMostQueries], last[kMostQueries];

  explicit Worker(int64_t dim) : floats(size((2 * kMostQueries * dim + kMostQueries * kPage + 2 * dim) * 4)) {
    q = reinterpret_cast<float*>(floats.data());
    sums = q + kMostQueries * dim;
    scores = sums + kMostQueries * dim;
    key = scores + kMostQueries * kPage;
    value = key + dim;
  }
};

}  // namespace trimtab
