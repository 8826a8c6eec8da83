// Sessions of small random models: that reading at once and token by token agree, for all instruction sets, numbers of threads
// and forms of weights; that sampling draws what it says; that what cannot be is refused. What the numbers should be is told by
// the tests that know torch; here it is about memory and threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "trimtab/session.h"

using namespace check;
using namespace trimtab;

namespace {

Numbers gaussian(Random& random, int64_t n, float size) {
  Numbers made(static_cast<std::size_t>(n));
  for (float& x : made) x = std::normal_distribution<float>(0, size)(random);
  return made;
}

Bytes bytes(const Numbers& numbers) { return {numbers.data(), static_cast<int64_t>(numbers.size() * 4)}; }

Linear plain(Random& random, int64_t out, int64_t in) {
  const Numbers w = gaussian(random, out * in, 1 / std::sqrt(static_cast<float>(in)));
  return Linear::leaf(std::make_shared<Matrix>(Matrix::dense(bytes(w), Store::float32, out, in)));
}

Linear codes(Random& random, int64_t out, int64_t in, int64_t bits) {
  const Numbers w = gaussian(random, out * in, 1 / std::sqrt(static_cast<float>(in)));
  const int64_t group = in % 16 ? in : 16;
  return Linear::leaf(std::make_shared<Matrix>(Matrix::rounded(bytes(w), Store::float32, out, in, bits, group)));
}

Linear sparse(Random& random, int64_t out, int64_t in) {
  std::vector<uint8_t> bitmap(static_cast<std::size_t>(out * ((in + 7) / 8)));
  int64_t kept = 0;
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      if (draw(random, 0, 1)) continue;
      bitmap[static_cast<std::size_t>(r * ((in + 7) / 8) + c / 8)] |= static_cast<uint8_t>(1 << c % 8);
      ++kept;
    }
  const Numbers values = gaussian(random, kept, 1 / std::sqrt(static_cast<float>(in)));
  return Linear::leaf(std::make_shared<Matrix>(
      Matrix::masked(bytes(values), {bitmap.data(), static_cast<int64_t>(bitmap.size())}, Store::float32, out, in)));
}

Linear palette(Random& random, int64_t out, int64_t in) {
  std::vector<uint8_t> codes(static_cast<std::size_t>(out * ((in + 1) / 2)));
  for (uint8_t& byte : codes) byte = static_cast<uint8_t>(draw(random, 0, 255));
  uint16_t book[16];
  for (uint16_t& half : book) half = static_cast<uint16_t>(draw(random, 0, 1) << 15 | draw(random, 0x2c00, 0x3000));
  return Linear::leaf(std::make_shared<Matrix>(
      Matrix::codebook({codes.data(), static_cast<int64_t>(codes.size())}, {book, 32}, {}, out, in, 1, 16, 1, in)));
}

// Any form of a weight, with a bias now and then.
Linear weight(Random& random, int64_t out, int64_t in) {
  const int64_t rank = draw(random, 1, 9), form = draw(random, 0, 7);
  Linear made = form == 0   ? plain(random, out, in)
                : form == 1 ? Linear::sum({codes(random, out, in, 3),
                                           Linear::chain({plain(random, out, rank), plain(random, rank, in)})})
                : form == 2 && in % 4 == 0
                    ? Linear::rotated(codes(random, out, in, 5), {4, 1, Numbers(static_cast<std::size_t>(in), -1.0f), {}})
                : form == 3 ? sparse(random, out, in)
                : form == 4 ? palette(random, out, in)
                            : codes(random, out, in, draw(random, 2, 8));
  if (draw(random, 0, 2) == 0) made.bias = gaussian(random, out, 0.1f);
  return made;
}

Norm norm(Random& random, int64_t width) {
  Norm made;
  made.there = true;
  made.centred = draw(random, 0, 1);
  made.weight = Numbers(static_cast<std::size_t>(width), 1.0f);
  if (made.centred) made.bias = gaussian(random, width, 0.1f);
  made.epsilon = 1e-5f;
  return made;
}

struct Example {
  Numbers table, learned;
  Model model;
};

