// The next token from logits: the largest, or drawn with a generator of its own, so that a seed means the same everywhere.
#pragma once

#include <cstdint>
#include <vector>

#include "trimtab/functions.h"

namespace trimtab {

struct Sampling {
  float temperature = 0;         // 0: the largest logit, the first of equal ones
  int64_t top_k = 0;             // 0: all
  float top_p = 1;               // the fewest most likely tokens that have this probability together
  float repetition_penalty = 1;  // logits of tokens that were there are divided by it if positive, else multiplied
  uint64_t seed = 0;
};

class Sampler {
 public:
  explicit Sampler(const Sampling& sampling);  // throws std::invalid_argument
  // logits [count] are changed. seen: ids that were there, all below count.
  int32_t pick(float* logits, int64_t count, const std::vector<int32_t>& seen, const Functions& functions);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  void shorten(float* logits, int64_t count, const Functions& functions);
  double uniform();

  Sampling sampling_;
  uint64_t state_[4];
  std::vector<Candidate> candidates_;
  std::vector<double> chances_;
  std::vector<bool> met_;
};

}  // namespace trimtab
