// Grams and attention in bfloat16 against double precision. Inputs lie in allocations of exactly their size, so that every entry
// too many is seen; what is not to be written is checked afterwards.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "trimtab/linear.h"
#include "trimtab/passes.h"

using namespace trimtab;
using namespace check;

namespace {

constexpr uint16_t kNan = 0x7fc0;

double wide(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float made;
  std::memcpy(&made, &word, 4);
  return made;
}

uint16_t narrow(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return static_cast<uint16_t>(word >> 16);
}

std::vector<uint16_t> normal(Random& random, int64_t n) {
  std::normal_distribution<float> draw;
  std::vector<uint16_t> made(static_cast<std::size_t>(n));
  for (uint16_t& x : made) x = narrow(draw(random));
  return made;
}

std::size_t place(int64_t i) { return static_cast<std::size_t>(i); }

// Small integers: sums are exact, whatever their order.
void exact_grams(Random& random, const std::string& set, int64_t tokens, int64_t columns, int64_t gap) {
  const int64_t row = columns + gap;
  std::vector<uint16_t> x(place((tokens - 1) * row + columns), kNan);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < columns; ++c) x[place(t * row + c)] = narrow(static_cast<float>(draw(random, -8, 8)));
  std::vector<float> total(place(columns * columns), 3.0f);
  gram(x.data(), row, tokens, columns, total.data(), passes(kernels(set)), static_cast<int>(draw(random, 1, 3)));
  bool right = true;
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 3;
      for (int64_t t = 0; t < tokens; ++t) sum += wide(x[place(t * row + i)]) * wide(x[place(t * row + j)]);
      right = right && total[place(i * columns + j)] == static_cast<float>(sum);
    }
  expect(right, set + " gram of " + std::to_string(tokens) + " x " + std::to_string(columns));
}

struct Shape {
  int64_t batches, heads, kept_heads, queries, keys, dim, value_dim;
  bool causal;
};

// Rows of one query, in double precision; also the sum of |weight * value|, to which rounding is relative.
void reference(const WindowAttention& a, int64_t b, int64_t h, int64_t i, std::vector<double>& out, std::vector<double>& size) {
  const int64_t kept = h / (a.heads / a.kept_heads), last = a.causal && i + 1 < a.keys ? i + 1 : a.keys;
  std::vector<double> weights(place(last));
  double most = -std::numeric_limits<double>::infinity(), total = 0;
  for (int64_t j = 0; j < last; ++j) {
    double sum = 0;
    for (int64_t d = 0; d < a.dim; ++d)
      sum += wide(a.q.data[b * a.q.batch + h * a.q.head + i * a.q.token + d]) *
             wide(a.k.data[b * a.k.batch + kept * a.k.head + j * a.k.token + d]);
    weights[place(j)] = sum * static_cast<double>(a.scale);
    most = std::fmax(most, weights[place(j)]);
  }
  for (double& w : weights) total += w = std::exp(w - most);
  for (int64_t d = 0; d < a.value_dim; ++d) {
    out[place(d)] = size[place(d)] = 0;
    for (int64_t j = 0; j < last; ++j) {
      const double part = weights[place(j)] / total * wide(a.v.data[b * a.v.batch + kept * a.v.head + j * a.v.token + d]);
      out[place(d)] += part;
      size[place(d)] += std::fabs(part);
    }
  }
}

// [batch][token][head][dim], as models make it.
template <class Number>
Heads<Number> laid_out(std::vector<uint16_t>& data, int64_t tokens, int64_t heads, int64_t dim) {
  return {data.data(), tokens * heads * dim, dim, heads * dim};
}

