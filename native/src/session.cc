#include "trimtab/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "session_worker.h"

namespace trimtab {
namespace {

constexpr int64_t kChunkBytes = 64 << 10;  // of weights that a thread takes at once where chunks are shortest, at most

Activations checked(const Model& model, Activations activations) {
  model.check();
  return activations;
}

}  // namespace

Session::Session(std::shared_ptr<const Model> model, const Kernels& kernels, const Options& options)
    : model_(std::move(model)),
      kernels_(kernels),
      functions_(functions(kernels)),
      options_(options),
      program_(*model_, checked(*model_, options.activations), kernels),
      cache_(*model_, options.kept) {
  options_.threads = std::min(std::max(options.threads, 1), cores());
  options_.chunk = std::min<int64_t>(std::max<int64_t>(options.chunk, 1), 4096);
  for (const Layer& l : model_->layers) widest_head_ = std::max(widest_head_, padded_head(l.dim));
  for (const Rope& rope : model_->ropes) most_turns_ = std::max(most_turns_, static_cast<int64_t>(rope.frequency.size()));
  for (int i = 0; i < options_.threads; ++i) workers_.push_back(std::make_unique<Worker>(widest_head_));
  logits_ = Buffer(size(model_->vocabulary() * 4));
  for (const Layer& l : model_->layers) most_heads_ = std::max(most_heads_, l.heads);
  splits_ = Buffer(size(most_heads_ * kMostSplits * (widest_head_ + 2) * 4));
  make_room(1);
}

Session::~Session() = default;

void Session::make_room(int64_t tokens) {
  if (tokens <= room_) return;
  buffers_.resize(program_.widths.size());
  for (std::size_t i = 0; i < buffers_.size(); ++i)
    if (static_cast<int>(i) != Program::kLogits) buffers_[i].grow(size(program_.widths[i] * tokens * 4));
  turns_.grow(size(static_cast<int64_t>(model_->ropes.size()) * tokens * most_turns_ * 2 * 4));
  const Seat somebody;
  Run run;
  run.tokens = tokens;
  run.seats = &somebody;  // which takes the most room
  int64_t spare = 0, memory = 0, scratch = 0;
  for (std::size_t i = 0; i < program_.steps.size(); ++i) {
    const Step& step = program_.steps[i];
    spare = std::max(spare, step.spare * tokens * 4);
    memory = std::max(memory, integers_place(run, step, step.integers.size()));
    for (const Input& input : step.inputs)
      if (!input.rotations.empty()) scratch = std::max(scratch, input.width * 4);
    for (const Product& p : step.products)
      scratch = std::max({scratch, exact_scratch(*p.matrix, tokens), fast_scratch(*p.matrix, tokens)});
  }
  scratch = std::max(scratch, program_.widths[Program::kHidden] * 4);
  spare_.grow(size(spare));
  if (tokens > 1) shared_.grow(size(memory));
  for (const auto& worker : workers_) {
    if (tokens == 1) worker->memory.grow(size(memory));
    worker->scratch.grow(size(scratch));
  }
  room_ = tokens;
}

// ---- what callers see

void Session::read(const int32_t* ids, int64_t count, float* logits, bool every) {
  const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock.owns_lock()) throw std::runtime_error("the session is in use by another thread; open one per thread");
  if (count < 1) throw std::invalid_argument("there are no tokens; a prompt needs at least one");
  if (count > model_->context - length())
    throw std::invalid_argument(std::to_string(length() + count) + " tokens are more than the context of " +
                                std::to_string(model_->context));
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= model_->embedding.rows || ids[i] >= model_->vocabulary())
      throw std::invalid_argument("token id " + std::to_string(ids[i]) + " is not in the vocabulary of " +
                                  std::to_string(model_->vocabulary()));
  const std::size_t before = history_.size();
  try {
    if (every && read_ < length()) catch_up(nullptr, false);
    history_.insert(history_.end(), ids, ids + count);
    has_logits_ = false;
    catch_up(every ? logits : reinterpret_cast<float*>(logits_.data()), every);
  } catch (...) {
    history_.resize(before);
    read_ = std::min(read_, length());
    has_logits_ = false;
    throw;
  }
  if (every) return;
  has_logits_ = true;
  if (logits) std::memcpy(logits, logits_.data(), size(model_->vocabulary() * 4));
}

