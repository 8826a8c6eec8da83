#include "trimtab/model.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace trimtab {
namespace {

constexpr int64_t kWidest = 1 << 20;  // of a head, or in heads

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string shape(int64_t out, int64_t in) { return "[" + std::to_string(out) + ", " + std::to_string(in) + "]"; }

void expect(const Linear& weight, const std::string& name, int64_t out, int64_t in) {
  if (!weight.there()) refuse(name + " is missing");
  if (weight.out != out || weight.in != in)
    refuse(name + " is " + shape(weight.out, weight.in) + ", the model needs " + shape(out, in));
  if (!weight.bias.empty() && static_cast<int64_t>(weight.bias.size()) != out)
    refuse(name + " has a bias of " + std::to_string(weight.bias.size()) + " entries, it has " + std::to_string(out) + " rows");
}

void expect(const Norm& norm, const std::string& name, int64_t width) {
  if (!norm.there) return;
  for (const Numbers* numbers : {&norm.weight, &norm.bias})
    if (static_cast<int64_t>(numbers->size()) != width && (numbers == &norm.weight || !numbers->empty()))
      refuse(name + " has " + std::to_string(numbers->size()) + " entries, the model needs " + std::to_string(width));
}

void expect(const Table& table, const std::string& name, int64_t width) {
  if (!table.data || table.rows < 1 || table.width != width) refuse(name + " must have rows of " + std::to_string(width));
}

void check(const Layer& layer, const std::string& name, int64_t width, const std::vector<Rope>& ropes) {
  for (const int64_t n : {layer.heads, layer.kv_heads, layer.dim})
    if (n < 1 || n > kWidest) refuse(name + ": heads and their width must be from 1 to " + std::to_string(kWidest));
  if (layer.heads % layer.kv_heads)
    refuse(name + ": " + std::to_string(layer.heads) + " heads cannot share " + std::to_string(layer.kv_heads) +
           " key/value heads evenly");
  const int64_t q = layer.heads * layer.dim, kv = layer.kv_heads * layer.dim;
  expect(layer.q, name + " q", q, width);
  expect(layer.k, name + " k", kv, width);
  expect(layer.v, name + " v", kv, width);
  expect(layer.o, name + " o", width, q);
  expect(layer.q_norm, name + " q norm", layer.wide_norms ? q : layer.dim);
  expect(layer.k_norm, name + " k norm", layer.wide_norms ? kv : layer.dim);
  expect(layer.up, name + " up", layer.up.out, width);
  if (layer.gate.there()) expect(layer.gate, name + " gate", layer.up.out, width);
  expect(layer.down, name + " down", width, layer.up.out);
  for (const Norm* norm : {&layer.before_attention, &layer.after_attention, &layer.before_mlp, &layer.after_mlp})
    expect(*norm, name + " norm", width);
  if (layer.rope >= static_cast<int64_t>(ropes.size())) refuse(name + ": there is no rope " + std::to_string(layer.rope));
  if (layer.rope >= 0 && static_cast<int64_t>(2 * ropes[static_cast<std::size_t>(layer.rope)].frequency.size()) > layer.dim)
    refuse(name + ": more rotary frequencies than pairs in a head");
  if (layer.window < 0) refuse(name + ": a window has at least one position");
  if (layer.parallel && (layer.after_attention.there || layer.after_mlp.there))
    refuse(name + ": norms behind parallel branches are not covered");
}

}  // namespace

