// One conversation with a model: its cache of keys and values, and the steps that turn tokens into logits.
//
// A model is compiled once into a list of steps (program.h), and a run is one job of the thread pool whose phases are these
// steps: threads enter once per token. Many tokens at once go through the same steps with larger batches, be they of one
// conversation or of several, each at a position of its own.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "trimtab/cache.h"
#include "trimtab/linear.h"
#include "trimtab/model.h"
#include "trimtab/pool.h"
#include "trimtab/program.h"
#include "trimtab/sampling.h"

namespace trimtab {

struct Options {
  int threads = 1;  // more than cores are as many as there are cores
  Activations activations = Activations::int16;
  Kept kept = Kept::bfloat16;
  int64_t chunk = 256;  // tokens that are read at once, at most
};

class Session {
 public:
  // Throws std::invalid_argument for a model whose sizes disagree.
  Session(std::shared_ptr<const Model> model, const Kernels& kernels, const Options& options);
  ~Session();

  // Reads ids after all that was there. logits: [vocabulary] of the last position, or [count, vocabulary] with `every`, or null.
  // Throws std::invalid_argument (no token, id or length out of range) before anything changes, std::runtime_error if the logits
  // are not finite numbers, or if another thread is using the session.
  void read(const int32_t* ids, int64_t count, float* logits, bool every);

  // Appends up to `count` tokens to `made`; ends after one of `stop`, or when the context is full. They are part of the
  // conversation from then on. There must be something to continue. Throws as `read` does.
  void generate(Sampler& sampler, int64_t count, const std::vector<int32_t>& stop, std::vector<int32_t>& made);

  // The same for several sessions that `another` made of one: everyone's tokens are those that it would make alone, bit for bit,
  // but a tile of weights is read once for all. Throws std::invalid_argument for sessions that do not belong together.
  static void generate_together(const std::vector<Session*>& sessions, const std::vector<Sampler*>& samplers, int64_t count,
                                const std::vector<int32_t>& stop, std::vector<std::vector<int32_t>>& made);

  // A new conversation with the same model.
  std::unique_ptr<Session> another() const { return std::make_unique<Session>(model_, kernels_, options_); }

  int64_t length() const { return static_cast<int64_t>(history_.size()); }
  // Forgets what comes after the first `length` tokens.
  void truncate(int64_t length);

  // From now on, or no longer: where the time goes. It costs some of it.
  void time_stages(bool on);
  // Seconds for every `Stage`, and of waiting at the end, since `time_stages(true)`. What threads do at the same time is divided by their
  // number, so that all of it adds up to the time that runs and choices took.
  std::vector<double> stages() const;

  int64_t cache_bytes() const { return cache_.bytes(); }
  const Model& model() const { return *model_; }
  const Options& options() const { return options_; }

 private:
  struct Worker;
  // One token of a conversation among several.
  struct Seat {
    Session* session = nullptr;
    int64_t position = 0;
    int64_t splits = 1;
  };
  // Tokens that go through the steps together. offset: the first of them, in the buffers. seats: where each of the tokens is, if
  // they are of several conversations; otherwise they follow each other from `position`.
  struct Run {
    int64_t tokens = 1, position = 0, offset = 0;
    const int32_t* ids = nullptr;
    float* logits = nullptr;
    int64_t splits = 1;  // of the positions that one token looks at, the largest number if there are seats
    const Seat* seats = nullptr;

    // What compositions put down between their steps begins at the front.
    int64_t first_row(const Input& input) const { return input.buffer < Program::kFirstOfCompositions ? offset : 0; }
    int64_t at(int64_t token) const { return seats ? seats[token].position : position + token; }
    int64_t splits_of(int64_t token) const { return seats ? seats[token].splits : splits; }
    bool few() const { return tokens == 1 || seats; }  // a head and token are looked after in parts
  };

  double* spent(Worker& worker, Stage stage) const;
  int32_t pick(Sampler& sampler);
  void catch_up(float* logits, bool every);
  void step_together(const std::vector<Session*>& sessions);
  bool belongs(const Session& other) const;
  int64_t splits_at(int64_t position) const;
  void finish(float* logits, int64_t position) const;
  void run(Run run, std::size_t first, std::size_t last);
  Phase main_phase(const Run& run, const Step& step) const;
  void prepare(const Run& run, const Step& step, int64_t begin, int64_t end, Worker& worker);
  void work(const Run& run, const Step& step, int64_t begin, int64_t end, Worker& worker, int64_t stamp);

  void begin_token(const Run& run, int64_t token);
  void make_inputs(const Run& run, const Step& step, uint8_t* memory, int64_t begin, int64_t end, uint8_t* scratch);
  void make_input(const Run& run, const Input& input, int64_t token, float* to, uint8_t* scratch) const;
  void merge_splits(const Input& input, const float* parts, int64_t splits, float* to) const;
  void multiply(const Run& run, const Step& step, uint8_t* memory, int64_t begin, int64_t end, uint8_t* scratch);

  // Heads of queries that share a key/value head, and tokens. split: of the positions, where one token looks at them in parts.
  struct Queries {
    int64_t first_head, heads, first_token, tokens, split;
  };
  void take_head(const Run& run, const Layer& layer, const Norm& norm, const float* from, int64_t token, float* to) const;
  void keep(const Run& run, const Step& step, int64_t token, int64_t head, Worker& worker);
  const Cache& cache_of(const Run& run, int64_t token) const { return run.seats ? run.seats[token].session->cache_ : cache_; }
  float* parts_of(int64_t token) const;
  void attend_one(const Run& run, const Step& step, int64_t item, Worker& worker);
  void attend_many(const Run& run, const Step& step, int64_t item, Worker& worker);
  void attend(const Run& run, const Step& step, const Queries& queries, Worker& worker);

  bool own(const Run& run, const Input& input) const { return !input.plain() || (input.head && run.few()); }
  static bool exact(const Run& run, const Product& p) {
    return p.integers < 0 || (run.few() && p.matrix->store != Store::codes);
  }
  int64_t place(const Run& run, const Step& step, std::size_t input) const;
  int64_t integers_place(const Run& run, const Step& step, std::size_t index) const;
  float* buffer(int id) const { return reinterpret_cast<float*>(buffers_[static_cast<std::size_t>(id)].data()); }
  const Layer& layer(const Step& step) const { return model_->layers[static_cast<std::size_t>(step.layer)]; }
  float* turns(const Run& run, int64_t rope, int64_t token) const;
  void make_room(int64_t tokens);

  std::shared_ptr<const Model> model_;
  const Kernels& kernels_;
  const Functions& functions_;
  Options options_;
  Program program_;
  Cache cache_;
  std::vector<int32_t> history_;
  int64_t read_ = 0;       // tokens of history_ whose keys and values are in the cache
  bool has_logits_ = false;  // of the last token of history_
  int64_t runs_ = 0;
  bool timed_ = false;
  double running_ = 0;  // seconds in runs, while stages are timed
  int64_t room_ = 0;         // tokens that the buffers are made for
  int64_t most_turns_ = 0;   // frequencies of a rope, at most
  int64_t widest_head_ = 0;  // padded
  int64_t most_heads_ = 0;
  std::vector<Phase> phases_;
  std::vector<Buffer> buffers_;
  Buffer logits_, together_, turns_, spare_, shared_, splits_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::mutex busy_;
};

}  // namespace trimtab