void Session::generate(Sampler& sampler, int64_t count, const std::vector<int32_t>& stop, std::vector<int32_t>& made) {
  const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock.owns_lock()) throw std::runtime_error("the session is in use by another thread; open one per thread");
  if (history_.empty()) throw std::invalid_argument("there is nothing to continue; a prompt needs at least one token");
  float* const logits = reinterpret_cast<float*>(logits_.data());
  for (int64_t i = 0; i < count && length() < model_->context; ++i) {
    if (!has_logits_) {
      read_ = std::min(read_, length() - 1);
      catch_up(logits, false);
    }
    has_logits_ = false;
    const int32_t id = pick(sampler);
    history_.push_back(id);
    made.push_back(id);
    if (std::find(stop.begin(), stop.end(), id) != stop.end()) return;
  }
}

// The token that comes after `logits_`.
int32_t Session::pick(Sampler& sampler) {
  const Lap lap(spent(*workers_[0], Stage::choice));
  const int64_t known = std::min(model_->vocabulary(), model_->embedding.rows);
  return sampler.pick(reinterpret_cast<float*>(logits_.data()), known, history_, functions_);
}

bool Session::belongs(const Session& other) const {
  return model_ == other.model_ && &kernels_ == &other.kernels_ && options_.threads == other.options_.threads &&
         options_.activations == other.options_.activations && options_.kept == other.options_.kept;
}

void Session::generate_together(const std::vector<Session*>& sessions, const std::vector<Sampler*>& samplers, int64_t count,
                                const std::vector<int32_t>& stop, std::vector<std::vector<int32_t>>& made) {
  if (sessions.empty() || samplers.size() != sessions.size())
    throw std::invalid_argument("there must be sessions, and as many samplers");
  std::vector<std::unique_lock<std::mutex>> locks;
  for (std::size_t i = 0; i < sessions.size(); ++i) {
    if (std::find(sessions.begin(), sessions.begin() + static_cast<std::ptrdiff_t>(i), sessions[i]) -
            sessions.begin() < static_cast<std::ptrdiff_t>(i) || !sessions[0]->belongs(*sessions[i]))
      throw std::invalid_argument("sessions that go on together are different ones, made by `another`");
    locks.emplace_back(sessions[i]->busy_, std::try_to_lock);
    if (!locks.back().owns_lock()) throw std::runtime_error("the session is in use by another thread; open one per thread");
    if (sessions[i]->history_.empty())
      throw std::invalid_argument("there is nothing to continue; a prompt needs at least one token");
  }
  made.assign(sessions.size(), {});
  std::vector<std::size_t> going;
  for (std::size_t i = 0; i < sessions.size(); ++i) going.push_back(i);
  for (int64_t step = 0; step < count; ++step) {
    const auto full = [&](std::size_t i) { return sessions[i]->length() >= sessions[i]->model_->context; };
    going.erase(std::remove_if(going.begin(), going.end(), full), going.end());
    if (going.empty()) return;
    std::vector<Session*> silent;
    for (const std::size_t i : going)
      if (!sessions[i]->has_logits_) silent.push_back(sessions[i]);
    sessions[0]->step_together(silent);
    const auto said = [&](std::size_t i) {
      Session& s = *sessions[i];
      const int32_t id = s.pick(*samplers[i]);
      s.has_logits_ = false;
      s.history_.push_back(id);
      made[i].push_back(id);
      return std::find(stop.begin(), stop.end(), id) != stop.end();
    };
    going.erase(std::remove_if(going.begin(), going.end(), said), going.end());
  }
}

double* Session::spent(Worker& worker, Stage stage) const {
  return timed_ ? worker.spent + static_cast<int>(stage) : nullptr;
}

