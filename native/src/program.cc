#include "trimtab/program.h"

#include <algorithm>

namespace trimtab {
namespace {

// What activations are rounded to before they enter a product.
struct Rounding {
  Activations activations;
  const Kernels& kernels;

  // The head sees few tokens, and what it rounds nothing evens out: where it is plain, it stays exact.
  bool applies(const Tiles& matrix, int out) const {
    if (activations == Activations::exact) return false;
    return matrix.store == Store::codes || (out != Program::kLogits && takes_bfloats(matrix, kernels));
  }
};

// The steps that one group of weights with a common start needs. Weights that are plain matrices need one.
class Group {
 public:
  Group(Program& program, const Rounding& rounding) : program_(program), rounding_(rounding) {}

  // out (+)= weight applied to input.
  void add(const Linear& weight, const Input& input, int out, bool onto) {
    widen(out, weight.out);
    place(weight, input, 0, 0, out, onto, weight.bias.empty() ? nullptr : weight.bias.data());
  }

  void finish(Stage stage) {
    for (Step& step : steps_) {
      step.stage = stage;
      program_.steps.push_back(std::move(step));
    }
  }

 private:
  void widen(int buffer, int64_t width) {
    const auto needed = static_cast<std::size_t>(buffer) + 1;
    if (program_.widths.size() < needed) program_.widths.resize(needed, 0);
    int64_t& now = program_.widths[static_cast<std::size_t>(buffer)];
    now = std::max(now, width);
  }

  // Takes the input at step `at` or later, and writes in step `earliest` or later. Returns the step that writes last.
  std::size_t place(const Linear& weight, Input input, std::size_t at, std::size_t earliest, int out, bool onto,
                    const float* bias) {
    switch (weight.kind) {
      case Linear::Kind::rotated:
        input.rotations.push_back(&weight.rotation);
        return place(weight.parts[0], input, at, earliest, out, onto, bias);
      case Linear::Kind::sum: {
        std::size_t last = place(weight.parts[0], input, at, earliest, out, onto, bias);
        for (std::size_t i = 1; i < weight.parts.size(); ++i)
          last = place(weight.parts[i], input, at, last + 1, out, true, nullptr);
        return last;
      }
      case Linear::Kind::chain:
        for (std::size_t i = weight.parts.size() - 1; i > 0; --i) {
          const int made = Program::kFirstOfCompositions + temporaries_++;
          widen(made, weight.parts[i].out);
          at = place(weight.parts[i], input, at, 0, made, false, nullptr) + 1;
          input = Input{};
          input.buffer = made;
          input.width = weight.parts[i].out;
        }
        return place(weight.parts[0], input, at, earliest, out, onto, bias);
      default:
        break;
    }
    const std::size_t step = std::max(at, earliest);
    if (steps_.size() <= step) steps_.resize(step + 1);
    product(steps_[step], weight.matrix->tiles(), input, out, onto, bias);
    return step;
  }

  void product(Step& step, const Tiles& matrix, const Input& input, int out, bool onto, const float* bias) {
    const auto known = std::find(step.inputs.begin(), step.inputs.end(), input);
    const int index = static_cast<int>(known - step.inputs.begin());
    if (known == step.inputs.end()) step.inputs.push_back(input);
    int integers = -1;
    if (rounding_.applies(matrix, out)) {
      const auto same = [&](const Integers& i) {
        return i.input == index && i.layout->store == matrix.store && i.layout->group == matrix.group &&
               i.layout->padded == matrix.padded && planes(*i.layout) == planes(matrix);
      };
      const auto form = std::find_if(step.integers.begin(), step.integers.end(), same);
      integers = static_cast<int>(form - step.integers.begin());
      if (form == step.integers.end()) step.integers.push_back({index, &matrix});
    }
    step.products.push_back({&matrix, bias, index, integers, out, onto, step.tiles, step.spare});
    step.tiles += matrix.tiles;
    if (onto) step.spare += matrix.out;
    step.largest_tile = std::max(step.largest_tile, matrix.tile_bytes);
  }