void attends(Random& random, const std::string& set, const Shape& s) {
  auto q = normal(random, s.batches * s.queries * s.heads * s.dim), k = normal(random, s.batches * s.keys * s.kept_heads * s.dim);
  auto v = normal(random, s.batches * s.keys * s.kept_heads * s.value_dim);
  std::vector<uint16_t> out(place(s.batches * s.queries * s.heads * s.value_dim), kNan);
  const WindowAttention call{laid_out<const uint16_t>(q, s.queries, s.heads, s.dim),
                             laid_out<const uint16_t>(k, s.keys, s.kept_heads, s.dim),
                             laid_out<const uint16_t>(v, s.keys, s.kept_heads, s.value_dim),
                             laid_out<uint16_t>(out, s.queries, s.heads, s.value_dim),
                             s.batches, s.heads, s.kept_heads, s.queries, s.keys, s.dim, s.value_dim, 0.3f, s.causal};
  attention(call, passes(kernels(set)), static_cast<int>(draw(random, 1, 3)));
  bool right = true;
  std::vector<double> sum(place(s.value_dim)), size(place(s.value_dim));
  for (int64_t b = 0; b < s.batches; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.queries; ++i) {
        reference(call, b, h, i, sum, size);
        const uint16_t* const row = call.out.data + b * call.out.batch + h * call.out.head + i * call.out.token;
        for (int64_t d = 0; d < s.value_dim; ++d) {
          const double off = std::fabs(wide(row[d]) - sum[place(d)]);
          // Half a unit of bfloat16 for each weight and for the result, and a little for sums in float32.
          right = right && off <= (0x1p-8 + 1e-5) * size[place(d)] + 0x1p-8 * std::fabs(sum[place(d)]) + 1e-30;
        }
      }
  expect(right, set + " attention " + std::to_string(s.queries) + " to " + std::to_string(s.keys) + ", width " +
                    std::to_string(s.dim) + (s.causal ? ", causal" : ""));
}

// A score that is not a number makes its own row NaN and no other.
void not_a_number(Random& random, const std::string& set) {
  auto q = normal(random, 20 * 16), k = normal(random, 20 * 16), v = normal(random, 20 * 16);
  std::vector<uint16_t> out(20 * 16);
  q[7 * 16 + 3] = kNan;
  const WindowAttention call{laid_out<const uint16_t>(q, 20, 1, 16),
                             laid_out<const uint16_t>(k, 20, 1, 16),
                             laid_out<const uint16_t>(v, 20, 1, 16),
                             laid_out<uint16_t>(out, 20, 1, 16),
                             1, 1, 1, 20, 20, 16, 16, 1.0f, true};
  attention(call, passes(kernels(set)), 1);
  bool right = true;
  for (int64_t i = 0; i < 20 * 16; ++i) right = right && std::isnan(wide(out[place(i)])) == (i / 16 == 7);
  expect(right, set + " attention of NaN");
}

}  // namespace

void passes_tests(Random& random, int rounds) {
  for (const std::string& set : instruction_sets()) {
    for (const int64_t tokens : {1, 2, 17, 513, 1027}) exact_grams(random, set, tokens, draw(random, 1, 70), draw(random, 0, 3));
    for (const int64_t columns : {1, 15, 64, 65, 130, 207}) exact_grams(random, set, 9, columns, 0);
    for (const bool causal : {false, true}) {
      attends(random, set, {1, 1, 1, 1, 1, 16, 16, causal});
      attends(random, set, {2, 6, 2, 67, 67, 64, 64, causal});
      attends(random, set, {1, 2, 1, 5, 131, 80, 16, causal});
      attends(random, set, {1, 1, 1, 140, 3, 16, 48, causal});
      attends(random, set, {1, 2, 2, 261, 261, 32, 32, causal});
    }
    not_a_number(random, set);
    for (int round = 0; round < rounds; ++round) {
      const int64_t kept = draw(random, 1, 3), queries = draw(random, 1, 150);
      attends(random, set, {draw(random, 1, 2), kept * draw(random, 1, 3), kept, queries,
                            draw(random, 0, 1) ? queries : draw(random, 1, 150), 16 * draw(random, 1, 5), 16 * draw(random, 1, 5),
                            draw(random, 0, 1) != 0});
    }
  }
}
