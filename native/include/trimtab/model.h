// A decoder-only model as numbers and matrices: what a layer is, without what it is called anywhere.
//
// One description covers the families, because they differ in a handful of choices: which norms there are and where, whether
// heads are normalised, what the MLP's curve is, how positions enter. `Model::check` compares every size with every other one, so
// that a session may use all of them without looking.
#pragma once

#include <memory>
#include <vector>

#include "trimtab/functions.h"
#include "trimtab/matrix.h"

namespace trimtab {

using Numbers = std::vector<float>;

struct Norm {
  bool there = false;
  bool centred = false;  // a layer norm; otherwise by the root mean square
  Numbers weight, bias;  // bias: empty for none
  float epsilon = 0;
};

// x R, R = diag(signs) (I (x) B (x) S) / sqrt(block): S of the powers of two, B [base, base] with entries +-1.
struct Rotation {
  int64_t block = 1, base = 1;
  Numbers signs;   // [in], or empty for ones
  Numbers matrix;  // [base, base], empty for base 1
};

// x [n], turned in place. room: n floats.
void rotate(const Rotation& rotation, int64_t n, float* x, float* room, const Functions& functions);

// A weight: a matrix, or a composition of weights. Mirrors the formats of files.
class Linear {
 public:
  static Linear leaf(std::shared_ptr<const Matrix> matrix);
  static Linear sum(std::vector<Linear> parts);      // of one shape
  static Linear chain(std::vector<Linear> factors);  // outermost output first
  static Linear rotated(Linear inner, Rotation rotation);

  Linear() = default;
  bool there() const { return out > 0; }
  int64_t bytes() const;  // that one product reads

  enum class Kind { leaf, sum, chain, rotated } kind = Kind::leaf;
  int64_t out = 0, in = 0;
  std::shared_ptr<const Matrix> matrix;
  std::vector<Linear> parts;
  Rotation rotation;
  Numbers bias;  // [out], or empty; of the outermost weight only
};

// Rotary positions: pairs (i, i + n) of the first 2 n entries of a head turn by position * frequency[i].
struct Rope {
  Numbers frequency;  // [n]
  float factor = 1;   // of cosines and sines
};

struct Layer {
  Norm before_attention, after_attention, before_mlp, after_mlp;
  Linear q, k, v, o;
  Norm q_norm, k_norm;
  bool wide_norms = false;  // q and k are normalised over all heads together
  int64_t heads = 0, kv_heads = 0, dim = 0;
  float scale = 1, softcap = 0;  // of scores; softcap 0: none
  int64_t window = 0;            // positions that a query sees, itself included; 0: all
  int64_t rope = -1;             // index of Model::ropes; -1: none
  Linear gate, up, down;         // gate may be missing
  Curve curve = Curve::silu;
  bool parallel = false;  // attention and MLP both start from the layer's input
};

// A table of vectors, one per row, in memory of somebody else that `owner` keeps alive.
struct Table {
  const uint8_t* data = nullptr;
  Store store = Store::float32;
  int64_t rows = 0, width = 0;
  std::shared_ptr<const void> owner;

  void row(int64_t index, float* to) const;
};

struct Model {
  Table embedding, positions;  // positions: learned ones, or none
  int64_t first_position = 0;  // row of `positions` for position 0
  float embedding_scale = 1;
  std::vector<Rope> ropes;
  std::vector<Layer> layers;
  Norm last;
  Linear head;
  float logit_softcap = 0, logit_scale = 1;
  int64_t context = 0;

  int64_t width() const { return embedding.width; }
  int64_t vocabulary() const { return head.out; }
  int64_t bytes() const;      // of weights, per token
  void check() const;         // throws std::invalid_argument
};

}  // namespace trimtab
