#include "trimtab/sampling.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace trimtab {
namespace {

uint64_t rotated(uint64_t x, int by) { return x << by | x >> (64 - by); }

}  // namespace

Sampler::Sampler(const Sampling& sampling) : sampling_(sampling) {
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature))
    throw std::invalid_argument("temperature must be a number from 0");
  if (sampling.top_k < 0) throw std::invalid_argument("top_k must be at least 0");
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) throw std::invalid_argument("top_p must be above 0 and at most 1");
  if (!(sampling.repetition_penalty > 0) || std::isinf(sampling.repetition_penalty))
    throw std::invalid_argument("repetition_penalty must be above 0");
  uint64_t z = sampling.seed;
  for (uint64_t& word : state_) {  // splitmix64 fills the state of xoshiro256**
    uint64_t x = z += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    word = x ^ x >> 31;
  }
}

double Sampler::uniform() {
  const uint64_t result = rotated(state_[1] * 5, 7) * 9, shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = rotated(state_[3], 45);
  return static_cast<double>(result >> 11) * 0x1p-53;
}

int32_t Sampler::pick(float* logits, int64_t count, const std::vector<int32_t>& seen, const Functions& functions) {
  if (sampling_.repetition_penalty != 1) {
    met_.assign(static_cast<std::size_t>(count), false);
    for (const int32_t id : seen) {
      if (met_[static_cast<std::size_t>(id)]) continue;
      met_[static_cast<std::size_t>(id)] = true;
      logits[id] = logits[id] < 0 ? logits[id] * sampling_.repetition_penalty : logits[id] / sampling_.repetition_penalty;
    }
  }
  if (sampling_.temperature == 0 || sampling_.top_k == 1) {
    const float most = functions.largest(logits, count);
    return static_cast<int32_t>(std::find(logits, logits + count, most) - logits);
  }
  shorten(logits, count, functions);
  double total = 0;
  for (const double chance : chances_) total += chance;
  double left = uniform() * total;
  for (std::size_t i = 0; i < chances_.size(); ++i)
    if ((left -= chances_[i]) < 0) return candidates_[i].id;
  return candidates_.back().id;
}

// Leaves the candidates and how likely each is.
void Sampler::shorten(float* logits, int64_t count, const Functions& functions) {
  candidates_.clear();
  // What is e^-40 times as likely as the best is never drawn; leaving it out saves sorting the whole vocabulary.
  const float most = functions.largest(logits, count), least = most - 40 * sampling_.temperature;
  for (int64_t i = 0; i < count; ++i)
    if (logits[i] >= least) candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  const auto worse = [](const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit < b.logit : a.id > b.id; };
  const auto better = [&](const Candidate& a, const Candidate& b) { return worse(b, a); };
  const auto k = static_cast<std::size_t>(sampling_.top_k);
  if (k && k < candidates_.size()) {
    const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(candidates_.begin(), last, candidates_.end(), better);
    const float limit = last->logit;  // tokens as good as the last one stay, too
    candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), [&](const Candidate& c) { return c.logit < limit; }),
                      candidates_.end());
    std::sort(candidates_.begin(), candidates_.end(), better);  // which of them is drawn is not left to nth_element
  }
  const auto chance = [&](const Candidate& c) { return std::exp((static_cast<double>(c.logit) - most) / sampling_.temperature); };
  chances_.clear();
  double total = 0;
  for (const Candidate& c : candidates_) total += chances_.emplace_back(chance(c));
  if (sampling_.top_p == 1) return;
  std::make_heap(candidates_.begin(), candidates_.end(), worse);
  chances_.clear();
  auto end = candidates_.end();
  for (double sum = 0; end != candidates_.begin() && (chances_.empty() || sum < sampling_.top_p * total);) {
    std::pop_heap(candidates_.begin(), end--, worse);
    sum += chances_.emplace_back(chance(*end));
  }
  candidates_.erase(candidates_.begin(), end);  // the best one stands last
  std::reverse(candidates_.begin(), candidates_.end());
}

}  // namespace trimtab
