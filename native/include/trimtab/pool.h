// A few threads that are there when the next product comes, microseconds after the last one.
//
// Work is handed out in small chunks, claimed one by one, and a job is over when its chunks are done, not when all threads have
// looked: a thread that the system has put aside delays nobody as long as it holds no chunk. Idle threads spin for some
// microseconds, because the next product follows at once, and then sleep, because other programs want the core.
//
// A job may have several phases, each of which sees all that the ones before it did. Whoever does the last chunk of a phase opens
// the next, so nobody waits for a thread that holds no chunk, and the caller is not asked in between.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>

namespace trimtab {

// Cores this process may run on.
int cores();

// Of one phase: chunks of at most `chunk` make up [0, total). shrinking: they begin with much larger ones, of which every thread has
// one before they halve, down to `chunk`. Where threads read memory, they are fast on long stretches; and end at the same time
// if the last ones are short.
struct Phase {
  int64_t total, chunk;
  bool shrinking = false;
};

class Pool {
 public:
  // The one pool of the process. After a fork the child starts with a new one.
  static Pool& shared();

  // work(begin, end, worker) for all of [0, total) in chunks of at most `chunk`, by at most `threads` threads, the caller being
  // worker 0. More threads than cores are as many as there are cores. `work` must not throw. If another thread of the program
  // is using the pool, the caller works alone.
  template <class Work>
  void run(int threads, int64_t total, int64_t chunk, Work&& work) {
    const Phase only{total, chunk};
    run_phases(threads, &only, 1, [&work](int, int64_t begin, int64_t end, int worker) { work(begin, end, worker); });
  }

  // work(phase, begin, end, worker) for all of every phase, phase after phase.
  template <class Work>
  void run_phases(int threads, const Phase* phases, int count, Work&& work) {
    auto call = [](void* context, int phase, int64_t begin, int64_t end, int worker) noexcept {
      (*static_cast<std::remove_reference_t<Work>*>(context))(phase, begin, end, worker);
    };
    run_job(threads, Job{call, &work, phases, count});
  }

 private:
  using Call = void (*)(void* context, int phase, int64_t begin, int64_t end, int worker) noexcept;
  struct Job {
    Call call;
    void* context;
    const Phase* phases;
    int count;
  };

  void run_job(int threads, const Job& job);
  void start(const Job& job, int threads);
  void open(int phase);
  bool claim(int worker);
  void work(int worker);
  void sleep(uint64_t seen);

  // epoch << 32 | next chunk. A claim is a compare-and-swap on both, so it fails for anyone who looked at an older job.
  std::atomic<uint64_t> state_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<const Phase*> phases_{nullptr};  // read by whoever opens a phase, while the caller keeps them
  std::atomic<int64_t> total_{0}, chunk_{0}, largest_{0}, chunks_{0}, done_{0};
  std::atomic<int> phase_{0}, count_{0}, limit_{0}, sleepers_{0};
  std::atomic<bool> over_{true};
  int workers_ = 0;
  std::mutex busy_, mutex_;
  std::condition_variable wake_;
};

}  // namespace trimtab