void Session::time_stages(bool on) {
  const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock.owns_lock()) throw std::runtime_error("the session is in use by another thread; open one per thread");
  timed_ = on;
  if (!on) return;
  running_ = 0;
  for (const auto& worker : workers_) std::fill(worker->spent, worker->spent + kStages, 0.0);
}

std::vector<double> Session::stages() const {
  constexpr auto choice = static_cast<std::size_t>(Stage::choice);
  std::vector<double> seconds(kStages + 1, 0.0);
  double busy = 0;
  for (const auto& worker : workers_)
    for (std::size_t i = 0; i < kStages; ++i) seconds[i] += worker->spent[i];
  for (std::size_t i = 0; i < choice; ++i) busy += seconds[i] /= options_.threads;
  seconds[kStages] = std::max(0.0, running_ - busy);
  return seconds;
}

void Session::truncate(int64_t length) {
  const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock.owns_lock()) throw std::runtime_error("the session is in use by another thread; open one per thread");
  if (length < 0 || length > this->length())
    throw std::invalid_argument("the session has " + std::to_string(this->length()) + " tokens, it cannot keep " +
                                std::to_string(length));
  if (length == this->length()) return;
  history_.resize(size(length));
  read_ = std::min(read_, length);
  has_logits_ = false;
}

// ---- runs

// Reads what is in the history and not in the cache. logits: as in `read`; null: none are wanted.
void Session::catch_up(float* logits, bool every) {
  cache_.grow(length());
  const int64_t vocabulary = model_->vocabulary();
  while (read_ < length()) {
    Run now;
    now.tokens = std::min(options_.chunk, length() - read_);
    now.position = read_;
    now.ids = history_.data() + read_;
    now.logits = logits;
    make_room(now.tokens);
    const bool last = read_ + now.tokens == length(), head = logits && (every || last);
    if (now.tokens == 1) {
      run(now, 0, head ? program_.steps.size() : program_.body);
    } else {
      run(now, 0, program_.body);
      if (head && !every) now.offset = now.tokens - 1;
      if (!every) now.tokens = 1;
      if (head) run(now, program_.body, program_.steps.size());
    }
    const Lap lap(spent(*workers_[0], Stage::choice));
    for (int64_t t = 0; head && t < now.tokens; ++t, logits += vocabulary) finish(logits, now.position + now.offset + t);
    read_ = last ? length() : read_ + std::min(options_.chunk, length() - read_);
  }
}

// What comes after the head.
void Session::finish(float* logits, int64_t position) const {
  const int64_t vocabulary = model_->vocabulary();
  if (model_->logit_scale != 1)
    for (int64_t i = 0; i < vocabulary; ++i) logits[i] *= model_->logit_scale;
  if (model_->logit_softcap > 0) functions_.cap(logits, model_->logit_softcap, vocabulary);
  if (std::isnan(functions_.largest(logits, vocabulary)))
    throw std::runtime_error("the logits of position " + std::to_string(position) +
                             " are not finite numbers; the model is damaged or overflows");
}

