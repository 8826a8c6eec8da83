#include "trimtab/passes.h"

#include "trimtab/buffer.h"
#include "trimtab/pool.h"

namespace trimtab {
namespace {

Buffer& workspace() {
  thread_local Buffer space;
  return space;
}

int sensible(int threads) { return threads < 1 ? 1 : threads > cores() ? cores() : threads; }

// Small enough that a thread that is held up holds up little, large enough that neighbours share what is packed.
int64_t chunk_of(int64_t total, int threads) { return threads == 1 ? total : total / (threads * 8) + 1; }

}  // namespace

int64_t attention_scratch(const WindowAttention& a) {
  const int64_t keys = ceil_to(a.keys, kKeyRows);
  const int64_t packed = keys * (a.dim + a.value_dim) * 2, sums = kQueryRows * (a.value_dim + 2) * 4;
  return ceil_to(packed + sums + kSide * kKeyRows * (4 + 2), kVector);
}

bool multiplies_bfloats() {
#if defined(TRIMTAB_X86)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

const Passes& passes([[maybe_unused]] const Kernels& kernels) {
#if defined(TRIMTAB_X86)
  if (&kernels == &kAvx512 && multiplies_bfloats()) return kAvx512Passes;
  if (&kernels != &kScalar) return kAvx2Passes;
#endif
  return kScalarPasses;
}

void gram(const uint16_t* x, int64_t row, int64_t tokens, int64_t columns, float* total, const Passes& passes, int threads) {
  if (tokens <= 0 || columns <= 0) return;
  threads = sensible(threads);
  const int64_t panels = gram_panels(columns), tiles = panels * kSide;
  Buffer& space = workspace();
  space.grow(static_cast<std::size_t>(tiles * kRows * kGramTokens * 2));
  GramRound round{x, row, 0, columns, reinterpret_cast<uint16_t*>(space.data()), total};
  for (int64_t first = 0; first < tokens; first += kGramTokens) {
    round.x = x + first * row;
    round.tokens = tokens - first < kGramTokens ? tokens - first : kGramTokens;
    const Phase phases[2] = {{tiles, chunk_of(tiles, threads)}, {panels, 1}};
    Pool::shared().run_phases(threads, phases, 2, [&](int phase, int64_t begin, int64_t end, int) {
      phase == 0 ? passes.pack(round, begin, end) : passes.add(round, begin, end);
    });
  }
}

void attention(const WindowAttention& call, const Passes& passes, int threads) {
  threads = sensible(threads);
  const int64_t each = attention_scratch(call), blocks = call.batches * call.heads * query_blocks(call);
  Buffer& space = workspace();
  space.grow(static_cast<std::size_t>(each * threads));
  uint8_t* const scratch = space.data();
  Pool::shared().run(threads, blocks, chunk_of(blocks, threads), [&](int64_t begin, int64_t end, int worker) {
    passes.attend(call, begin, end, scratch + worker * each);
  });
}

}  // namespace trimtab
