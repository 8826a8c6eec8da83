#include "trimtab/pool.h"

#include <algorithm>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace trimtab {
namespace {

constexpr uint64_t kIndex = 0xffffffffu;
constexpr uint64_t kClosed = kIndex;  // no job has so many chunks: nothing can be claimed
constexpr int64_t kMostChunks = int64_t{1} << 30;
constexpr int kSpins = 4000;  // some 30 to 150 microseconds

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int process() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<int>(getpid());
#else
  return 0;
#endif
}

// With a chunk that leaves no more chunks than can be counted.
Phase fitting(Phase phase) {
  if (phase.chunk < 1) phase.chunk = 1;
  if (phase.total / phase.chunk >= kMostChunks) phase.chunk = phase.total / kMostChunks + 1;
  return phase;
}

int64_t chunks_of(Phase phase) {
  phase = fitting(phase);
  return phase.total <= 0 ? 0 : (phase.total + phase.chunk - 1) / phase.chunk;
}

// Of a phase in which chunks shrink. Rounds of one for every thread: half of everything, half of what is left, and so on.
int64_t largest_of(const Phase& phase, int threads) {
  return phase.shrinking ? std::max(phase.chunk, phase.total / (2 * threads)) : phase.chunk;
}

struct Range {
  int64_t begin, size;  // size: what would fit if the phase did not end
};

Range range_of(int64_t index, int64_t largest, int64_t smallest, int threads) {
  int64_t begin = 0, size = largest;
  for (; size > smallest && index >= threads; index -= threads) {
    begin += size * threads;
    size = std::max(size / 2, smallest);
  }
  return {begin + size * index, size};
}

// How many chunks a phase has.
int64_t count_of(const Phase& phase, int threads) {
  int64_t rounds = 0;
  for (int64_t size = largest_of(phase, threads); size > phase.chunk; size = std::max(size / 2, phase.chunk)) ++rounds;
  const int64_t begin = range_of(rounds * threads, largest_of(phase, threads), phase.chunk, threads).begin;
  return rounds * threads + chunks_of({phase.total - begin, phase.chunk});
}

}  // namespace

int cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n ? static_cast<int>(n) : 1;
}

Pool& Pool::shared() {
  // Never destroyed: threads may still look at it while the process ends. A pool of the parent process is left to itself.
  static std::mutex making;
  static std::atomic<Pool*> pool{nullptr};
  static std::atomic<int> owner{-1};
  if (owner.load(std::memory_order_acquire) != process()) {
    const std::lock_guard<std::mutex> lock(making);
    if (owner.load() != process()) {
      pool.store(new Pool());
      owner.store(process(), std::memory_order_release);
    }
  }
  return *pool.load(std::memory_order_acquire);
}

void Pool::run_job(int threads, const Job& job) {
  if (threads > 1) {
    const int most = cores();
    if (threads > most) threads = most;
  }
  int64_t chunks = 0;  // of the phase that has most
  for (int i = 0; i < job.count; ++i)
    if (chunks_of(job.phases[i]) > chunks) chunks = chunks_of(job.phases[i]);
  if (threads > chunks) threads = static_cast<int>(chunks);
  std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
  if (threads <= 1 || !lock.try_lock()) {
    for (int i = 0; i < job.count; ++i)
      if (job.phases[i].total > 0) job.call(job.context, i, 0, job.phases[i].total, 0);
    return;
  }
  start(job, threads);
  for (int spins = 0; !over_.load(std::memory_order_acquire);) {
    if (claim(0))
      spins = 0;
    else
      ++spins < kSpins ? pause() : std::this_thread::yield();
  }
}

void Pool::start(const Job& job, int threads) {
  // Whoever read a field of the last job cannot claim with it.
  state_.store(((state_.load() >> 32) + 1) << 32 | kClosed, std::memory_order_seq_cst);
  call_.store(job.call, std::memory_order_release);
  context_.store(job.context, std::memory_order_release);
  phases_.store(job.phases, std::memory_order_release);
  count_.store(job.count, std::memory_order_release);
  limit_.store(threads, std::memory_order_release);
  over_.store(false, std::memory_order_release);
  for (; workers_ < threads - 1; ++workers_) {
    try {
      std::thread(&Pool::work, this, workers_ + 1).detach();
    } catch (const std::system_error&) {
      break;  // the system gives no more threads: those that are there do the work
    }
  }
  open(0);
}

// The first phase from `phase` on in which there is something to do. Called by the one thread that knows the last is over.
void Pool::open(int phase) {
  const Phase* const phases = phases_.load(std::memory_order_acquire);
  const int count = count_.load(std::memory_order_acquire);
  while (phase < count && phases[phase].total <= 0) ++phase;
  const uint64_t epoch = (state_.load() >> 32) + 1;
  state_.store(epoch << 32 | kClosed, std::memory_order_seq_cst);
  if (phase == count) return over_.store(true, std::memory_order_release);
  const Phase next = fitting(phases[phase]);
  phase_.store(phase, std::memory_order_release);
  total_.store(next.total, std::memory_order_release);
  const int threads = limit_.load(std::memory_order_acquire);
  chunk_.store(next.chunk, std::memory_order_release);
  largest_.store(largest_of(next, threads), std::memory_order_release);
  done_.store(0, std::memory_order_release);
  chunks_.store(count_of(next, threads), std::memory_order_release);
  state_.store((epoch + 1) << 32, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst)) {
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
}

// Does one chunk, if there is one.
bool Pool::claim(int worker) {
  for (;;) {
    uint64_t seen = state_.load(std::memory_order_acquire);
    const int64_t index = static_cast<int64_t>(seen & kIndex), chunks = chunks_.load(std::memory_order_acquire);
    const int threads = limit_.load(std::memory_order_acquire);
    if (index >= chunks || worker >= threads) return false;
    const Call call = call_.load(std::memory_order_acquire);
    void* const context = context_.load(std::memory_order_acquire);
    const int phase = phase_.load(std::memory_order_acquire);
    const int64_t total = total_.load(std::memory_order_acquire), smallest = chunk_.load(std::memory_order_acquire);
    const int64_t largest = largest_.load(std::memory_order_acquire);
    if (!state_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
    const Range range = range_of(index, largest, smallest, threads);
    call(context, phase, range.begin, std::min(range.begin + range.size, total), worker);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks) open(phase + 1);
    return true;
  }
}

void Pool::work(int worker) {
  for (int spins = 0;;) {
    const uint64_t seen = state_.load(std::memory_order_acquire);
    if (claim(worker)) {
      spins = 0;
    } else if (++spins < kSpins) {
      pause();
    } else {
      sleep(seen);
      spins = 0;
    }
  }
}

// Until there is another job than the one that was seen.
void Pool::sleep(uint64_t seen) {
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return state_.load(std::memory_order_seq_cst) >> 32 != seen >> 32; });
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace trimtab
