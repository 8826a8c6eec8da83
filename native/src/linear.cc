#include "trimtab/linear.h"

#include <cstring>
#include <stdexcept>

#include "trimtab/pool.h"

#if defined(TRIMTAB_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(TRIMTAB_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace trimtab {
namespace {

// Below this many bytes of weights, waking another thread takes longer than the work.
constexpr int64_t kWorthAThread = 24 << 10;

#if defined(TRIMTAB_ARM)
bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & (1ul << 20)) != 0;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
  int there = 0;
  std::size_t size = sizeof(there);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &there, &size, nullptr, 0) == 0 && there;
#else
  return false;
#endif
}
#endif

bool has(const std::string& name) {
#if defined(TRIMTAB_ARM)
  if (name == "neon") return true;
  if (name == "dotprod") return has_dotprod();
#endif
#if defined(TRIMTAB_X86)
  __builtin_cpu_init();  // answers for what the operating system saves, too
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (name == "avx2") return avx2;
  if (name == "avx512")
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#endif
  return name == "scalar";
}

std::vector<const Kernels*> built() {
#if defined(TRIMTAB_X86)
  return {&kScalar, &kAvx2, &kAvx512};
#elif defined(TRIMTAB_ARM)
  return {&kScalar, &kNeon, &kDotprod};
#else
  return {&kScalar};
#endif
}

// What a caller needs again and again; every calling thread has its own.
struct Workspace {
  Buffer batch, scratch;
};

Workspace& workspace() {
  thread_local Workspace space;
  return space;
}

// Whether tables of 64 bytes can be looked up at once.
bool has_tables() {
#if defined(TRIMTAB_X86)
  static const bool there = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vbmi") != 0;
  }();
  return there;
#else
  return false;
#endif
}

struct Parts {
  int64_t q, blocks, groups, tables;  // bytes

  Parts(const Tiles& m, const Batch& b, int64_t groups)
      : q(ceil_to(b.tokens * b.digits * b.width, kVector)),
        blocks(ceil_to(b.tokens * groups * b.blocks * 4, kVector)),
        groups(ceil_to(b.tokens * groups * 4, kVector)),
        tables(planes(m) && b.tokens == 1 && has_tables() ? b.width * 8 : 0) {}
};

Batch sized(const Tiles& m, int64_t tokens, int digits) {
  Batch b{};
  b.tokens = tokens;
  b.digits = digits;
  b.width = m.groups * m.padded;
  b.blocks = ceil_to(m.padded, kBlock) / kBlock;
  if (m.store == Store::bfloat16) b.width = ceil_to(m.in, 2);
  return b;
}

// Whether nothing is lost when the activations of this product become bfloat16.
bool as_bfloats(const Tiles& m, const float* x, int64_t tokens, const Kernels& k) {
  if (tokens < 2 || !takes_bfloats(m, k)) return false;
  for (int64_t t = 0; t < tokens; ++t) {
    uint32_t lost = 0;
    for (int64_t i = 0; i < m.in; ++i) {
      uint32_t word;
      std::memcpy(&word, x + t * m.in + i, 4);
      lost |= word & 0xffff;
    }
    if (lost) return false;
  }
  return true;
}

}  // namespace

