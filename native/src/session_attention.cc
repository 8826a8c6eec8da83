// A session's attention: where keys and values go, and who looks at which. The arithmetic is in kernels/attention.inc.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "session_worker.h"
#include "trimtab/session.h"

namespace trimtab {

// A head of a token, normalised and turned, filled up with zeros.
void Session::take_head(const Run& run, const Layer& l, const Norm& norm, const float* from, int64_t token, float* to) const {
  if (norm.there && !l.wide_norms)
    functions_.normalize(norm.centred, from, norm.weight.data(), norm.bias.empty() ? nullptr : norm.bias.data(), norm.epsilon,
                       l.dim, to);
  else
    std::memcpy(to, from, size(l.dim * 4));
  std::fill(to + l.dim, to + padded_head(l.dim), 0.0f);
  if (l.rope < 0) return;
  const int64_t n = static_cast<int64_t>(model_->ropes[size(l.rope)].frequency.size());
  const float *cosines = turns(run, l.rope, token), *sines = cosines + n;
  for (int64_t i = 0; i < n; ++i) {
    const float a = to[i], b = to[i + n];
    to[i] = a * cosines[i] - b * sines[i];
    to[i + n] = b * cosines[i] + a * sines[i];
  }
}

void Session::keep(const Run& run, const Step& step, int64_t token, int64_t head, Worker& worker) {
  const Layer& l = layer(step);
  const int64_t row = token * l.kv_heads * l.dim + head * l.dim, position = run.at(token);
  take_head(run, l, l.k_norm, buffer(Program::kK) + row, token, worker.key);
  std::memcpy(worker.value, buffer(Program::kV) + row, size(l.dim * 4));
  std::fill(worker.value + l.dim, worker.value + padded_head(l.dim), 0.0f);
  const Cache& cache = cache_of(run, token);
  functions_.keep(cache.kept(), worker.key, worker.value, padded_head(l.dim), cache.block(step.layer, head, position / kPage),
                position % kPage);
}

// One token of a conversation: a head and a range of positions. Where there is no other token, the one that has the last position
// puts the token's own key there first.
void Session::attend_one(const Run& run, const Step& step, int64_t item, Worker& worker) {
  const Layer& l = layer(step);
  const int64_t split = item % run.splits, head = item / run.splits % l.kv_heads, token = item / run.splits / l.kv_heads;
  const int64_t splits = run.splits_of(token), limit = run.at(token) + 1;
  if (split >= splits) return;
  const int64_t start = l.window ? std::max<int64_t>(0, limit - l.window) : 0;
  const int64_t page = start / kPage, pages = (limit - 1) / kPage + 1 - page;
  const int64_t begin = std::max(start, (page + pages * split / splits) * kPage);
  const int64_t end = std::min(limit, (page + pages * (split + 1) / splits) * kPage);
  if (!run.seats && split == splits - 1) keep(run, step, 0, head, worker);
  for (int64_t j = 0; j < kMostQueries; ++j) {
    worker.first[j] = begin;
    worker.last[j] = end;
  }
  const int64_t queries = l.heads / l.kv_heads;
  for (int64_t i = 0; i < queries; i += kMostQueries)
    attend(run, step, {head * queries + i, std::min(kMostQueries, queries - i), token, 1, split}, worker);
}

// A head and some tokens next to each other.
void Session::attend_many(const Run& run, const Step& step, int64_t item, Worker& worker) {
  const Layer& l = layer(step);
  const int64_t queries = l.heads / l.kv_heads, each = std::max<int64_t>(1, kMostQueries / queries);
  const int64_t blocks = (run.tokens + each - 1) / each, head = item / blocks, begin = item % blocks * each;
  const int64_t tokens = std::min(each, run.tokens - begin);
  for (int64_t i = 0; i < queries; i += kMostQueries) {
    const int64_t heads = std::min(kMostQueries, queries - i);
    for (int64_t j = 0; j < tokens * heads; ++j) {
      worker.last[j] = run.position + begin + j / heads + 1;
      worker.first[j] = l.window ? std::max<int64_t>(0, worker.last[j] - l.window) : 0;
    }
    attend(run, step, {head * queries + i, heads, begin, tokens, 0}, worker);
  }
}

// At the positions that worker.first and worker.last say, for [token][head].
void Session::attend(const Run& run, const Step& step, const Queries& q, Worker& worker) {
  const Layer& l = layer(step);
  const int64_t dim = padded_head(l.dim), rows = q.tokens * q.heads;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = q.first_token + r / q.heads, head = q.first_head + r % q.heads;
    float* const to = worker.q + r * dim;
    take_head(run, l, l.q_norm, buffer(Program::kQ) + (token * l.heads + head) * l.dim, token, to);
    for (int64_t d = 0; d < dim; ++d) to[d] *= l.scale;
  }
  const int64_t begin = *std::min_element(worker.first, worker.first + rows);
  const int64_t end = *std::max_element(worker.last, worker.last + rows);
  const int64_t shared = q.first_head / (l.heads / l.kv_heads);
  const Cache& cache = cache_of(run, q.first_token);
  functions_.attend({cache.kept(), dim, cache.blocks(step.layer, shared), begin, end, rows, worker.q, worker.first, worker.last,
                   l.softcap, worker.most, worker.total, worker.sums, worker.scores});
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = q.first_token + r / q.heads, head = q.first_head + r % q.heads;
    const float* const sums = worker.sums + r * dim;
    const int64_t splits = run.splits_of(token);
    if (splits > 1) {
      float* const part = parts_of(token) + (head * splits + q.split) * (dim + 2);
      part[0] = worker.most[r];
      part[1] = worker.total[r];
      std::memcpy(part + 2, sums, size(dim * 4));
    } else {
      float* const to = buffer(Program::kAttended) + (token * l.heads + head) * l.dim;
      for (int64_t d = 0; d < l.dim; ++d) to[d] = sums[d] / worker.total[r];
    }
  }
}

float* Session::parts_of(int64_t token) const {
  return reinterpret_cast<float*>(splits_.data()) + token * most_heads_ * kMostSplits * (widest_head_ + 2);
}

void Session::merge_splits(const Input& input, const float* of_head, int64_t splits, float* to) const {
  const int64_t dim = padded_head(input.head);
  for (int64_t head = 0; head < input.width / input.head; ++head, to += input.head) {
    const float* const parts = of_head + head * splits * (dim + 2);
    float most = -1e30f, total = 0;
    for (int64_t s = 0; s < splits; ++s)
      if (!(parts[s * (dim + 2)] <= most)) most = parts[s * (dim + 2)];
    std::fill(to, to + input.head, 0.0f);
    for (int64_t s = 0; s < splits; ++s) {
      const float* const part = parts + s * (dim + 2);
      const float weight = std::exp(part[0] - most);
      total += weight * part[1];
      for (int64_t d = 0; d < input.head; ++d) to[d] += weight * part[2 + d];
    }
    for (int64_t d = 0; d < input.head; ++d) to[d] /= total;
  }
}

}  // namespace trimtab