std::shared_ptr<Example> example(Random& random, int64_t context) {
  auto made = std::make_shared<Example>();
  Model& m = made->model;
  const int64_t width = 4 * draw(random, 1, 10), vocabulary = draw(random, 5, 60);
  made->table = gaussian(random, vocabulary * width, 1);
  m.embedding = {reinterpret_cast<const uint8_t*>(made->table.data()), Store::float32, vocabulary, width, nullptr};
  if (draw(random, 0, 1)) {
    made->learned = gaussian(random, context * width, 1);
    m.positions = {reinterpret_cast<const uint8_t*>(made->learned.data()), Store::float32, context, width, nullptr};
  }
  m.context = context;
  const int64_t dim = draw(random, 2, 20);
  m.ropes.push_back({gaussian(random, dim / 2, 1), 1.0f});
  for (int i = 0; i < 2; ++i) {
    Layer l;
    l.kv_heads = draw(random, 1, 3);
    l.heads = l.kv_heads * (draw(random, 0, 4) ? draw(random, 1, 3) : 19);
    l.dim = dim;
    l.scale = 1 / std::sqrt(static_cast<float>(dim));
    l.softcap = draw(random, 0, 1) ? 5.0f : 0.0f;
    l.window = draw(random, 0, 1) ? draw(random, 1, context) : 0;
    l.rope = draw(random, 0, 1) - 1;
    l.q = weight(random, l.heads * dim, width);
    l.k = weight(random, l.kv_heads * dim, width);
    l.v = weight(random, l.kv_heads * dim, width);
    l.o = weight(random, width, l.heads * dim);
    const int64_t inner = draw(random, 1, 70);
    if (draw(random, 0, 1)) l.gate = weight(random, inner, width);
    l.up = weight(random, inner, width);
    l.down = weight(random, width, inner);
    l.curve = static_cast<Curve>(draw(random, 0, 3));
    l.parallel = draw(random, 0, 3) == 0;
    l.before_attention = norm(random, width);
    if (draw(random, 0, 1)) l.before_mlp = norm(random, width);
    if (!l.parallel && draw(random, 0, 1)) l.after_attention = norm(random, width);
    if (!l.parallel && draw(random, 0, 1)) l.after_mlp = norm(random, width);
    l.wide_norms = draw(random, 0, 1);
    if (draw(random, 0, 1)) l.q_norm = norm(random, l.wide_norms ? l.heads * dim : dim);
    if (draw(random, 0, 1)) l.k_norm = norm(random, l.wide_norms ? l.kv_heads * dim : dim);
    m.layers.push_back(std::move(l));
  }
  m.last = norm(random, width);
  m.head = weight(random, vocabulary, width);
  return made;
}

std::shared_ptr<const Model> model_of(const std::shared_ptr<Example>& example) { return {example, &example->model}; }

std::vector<int32_t> ids_of(Random& random, const Model& model, int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(draw(random, 0, model.vocabulary() - 1)));
  return ids;
}

double apart(const Numbers& a, const Numbers& b) {
  double most = 0, size = 1e-6;
  for (std::size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, static_cast<double>(std::fabs(a[i] - b[i])));
    size = std::max(size, static_cast<double>(std::fabs(a[i])));
  }
  return most / size;
}

void reading(Random& random, const std::string& set) {
  const int64_t context = draw(random, 0, 3) ? 40 : 700;
  const auto example = ::example(random, context);
  const Model& model = example->model;
  Options options;
  options.threads = static_cast<int>(draw(random, 1, 3));
  options.activations = static_cast<Activations>(draw(random, 0, 2));
  options.kept = static_cast<Kept>(draw(random, 0, 2));
  options.chunk = draw(random, 1, 50);
  const auto ids = ids_of(random, model, context - draw(random, 1, 6));
  const auto count = static_cast<int64_t>(ids.size()), wide = model.vocabulary();
  Session whole(model_of(example), kernels(set), options), stepped(model_of(example), kernels(set), options);
  Numbers at_once(static_cast<std::size_t>(count * wide)), last(static_cast<std::size_t>(wide));
  whole.read(ids.data(), count, at_once.data(), true);
  const int64_t first = std::max<int64_t>(0, count - 20);
  double worst = 0;
  if (first) {
    stepped.read(ids.data(), first, last.data(), false);
    worst = apart(last, Numbers(at_once.begin() + (first - 1) * wide, at_once.begin() + first * wide));
  }
  for (int64_t i = first; i < count; ++i) {
    stepped.read(ids.data() + i, 1, last.data(), false);
    worst = std::max(worst, apart(last, Numbers(at_once.begin() + i * wide, at_once.begin() + (i + 1) * wide)));
  }
  expect(worst < 1e-3, set + ": reading at once and by steps are " + std::to_string(worst) + " apart");

  Sampler sampler({0.8f, 0, 0.9f, 1.1f, 5}), again({0.8f, 0, 0.9f, 1.1f, 5});
  std::vector<int32_t> made, repeated;
  whole.generate(sampler, 100, {}, made);
  expect(whole.length() == context, set + ": generation fills the context");
  stepped.truncate(count);
  whole.truncate(count);
  whole.generate(again, 100, {}, repeated);
  expect(made == repeated, set + ": the same seed gives the same tokens");
}

