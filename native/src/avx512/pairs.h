// Products of pairs of bfloat16 numbers, on processors that have AVX512_BF16.

#define TRIMTAB_PAIRS

namespace {

struct Pairs {
  __m512bh v;
};
inline Pairs load_pairs(const uint16_t* p) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))}; }
inline Pairs splat_pair(const uint16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, 4);
  return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair))};
}
inline Floats dot(Floats sums, Pairs a, Pairs b) { return {_mm512_dpbf16_ps(sums.v, a.v, b.v)}; }

inline void store_bfloats(uint16_t* to, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v)));
}

}  // namespace