// Gives all of these sessions the logits of their last tokens. Those that have read everything before it do so together.
void Session::step_together(const std::vector<Session*>& sessions) {
  std::vector<Seat> seats;
  for (Session* const s : sessions) {
    s->read_ = std::min(s->read_, s->length() - 1);
    if (s->read_ < s->length() - 1) {
      s->catch_up(reinterpret_cast<float*>(s->logits_.data()), false);
      s->has_logits_ = true;
      continue;
    }
    s->cache_.grow(s->length());
    seats.push_back({s, s->read_, splits_at(s->read_)});
  }
  if (seats.size() == 1) {
    Session& s = *seats[0].session;
    s.catch_up(reinterpret_cast<float*>(s.logits_.data()), false);
    s.has_logits_ = true;
  }
  if (seats.size() < 2) return;
  const int64_t vocabulary = model_->vocabulary();
  std::vector<int32_t> ids;
  Run now;
  now.tokens = static_cast<int64_t>(seats.size());
  for (const Seat& seat : seats) {
    ids.push_back(seat.session->history_.back());
    now.splits = std::max(now.splits, seat.splits);
  }
  now.ids = ids.data();
  now.seats = seats.data();
  make_room(now.tokens);
  splits_.grow(size(now.tokens * most_heads_ * kMostSplits * (widest_head_ + 2) * 4));
  together_.grow(size(now.tokens * vocabulary * 4));
  now.logits = reinterpret_cast<float*>(together_.data());
  run(now, 0, program_.steps.size());
  const Lap lap(spent(*workers_[0], Stage::choice));
  for (std::size_t i = 0; i < seats.size(); ++i) {
    Session& s = *seats[i].session;
    std::memcpy(s.logits_.data(), now.logits + static_cast<int64_t>(i) * vocabulary, size(vocabulary * 4));
    s.finish(reinterpret_cast<float*>(s.logits_.data()), seats[i].position);
    s.read_ = s.length();
    s.has_logits_ = true;
  }
}

// How many parts the positions are in that a token at `position` looks at.
int64_t Session::splits_at(int64_t position) const {
  if (options_.threads == 1) return 1;
  int64_t heads = kMostSplits;
  for (const Layer& l : model_->layers) heads = std::min(heads, l.kv_heads);
  const int64_t wanted = (4 * options_.threads + heads - 1) / heads, pages = (position + 1) / kPage;
  return std::max<int64_t>(1, std::min({wanted, pages / 2, kMostSplits}));
}

Phase Session::main_phase(const Run& run, const Step& step) const {
  if (step.kind == Step::Kind::products) {
    const int64_t share = step.tiles / (options_.threads * 6);
    if (run.tokens == 1)
      return {step.tiles, std::max<int64_t>(1, std::min(share, kChunkBytes / std::max<int64_t>(step.largest_tile, 1))), true};
    return {step.tiles, std::max<int64_t>(kSheaf, share / kSheaf * kSheaf)};
  }
  if (step.kind != Step::Kind::attention) return {0, 1};
  const Layer& l = layer(step);
  if (run.few()) return {run.tokens * l.kv_heads * run.splits, 1};
  const int64_t each = std::max<int64_t>(1, kMostQueries / (l.heads / l.kv_heads));
  return {l.kv_heads * ((run.tokens + each - 1) / each), 1};
}

void Session::run(Run run, std::size_t first, std::size_t last) {
  const Lap lap(timed_ ? &running_ : nullptr);
  if (run.tokens == 1) run.splits = splits_at(run.position);
  phases_.clear();
  const int64_t shares = std::max<int64_t>(1, run.tokens / (options_.threads * 8));
  for (std::size_t i = first; i < last; ++i) {
    const Step& step = program_.steps[i];
    const bool alone = step.kind == Step::Kind::products || step.kind == Step::Kind::attention;
    phases_.push_back({alone && run.tokens == 1 ? 0 : run.tokens, shares});
    phases_.push_back(main_phase(run, step));
  }
  const int64_t stamps = ++runs_ * static_cast<int64_t>(program_.steps.size());
  Pool::shared().run_phases(options_.threads, phases_.data(), static_cast<int>(phases_.size()),
                            [&](int phase, int64_t begin, int64_t end, int worker) {
                              const std::size_t index = first + static_cast<std::size_t>(phase) / 2;
                              const Step& step = program_.steps[index];
                              Worker& own = *workers_[static_cast<std::size_t>(worker)];
                              if (phase % 2 == 0)
                                prepare(run, step, begin, end, own);
                              else
                                work(run, step, begin, end, own, stamps + static_cast<int64_t>(index));
                            });
}