void rotate(const Rotation& r, int64_t n, float* x, float* room, const Functions& functions) {
  if (!r.signs.empty())
    for (int64_t i = 0; i < n; ++i) x[i] *= r.signs[static_cast<std::size_t>(i)];
  const int64_t rest = r.block / r.base;
  for (int64_t start = 0; r.base > 1 && start < n; start += r.block) {
    std::memcpy(room, x + start, static_cast<std::size_t>(r.block) * 4);
    for (int64_t i = 0; i < r.base; ++i) {
      float* const to = x + start + i * rest;
      std::memset(to, 0, static_cast<std::size_t>(rest) * 4);
      for (int64_t j = 0; j < r.base; ++j) {
        const float sign = r.matrix[static_cast<std::size_t>(i * r.base + j)];
        const float* const from = room + j * rest;
        for (int64_t k = 0; k < rest; ++k) to[k] += sign * from[k];
      }
    }
  }
  functions.mix(x, rest, n);
  const float factor = 1.0f / std::sqrt(static_cast<float>(r.block));
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

Linear Linear::leaf(std::shared_ptr<const Matrix> matrix) {
  if (!matrix) refuse("a weight needs a matrix");
  Linear made;
  made.out = matrix->tiles().out;
  made.in = matrix->tiles().in;
  made.matrix = std::move(matrix);
  return made;
}

Linear Linear::sum(std::vector<Linear> parts) {
  if (parts.empty()) refuse("a sum has at least one part");
  Linear made;
  made.kind = Kind::sum;
  made.out = parts[0].out;
  made.in = parts[0].in;
  for (const Linear& part : parts)
    if (part.out != made.out || part.in != made.in)
      refuse("a sum of " + shape(made.out, made.in) + " and " + shape(part.out, part.in));
  made.parts = std::move(parts);
  return made;
}

Linear Linear::chain(std::vector<Linear> factors) {
  if (factors.empty()) refuse("a chain has at least one factor");
  Linear made;
  made.kind = Kind::chain;
  made.out = factors.front().out;
  made.in = factors.back().in;
  for (std::size_t i = 1; i < factors.size(); ++i)
    if (factors[i - 1].in != factors[i].out)
      refuse("factors " + shape(factors[i - 1].out, factors[i - 1].in) + " and " + shape(factors[i].out, factors[i].in) +
             " do not meet");
  made.parts = std::move(factors);
  return made;
}

Linear Linear::rotated(Linear inner, Rotation r) {
  if (!inner.there()) refuse("a rotation needs a weight");
  if (r.block < 1 || inner.in % r.block || r.base < 1 || r.block % r.base || r.base > 2048)
    refuse("a block of " + std::to_string(r.block) + " cannot turn " + std::to_string(inner.in) + " inputs");
  const int64_t rest = r.block / r.base;
  if (rest & (rest - 1)) refuse("a block is a base times a power of two");
  if (static_cast<int64_t>(r.matrix.size()) != (r.base == 1 ? 0 : r.base * r.base)) refuse("the base has the wrong size");
  if (!r.signs.empty() && static_cast<int64_t>(r.signs.size()) != inner.in) refuse("signs must be as many as inputs");
  Linear made;
  made.kind = Kind::rotated;
  made.out = inner.out;
  made.in = inner.in;
  made.rotation = std::move(r);
  made.parts.push_back(std::move(inner));
  return made;
}

int64_t Linear::bytes() const {
  int64_t total = matrix ? matrix->bytes() : 0;
  for (const Linear& part : parts) total += part.bytes();
  return total;
}

void Table::row(int64_t index, float* to) const {
  const int64_t each = store == Store::float32 ? 4 : 2;
  const uint8_t* from = data + index * width * each;
  if (store == Store::float32) {
    std::memcpy(to, from, static_cast<std::size_t>(width) * 4);
    return;
  }
  for (int64_t i = 0; i < width; ++i) {
    uint16_t half;
    std::memcpy(&half, from + 2 * i, 2);
    uint32_t bits = uint32_t{half} << 16;
    if (store == Store::float16) {
      const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
      float made;
      bits = size >= 0x7c00u ? size << 13 | 0x7f800000u : (size << 13) + 0x38000000u;
      std::memcpy(&made, &bits, 4);
      if (size < 0x400u) made = static_cast<float>(size) * 0x1p-24f;
      std::memcpy(&bits, &made, 4);
      bits |= sign;
    }
    std::memcpy(to + i, &bits, 4);
  }
}

int64_t Model::bytes() const {
  int64_t total = head.bytes();
  for (const Layer& layer : layers)
    for (const Linear* weight : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      total += weight->bytes();
  return total;
}

void Model::check() const {
  expect(embedding, "the embedding", embedding.width);
  if (context < 1) refuse("the context must be at least one position");
  if (positions.data) {
    expect(positions, "the table of positions", width());
    if (first_position < 0 || context > positions.rows - first_position)
      refuse("the table of positions has " + std::to_string(positions.rows) + " rows, too few for a context of " +
             std::to_string(context));
  }
  expect(last, "the last norm", width());
  expect(head, "the head", head.out, width());
  for (std::size_t i = 0; i < layers.size(); ++i) trimtab::check(layers[i], "layer " + std::to_string(i), width(), ropes);
}

}  // namespace trimtab
