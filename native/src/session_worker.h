#pragma once

#include <chrono>

#include "trimtab/session.h"

namespace trimtab {

constexpr int64_t kMostSplits = 16;  // of the positions that one token looks at

inline std::size_t size(int64_t n) { return static_cast<std::size_t>(n); }

// Adds the seconds until it goes to `to`, if that is there; otherwise it looks at no clock.
class Lap {
 public:
  explicit Lap(double* to) : to_(to) {
    if (to_) begun_ = Clock::now();
  }
  ~Lap() {
    if (to_) *to_ += std::chrono::duration<double>(Clock::now() - begun_).count();
  }
  Lap(const Lap&) = delete;
  Lap& operator=(const Lap&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double* to_;
  Clock::time_point begun_;
};

// What one thread has to itself.
struct Session::Worker {
  Buffer memory, scratch, floats;
  int64_t stamp = 0;  // of the step whose inputs are in memory
  double spent[kStages] = {};
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