// What is done token by token before the main phase of a step.
void Session::prepare(const Run& run, const Step& step, int64_t begin, int64_t end, Worker& worker) {
  const Lap lap(spent(worker, step.kind == Step::Kind::products ? Stage::inputs : step.stage));
  const int64_t width = model_->width();
  float* const scratch = reinterpret_cast<float*>(worker.scratch.data());
  if (step.kind == Step::Kind::products) return make_inputs(run, step, shared_.data(), begin, end, worker.scratch.data());
  for (int64_t t = begin; t < end; ++t) {
    if (step.kind == Step::Kind::begin) {
      begin_token(run, t);
    } else if (step.kind == Step::Kind::attention) {
      for (int64_t head = 0; head < layer(step).kv_heads; ++head) keep(run, step, t, head, worker);
    } else if (step.kind == Step::Kind::add_norm) {
      const Norm& n = *step.norm;
      float* const to = buffer(step.to) + t * width;
      functions_.normalize(n.centred, buffer(step.from) + t * width, n.weight.data(), n.bias.empty() ? nullptr : n.bias.data(),
                         n.epsilon, width, scratch);
      for (int64_t i = 0; i < width; ++i) to[i] += scratch[i];
    } else {
      const Norm& n = *step.norm;
      const int64_t wide = static_cast<int64_t>(n.weight.size());
      float* const x = buffer(step.to) + t * wide;
      functions_.normalize(n.centred, x, n.weight.data(), n.bias.empty() ? nullptr : n.bias.data(), n.epsilon, wide, x);
    }
  }
}

void Session::work(const Run& run, const Step& step, int64_t begin, int64_t end, Worker& worker, int64_t stamp) {
  if (step.kind == Step::Kind::attention) {
    const Lap lap(spent(worker, step.stage));
    for (int64_t item = begin; item < end; ++item)
      run.few() ? attend_one(run, step, item, worker) : attend_many(run, step, item, worker);
    return;
  }
  // The inputs of one token are so little that every thread makes its own rather than wait for another.
  if (run.tokens == 1 && worker.stamp != stamp) {
    const Lap lap(spent(worker, Stage::inputs));
    make_inputs(run, step, worker.memory.data(), 0, 1, worker.scratch.data());
    worker.stamp = stamp;
  }
  const Lap lap(spent(worker, step.stage));
  multiply(run, step, run.tokens == 1 ? worker.memory.data() : shared_.data(), begin, end, worker.scratch.data());
}

float* Session::turns(const Run& run, int64_t rope, int64_t token) const {
  return reinterpret_cast<float*>(turns_.data()) + (rope * run.tokens + token) * most_turns_ * 2;
}