// Two conversations at the same time, of which one has the pool and the other works alone.
void together(Random& random) {
  const auto example = ::example(random, 60);
  const auto ids = ids_of(random, example->model, 10);
  std::vector<int32_t> made[2];
  auto talk = [&](int which) {
    Options options;
    options.threads = 2;
    Session session(model_of(example), kernels(""), options);
    Sampler sampler({0, 0, 1, 1, 0});
    session.read(ids.data(), 10, nullptr, false);
    session.generate(sampler, 40, {}, made[which]);
  };
  std::thread other(talk, 1);
  talk(0);
  other.join();
  expect(made[0] == made[1] && made[0].size() == 40, "two sessions at the same time say the same");
}

// Several conversations of different lengths with one model say bit for bit what they say alone.
void batches(Random& random, const std::string& set) {
  const int64_t context = draw(random, 0, 3) ? 40 : 1400;
  const auto example = ::example(random, context);
  Options options;
  options.threads = static_cast<int>(draw(random, 1, 3));
  options.activations = static_cast<Activations>(draw(random, 0, 2));
  options.kept = static_cast<Kept>(draw(random, 0, 2));
  Session alone(model_of(example), kernels(set), options);
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<Sampler> samplers;
  std::vector<std::vector<int32_t>> expected;
  const int64_t count = draw(random, 1, 12);
  const std::vector<int32_t> stop{static_cast<int32_t>(draw(random, 0, 4))};
  for (int64_t i = draw(random, 1, 6); i > 0; --i) {
    const auto ids = ids_of(random, example->model, draw(random, 1, context));
    const Sampling sampling{draw(random, 0, 1) ? 0.0f : 0.9f, 0, 1, 1.1f, static_cast<uint64_t>(i)};
    Sampler sampler(sampling);
    const auto read = [&, again = draw(random, 0, 1)](Session& session) {
      session.truncate(0);
      session.read(ids.data(), static_cast<int64_t>(ids.size()), nullptr, false);
      if (again) session.truncate(static_cast<int64_t>(ids.size()) - 1);
      if (again) session.read(&ids.back(), 1, nullptr, false);
    };
    read(alone);
    alone.generate(sampler, count, stop, expected.emplace_back());
    sessions.push_back(alone.another());
    read(*sessions.back());
    samplers.emplace_back(sampling);
  }
  std::vector<Session*> each;
  std::vector<Sampler*> theirs;
  for (const auto& session : sessions) each.push_back(session.get());
  for (Sampler& sampler : samplers) theirs.push_back(&sampler);
  std::vector<std::vector<int32_t>> made;
  Session::generate_together(each, theirs, count, stop, made);
  expect(made == expected, set + ": " + std::to_string(each.size()) + " conversations together say what they say alone");
  bool filled = true;
  for (std::size_t i = 0; i < each.size(); ++i) filled = filled && each[i]->length() <= context;
  expect(filled, set + ": no conversation is longer than the context");
}