bool takes_bfloats([[maybe_unused]] const Tiles& m, [[maybe_unused]] const Kernels& k) {
#if defined(TRIMTAB_X86)
  return m.store == Store::bfloat16 && m.tiles >= 3 && k.bfloats && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

int64_t fast_scratch(const Tiles& m, int64_t tokens) {
  if (tokens == 1) return 0;
  if (m.store != Store::codes) return kSheaf * kRows * ceil_to(tokens < kFlock ? tokens : kFlock, kWidestBundle) * 4;
  const int64_t groups = panel_groups(m) < m.groups ? panel_groups(m) : m.groups;
  return kSheaf * kRows * (groups * m.parts * m.padded + (tokens < kFlock ? tokens : kFlock) * 4);
}

int64_t batch_bytes(const Tiles& m, int64_t tokens, int digits) {
  if (m.store == Store::bfloat16) return ceil_to(ceil_to(tokens, kWidestBundle) * ceil_to(m.in, 2) * 2, kVector);
  const Parts parts(m, sized(m, tokens, digits), m.groups);
  return parts.q + 3 * parts.blocks + parts.groups + parts.tables;
}

Batch lay_out(const Tiles& m, int64_t tokens, int digits, uint8_t* memory) {
  Batch b = sized(m, tokens, digits);
  if (m.store == Store::bfloat16) {
    b.q = reinterpret_cast<const int8_t*>(memory);
    return b;
  }
  const Parts parts(m, b, m.groups);
  b.q = reinterpret_cast<const int8_t*>(memory);
  b.scale = reinterpret_cast<const float*>(memory += parts.q);
  b.block_sum = reinterpret_cast<const int32_t*>(memory += parts.blocks);
  b.group_sum = reinterpret_cast<const float*>(memory += parts.blocks);
  if (!parts.tables) return b;
  b.tables = memory += parts.groups;
  b.block_half = reinterpret_cast<const int32_t*>(memory + parts.tables);
  return b;
}

int64_t exact_scratch(const Tiles& m, int64_t tokens) {
  const int64_t codes = m.store == Store::books ? m.parts * kRows * (codes_at_once(m) + 4) : kStrip * kRows;
  return ceil_to((tokens + kStrip + 4) * kRows * 4 + codes, kVector);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* k : built())
    if (has(k->name)) names.emplace_back(k->name);
  return names;
}

const Kernels& kernels(const std::string& name) {
  const Kernels* found = nullptr;
  for (const Kernels* k : built())
    if ((name.empty() || name == k->name) && has(k->name)) found = k;
  if (found) return *found;
  std::string known;
  for (const std::string& other : instruction_sets()) known += (known.empty() ? "" : ", ") + other;
  throw std::invalid_argument("this processor cannot run '" + name + "' kernels; it has " + known);
}

const Functions& functions([[maybe_unused]] const Kernels& kernels) {
#if defined(TRIMTAB_X86)
  if (&kernels == &kAvx512) return kAvx512Functions;
  if (&kernels == &kAvx2) return kAvx2Functions;
#endif
#if defined(TRIMTAB_ARM)
  if (&kernels != &kScalar) return kNeonFunctions;
#endif
  return kScalarFunctions;
}

void linear(const Matrix& matrix, const float* x, int64_t tokens, const float* bias, float* y, Activations activations,
            const Kernels& k, int threads) {
  const Tiles& m = matrix.tiles();
  if (tokens <= 0) return;
  if (matrix.bytes() < kWorthAThread && tokens == 1) threads = 1;
  if (threads < 1) threads = 1;
  if (threads > cores()) threads = cores();
  Pool& pool = Pool::shared();
  Workspace& space = workspace();
  const bool floats = m.store == Store::codes ? activations == Activations::exact : !as_bfloats(m, x, tokens, k);
  const int64_t each = floats ? exact_scratch(m, tokens) : fast_scratch(m, tokens);
  space.scratch.grow(static_cast<std::size_t>(each * threads));
  uint8_t* const scratch = space.scratch.data();
  // Small chunks, so that a thread that is held up holds up little; whole sheaves where tiles are unpacked together.
  int64_t chunk = m.tiles / (threads * 8);
  if (!floats && tokens > 1) chunk = chunk / kSheaf * kSheaf;
  if (chunk < 1) chunk = !floats && tokens > 1 ? kSheaf : 1;

  if (floats) {
    pool.run(threads, m.tiles, chunk, [&](int64_t begin, int64_t end, int worker) {
      k.exact(m, x, tokens, bias, y, begin, end, scratch + worker * each);
    });
    return;
  }
  const int digits = static_cast<int>(activations);
  space.batch.grow(static_cast<std::size_t>(batch_bytes(m, tokens, digits)));
  const Batch batch = lay_out(m, tokens, digits, space.batch.data());
  pool.run(threads, tokens, 1, [&](int64_t begin, int64_t end, int) { k.quantize(m, x, batch, begin, end); });
  pool.run(threads, m.tiles, chunk,
           [&](int64_t begin, int64_t end, int worker) { k.fast(m, batch, bias, y, begin, end, scratch + worker * each); });
}

}  // namespace trimtab