void Session::begin_token(const Run& run, int64_t token) {
  const Model& m = *model_;
  const int64_t width = m.width(), position = run.at(token);
  float* const to = buffer(Program::kHidden) + token * width;
  m.embedding.row(run.ids[token], to);
  if (m.embedding_scale != 1)
    for (int64_t i = 0; i < width; ++i) to[i] *= m.embedding_scale;
  if (m.positions.data) {
    float* const learned = buffer(Program::kBranch) + token * width;
    m.positions.row(position + m.first_position, learned);
    for (int64_t i = 0; i < width; ++i) to[i] += learned[i];
  }
  for (std::size_t r = 0; r < m.ropes.size(); ++r) {
    const Rope& rope = m.ropes[r];
    float* const cosines = turns(run, static_cast<int64_t>(r), token);
    float* const sines = cosines + rope.frequency.size();
    for (std::size_t i = 0; i < rope.frequency.size(); ++i) {
      const float angle = static_cast<float>(position) * rope.frequency[i];
      cosines[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * rope.factor;
      sines[i] = static_cast<float>(std::sin(static_cast<double>(angle))) * rope.factor;
    }
  }
}

// ---- products

int64_t Session::place(const Run& run, const Step& step, std::size_t input) const {
  int64_t at = 0;
  for (std::size_t i = 0; i < input; ++i)
    if (own(run, step.inputs[i])) at += ceil_to(run.tokens * step.inputs[i].width * 4, kVector);
  return at;
}

int64_t Session::integers_place(const Run& run, const Step& step, std::size_t index) const {
  int64_t at = place(run, step, step.inputs.size());
  for (std::size_t i = 0; i < index; ++i)
    at += batch_bytes(*step.integers[i].layout, run.tokens, static_cast<int>(options_.activations));
  return at;
}

// Inputs of tokens [begin, end) as floats where they differ from what is in a buffer, and as integers.
void Session::make_inputs(const Run& run, const Step& step, uint8_t* memory, int64_t begin, int64_t end, uint8_t* scratch) {
  for (std::size_t i = 0; i < step.inputs.size(); ++i) {
    const Input& input = step.inputs[i];
    if (!own(run, input)) continue;
    float* const to = reinterpret_cast<float*>(memory + place(run, step, i));
    for (int64_t t = begin; t < end; ++t) make_input(run, input, t, to + t * input.width, scratch);
  }
  for (std::size_t i = 0; i < step.integers.size(); ++i) {
    const Integers& form = step.integers[i];
    if (run.few() && form.layout->store != Store::codes) continue;
    const Input& input = step.inputs[size(form.input)];
    const float* const x = own(run, input) ? reinterpret_cast<const float*>(memory + place(run, step, size(form.input)))
                                           : buffer(input.buffer) + run.first_row(input) * input.width;
    const Batch batch =
        lay_out(*form.layout, run.tokens, static_cast<int>(options_.activations), memory + integers_place(run, step, i));
    kernels_.quantize(*form.layout, x, batch, begin, end);
  }
}

void Session::make_input(const Run& run, const Input& input, int64_t token, float* to, uint8_t* scratch) const {
  const int64_t row = run.first_row(input) + token, n = input.width;
  const float* const x = buffer(input.buffer) + row * n;
  if (input.norm) {
    const Norm& norm = *input.norm;
    const float* const bias = norm.bias.empty() ? nullptr : norm.bias.data();
    functions_.normalize(norm.centred, x, norm.weight.data(), bias, norm.epsilon, n, to);
  } else if (input.curved) {
    std::memcpy(to, input.gate < 0 ? x : buffer(input.gate) + row * n, size(n * 4));
    functions_.activate(input.curve, to, input.gate < 0 ? nullptr : x, n);
  } else if (input.head && run.splits_of(token) > 1) {
    merge_splits(input, parts_of(token), run.splits_of(token), to);
  } else {
    std::memcpy(to, x, size(n * 4));
  }
  for (const Rotation* rotation : input.rotations) rotate(*rotation, n, to, reinterpret_cast<float*>(scratch), functions_);
}

void Session::multiply(const Run& run, const Step& step, uint8_t* memory, int64_t begin, int64_t end, uint8_t* scratch) {
  for (const Product& p : step.products) {
    const Tiles& m = *p.matrix;
    const int64_t first = std::max(begin, p.first) - p.first, last = std::min(end, p.first + m.tiles) - p.first;
    if (first >= last) continue;
    float* const out = p.out == Program::kLogits ? run.logits : buffer(p.out);
    float* const y = p.add ? reinterpret_cast<float*>(spare_.data()) + p.spare * run.tokens : out;
    if (exact(run, p)) {
      const Input& input = step.inputs[size(p.input)];
      const float* const x = own(run, input) ? reinterpret_cast<const float*>(memory + place(run, step, size(p.input)))
                                             : buffer(input.buffer) + run.first_row(input) * input.width;
      kernels_.exact(m, x, run.tokens, p.bias, y, first, last, scratch);
    } else {
      const Batch batch = lay_out(m, run.tokens, static_cast<int>(options_.activations),
                                  memory + integers_place(run, step, size(p.integers)));
      kernels_.fast(m, batch, p.bias, y, first, last, scratch);
    }
    if (!p.add) continue;
    const int64_t limit = std::min(last * kRows, m.out);
    for (int64_t t = 0; t < run.tokens; ++t)
      for (int64_t r = first * kRows; r < limit; ++r) out[t * m.out + r] += y[t * m.out + r];
  }
}

}  // namespace trimtab