  Program& program_;
  const Rounding& rounding_;
  std::vector<Step> steps_;
  int temporaries_ = 0;
};

Input from(int buffer, int64_t width, const Norm* norm = nullptr) {
  Input input;
  input.buffer = buffer;
  input.width = width;
  input.norm = norm && norm->there ? norm : nullptr;
  return input;
}

class Builder {
 public:
  Builder(Program& program, const Model& model, const Rounding& rounding)
      : program_(program), model_(model), rounding_(rounding) {}

  void layer(int64_t index) {
    const Layer& l = model_.layers[static_cast<std::size_t>(index)];
    Group qkv(program_, rounding_);
    const Input start = from(Program::kHidden, model_.width(), &l.before_attention);
    qkv.add(l.q, start, Program::kQ, false);
    qkv.add(l.k, start, Program::kK, false);
    qkv.add(l.v, start, Program::kV, false);
    qkv.finish(Stage::qkv);
    if (l.wide_norms) {
      normalize(Program::kQ, l.q_norm);
      normalize(Program::kK, l.k_norm);
    }
    Step attention;
    attention.kind = Step::Kind::attention;
    attention.stage = Stage::attention;
    attention.layer = index;
    program_.steps.push_back(attention);
    if (l.parallel) wide_part(l);
    Input attended = from(Program::kAttended, l.heads * l.dim);
    attended.head = l.dim;
    widen(Program::kAttended, attended.width);
    join(l.o, attended, l.after_attention, index, Stage::output);
    if (!l.parallel) wide_part(l);
    Input inner = from(Program::kUp, l.up.out);
    inner.curved = true;
    inner.curve = l.curve;
    inner.gate = l.gate.there() ? static_cast<int>(Program::kGate) : -1;
    join(l.down, inner, l.after_mlp, index, Stage::narrow);
  }

  void head() {
    program_.body = program_.steps.size();
    Group group(program_, rounding_);
    group.add(model_.head, from(Program::kHidden, model_.width(), &model_.last), Program::kLogits, false);
    group.finish(Stage::head);
  }

 private:
  void widen(int buffer, int64_t width) {
    int64_t& now = program_.widths[static_cast<std::size_t>(buffer)];
    now = std::max(now, width);
  }

  void normalize(int buffer, const Norm& norm) {
    if (!norm.there) return;
    Step step;
    step.kind = Step::Kind::normalize;
    step.to = buffer;
    step.norm = &norm;
    program_.steps.push_back(step);
  }

  void wide_part(const Layer& l) {
    const Input start = from(Program::kHidden, model_.width(), &l.before_mlp);
    Group group(program_, rounding_);
    if (l.gate.there()) group.add(l.gate, start, Program::kGate, false);
    group.add(l.up, start, Program::kUp, false);
    group.finish(Stage::wide);
  }

  // hidden += weight(input), or its norm.
  void join(const Linear& weight, const Input& input, const Norm& after, int64_t index, Stage stage) {
    Group group(program_, rounding_);
    group.add(weight, input, after.there ? Program::kBranch : Program::kHidden, !after.there);
    const std::size_t first = program_.steps.size();
    group.finish(stage);
    for (std::size_t i = first; i < program_.steps.size(); ++i) program_.steps[i].layer = index;
    if (!after.there) return;
    Step step;
    step.kind = Step::Kind::add_norm;
    step.from = Program::kBranch;
    step.to = Program::kHidden;
    step.norm = &after;
    program_.steps.push_back(step);
  }

  Program& program_;
  const Model& model_;
  const Rounding& rounding_;
};

}  // namespace

bool Input::operator==(const Input& other) const {
  return buffer == other.buffer && norm == other.norm && gate == other.gate && curved == other.curved && curve == other.curve &&
         head == other.head && rotations == other.rotations && width == other.width;
}

Program::Program(const Model& model, Activations activations, const Kernels& kernels) {
  widths.assign(kFirstOfCompositions, 0);
  widths[kHidden] = widths[kBranch] = model.width();
  Step begin;
  begin.kind = Step::Kind::begin;
  begin.stage = Stage::embedding;
  steps.push_back(begin);
  const Rounding rounding{activations, kernels};
  Builder builder(*this, model, rounding);
  for (std::size_t i = 0; i < model.layers.size(); ++i) builder.layer(static_cast<int64_t>(i));
  builder.head();
}

}  // namespace trimtab