void no_batches(Random& random) {
  const auto example = ::example(random, 20), unlike = ::example(random, 20);
  const int32_t id = 1;
  Session session(model_of(example), kernels(""), {}), stranger(model_of(unlike), kernels(""), {});
  const auto other = session.another();
  Sampler sampler({0, 0, 1, 1, 0});
  std::vector<std::vector<int32_t>> made;
  session.read(&id, 1, nullptr, false);
  stranger.read(&id, 1, nullptr, false);
  refused("no sessions", [&] { Session::generate_together({}, {}, 1, {}, made); });
  refused("too few samplers", [&] { Session::generate_together({&session}, {}, 1, {}, made); });
  refused("an empty conversation", [&] { Session::generate_together({&session, other.get()}, {&sampler, &sampler}, 1, {}, made); });
  refused("a session twice", [&] { Session::generate_together({&session, &session}, {&sampler, &sampler}, 1, {}, made); });
  refused("another model", [&] { Session::generate_together({&session, &stranger}, {&sampler, &sampler}, 1, {}, made); });
  Session::generate_together({&session}, {&sampler}, 2, {}, made);
  expect(made.size() == 1 && made[0].size() == 2 && session.length() == 3, "a conversation may be alone");
}

void sampling(Random& random) {
  const Functions& f = functions(kernels(""));
  Numbers logits = gaussian(random, 50, 2);
  logits[7] = logits[31] = 40;
  Numbers copy = logits;
  Sampler greedy({0, 0, 1, 1, 1});
  expect(greedy.pick(copy.data(), 50, {}, f) == 7, "of equal logits, the first");
  copy = logits;
  Sampler punished({0, 0, 1, 3, 1});
  expect(punished.pick(copy.data(), 50, {7, 7, 3}, f) == 31, "a token that was there is punished once");
  Sampler two({1, 2, 1, 1, 1});
  int seen[2] = {0, 0};
  for (int i = 0; i < 100; ++i) {
    copy = logits;
    const int32_t id = two.pick(copy.data(), 50, {}, f);
    expect(id == 7 || id == 31, "top_k leaves two");
    ++seen[id == 31];
  }
  expect(seen[0] > 20 && seen[1] > 20, "both of two equal tokens are drawn");
}

void refusals(Random& random) {
  const auto example = ::example(random, 20);
  Session session(model_of(example), kernels(""), {});
  const auto ids = ids_of(random, example->model, 30);
  const int32_t beyond = static_cast<int32_t>(example->model.vocabulary()), negative = -1;
  refused("no tokens", [&] { session.read(ids.data(), 0, nullptr, false); });
  refused("more than the context", [&] { session.read(ids.data(), 21, nullptr, false); });
  refused("an id beyond the vocabulary", [&] { session.read(&beyond, 1, nullptr, false); });
  refused("a negative id", [&] { session.read(&negative, 1, nullptr, false); });
  refused("a length that is not there", [&] { session.truncate(1); });
  std::vector<int32_t> made;
  Sampler sampler({0, 0, 1, 1, 0});
  refused("nothing to continue", [&] { session.generate(sampler, 1, {}, made); });
  refused("a temperature below 0", [&] { Sampler({-1, 0, 1, 1, 0}); });
  refused("weights that do not fit", [&] {
    auto other = std::make_shared<Example>(*example);
    other->model.layers[1].down = plain(random, 3, 3);
    Session(model_of(other), kernels(""), {});
  });
  refused("a rope that is not there", [&] {
    auto other = std::make_shared<Example>(*example);
    other->model.layers[0].rope = 1;
    Session(model_of(other), kernels(""), {});
  });
  refused("parts of another shape", [&] { Linear::sum({plain(random, 3, 3), plain(random, 3, 4)}); });
  refused("factors that do not meet", [&] { Linear::chain({plain(random, 3, 3), plain(random, 4, 3)}); });
  refused("a block that does not divide", [&] { Linear::rotated(plain(random, 3, 6), {4, 1, {}, {}}); });

  auto damaged = std::make_shared<Example>(*example);
  damaged->table[3] = NAN;
  damaged->model.embedding.data = reinterpret_cast<const uint8_t*>(damaged->table.data());
  Session broken(model_of(damaged), kernels(""), {});
  const int32_t zero = 0;
  try {
    broken.read(&zero, 1, nullptr, false);
    expect(false, "logits that are no numbers were taken");
  } catch (const std::runtime_error&) {
    expect(broken.length() == 0, "what failed is not part of the conversation");
  }
}

}  // namespace

void session_tests(Random& random, int rounds) {
  refusals(random);
  sampling(random);
  no_batches(random);
  for (int round = 0; round < rounds; ++round)
    for (const std::string& set : instruction_sets()) {
      reading(random, set);
      batches(random, set);
    }
  for (int round = 0; round < 3; ++round) together(random);
}
