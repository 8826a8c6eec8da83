// A model as a list of steps, each of which needs what the ones before it made and nothing of its own kind.
//
// A step of products has inputs (a buffer, normalised, multiplied by a gate, rotated), integer forms of these that its products
// share, and products whose tiles are handed out to threads as one range. Compositions of weights become more steps.
#pragma once

#include <vector>

#include "trimtab/linear.h"
#include "trimtab/model.h"

namespace trimtab {

struct Input {
  int buffer = 0;
  const Norm* norm = nullptr;        // applied first
  bool curved = false;               // curve(gate) * buffer, or curve(buffer) without a gate
  int gate = -1;                     // a buffer
  Curve curve = Curve::silu;
  int64_t head = 0;                  // of attention: the width of a head; its parts may have to be merged
  std::vector<const Rotation*> rotations;
  int64_t width = 0;
  bool plain() const { return !norm && !curved && rotations.empty(); }
  bool operator==(const Input& other) const;
};

struct Integers {  // or bfloats: a form of an input; the layout is that of this matrix and of all that are like it
  int input;
  const Tiles* layout;
};

struct Product {
  const Tiles* matrix;
  const float* bias;
  int input;
  int integers;  // -1: from floats, as is always done for one token and a plain matrix
  int out;       // buffer
  bool add;      // to what is there
  int64_t first;  // tile, of all in the step
  int64_t spare;  // where its sums wait until they are added: floats per token, of all in the step
};

// What a step's time is told under. `inputs`: norms, curves, rotations and rounding of what enters products; `choice`: all that comes
// after the head.
enum class Stage : int { embedding, inputs, qkv, attention, output, wide, narrow, head, choice };
constexpr int kStages = 9;

struct Step {
  enum class Kind { begin, products, attention, add_norm, normalize } kind = Kind::products;
  Stage stage = Stage::inputs;
  int64_t layer = 0;
  std::vector<Input> inputs;
  std::vector<Integers> integers;
  std::vector<Product> products;
  int64_t tiles = 0, spare = 0;
  int64_t largest_tile = 0;  // bytes
  // add_norm: buffer `to` += norm(buffer `from`); normalize: buffer `to` in place.
  int from = 0, to = 0;
  const Norm* norm = nullptr;
};

struct Program {
  // Buffers that always exist; those of compositions come after them.
  enum : int { kHidden, kBranch, kQ, kK, kV, kAttended, kGate, kUp, kLogits, kFirstOfCompositions };

  Program(const Model& model, Activations activations, const Kernels& kernels);

  std::vector<Step> steps;
  std::size_t body = 0;         // steps before the head
  std::vector<int64_t> widths;  // of buffers
};

}  // namespace trimtab
