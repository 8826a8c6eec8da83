#include "trimtab/pool.h"

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

void Pool::run_job(int threads, Job job) {
  if (job.total <= 0) return;
  if (job.chunk < 1) job.chunk = 1;
  if (job.total / job.chunk >= kMostChunks) job.chunk = job.total / kMostChunks + 1;
  const int64_t chunks = (job.total + job.chunk - 1) / job.chunk;
  if (threads > 1) {
    const int most = cores();
    if (threads > most) threads = most;
  }
  if (threads > chunks) threads = static_cast<int>(chunks);
  std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
  if (threads <= 1 || !lock.try_lock()) return job.call(job.context, 0, job.total, 0);
  publish(job, chunks, threads);
  while (claim(0)) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) < chunks; ++spins)
    spins < kSpins ? pause() : std::this_thread::yield();
}

void Pool::publish(const Job& job, int64_t chunks, int threads) {
  const uint64_t epoch = (state_.load() >> 32) + 1;
  state_.store(epoch << 32 | kClosed, std::memory_order_seq_cst);  // whoever read a field of the last job cannot claim with it
  call_.store(job.call, std::memory_order_release);
  context_.store(job.context, std::memory_order_release);
  total_.store(job.total, std::memory_order_release);
  chunk_.store(job.chunk, std::memory_order_release);
  done_.store(0, std::memory_order_release);
  limit_.store(threads, std::memory_order_release);
  chunks_.store(chunks, std::memory_order_release);
  for (; workers_ < threads - 1; ++workers_) {
    try {
      std::thread(&Pool::work, this, workers_ + 1).detach();
    } catch (const std::system_error&) {
      break;  // the system gives no more threads: those that are there do the work
    }
  }
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
    const int64_t index = static_cast<int64_t>(seen & kIndex);
    if (index >= chunks_.load(std::memory_order_acquire) || worker >= limit_.load(std::memory_order_acquire)) return false;
    const Job job{call_.load(std::memory_order_acquire), context_.load(std::memory_order_acquire),
                  total_.load(std::memory_order_acquire), chunk_.load(std::memory_order_acquire)};
    if (!state_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
    const int64_t begin = index * job.chunk, end = begin + job.chunk < job.total ? begin + job.chunk : job.total;
    job.call(job.context, begin, end, worker);
    done_.fetch_add(1, std::memory_order_acq_rel);
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
